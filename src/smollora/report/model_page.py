"""What `smollora inspect` found as one self-contained HTML page, in the report's style.

Every text on it comes from a stranger's model folder: it is escaped, hidden characters are made
visible, and a content security policy allows the page's own style and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollora.report.pages import load_page


def render_model_page(found: Mapping[str, Any], architecture: Sequence[str]) -> str:
    """The page.

    Args:
        found: what `inspect_model` gives.
        architecture: the architecture in sentences.
    """
    page: str = load_page("model_page.html.jinja").render(
        found=found, architecture=list(architecture)
    )
    return page.encode("utf-8", "replace").decode("utf-8")
