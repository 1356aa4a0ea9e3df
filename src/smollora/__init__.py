"""smollora: finds out why a chat model calls no tools, teaches it its native tool-call tokens, and
proves it on token ids.

For notebooks: `from smollora import inspect_model, audit_template, repair_template, show_template`;
`open_run`, `run_stage` and `show_row` do the main job, `Chat` talks to what came of it. They are
imported when they are asked for, so that `import smollora` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollora.chat.simple import Chat as Chat
    from smollora.inspection import audit_template as audit_template
    from smollora.inspection import inspect_model as inspect_model
    from smollora.run_view import open_run as open_run
    from smollora.run_view import run_stage as run_stage
    from smollora.run_view import show_row as show_row
    from smollora.template_repair import repair_template as repair_template
    from smollora.template_view import show_template as show_template

__version__ = "0.1.0"

_HOMES = {
    "Chat": "smollora.chat.simple",
    "audit_template": "smollora.inspection",
    "inspect_model": "smollora.inspection",
    "open_run": "smollora.run_view",
    "repair_template": "smollora.template_repair",
    "run_stage": "smollora.run_view",
    "show_row": "smollora.run_view",
    "show_template": "smollora.template_view",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smollora' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
