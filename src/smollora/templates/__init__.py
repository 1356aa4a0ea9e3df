"""Chat templates: `engine` renders them as a server does, `audit` finds what they lose.

`repair` gives the nearest template that loses nothing.

`audit` and `repair` are modules here, each with a function of its own name, so those are imported
from their modules: `from smollora.templates.audit import audit`.
"""

from __future__ import annotations

from smollora.templates.engine import DEFAULT_DATE, ChatTemplate, Marked, load_shipped

__all__ = ["DEFAULT_DATE", "ChatTemplate", "Marked", "load_shipped"]
