"""The templates of this folder with the report's filters, style, script and rules of escaping.

The surprise: every page carries a content security policy with the hashes of its own style and
script, so that even markup which slipped past the escaping could neither run nor fetch anything;
the price is that `style=""` attributes do not work.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from smollora.errors import SmolloraError
from smollora.report import charts, show

PAGE_BYTES = 3_000_000
MOST_ROWS = 40
"""Rows of any one table and items of any one list; the page says how many there are."""


def fitting_page(name: str, values_at: Callable[[float], Mapping[str, Any]], of: str) -> str:
    """The page `name` with as much of its lists as keeps it under `PAGE_BYTES` as UTF-8.

    Args:
        name: a template of this folder.
        values_at: gives its values for a share of the room that lists have.
        of: what the page is about, for the error.

    Raises:
        SmolloraError: the page is larger even with empty lists.
    """
    for share in (1.0, 0.6, 0.3, 0.0):
        page = load_page(name).render(**values_at(share)).lstrip()
        if len(page.encode()) < PAGE_BYTES:
            return page
    raise SmolloraError(
        f"the report of {of} is larger than {PAGE_BYTES:,} bytes even without its examples",
        "look for a summary.json, manifest.json or recipe.yaml of unusual size in the run folder",
    )


def _csp_hash(text: str) -> Markup:
    """The source expression that allows exactly this inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return Markup("sha256-" + base64.b64encode(digest).decode())


def _source(name: str) -> str:
    return files("smollora.report").joinpath(name).read_text(encoding="utf-8")


@cache
def load_page(name: str) -> Template:
    """A page of this folder."""
    environment = Environment(
        autoescape=True,
        finalize=show.visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_source),
    )
    for function in (
        *(show.number, show.percent, show.threshold, show.of, show.duration, show.memory),
        *(show.yes_no, show.call, show.pretty, show.clip, show.field_name),
        *(show.rate_name, show.rate_note),
    ):
        environment.filters[function.__name__] = function
    environment.filters["csp_hash"] = lambda text: _csp_hash(str(text))
    environment.globals.update(
        model_notes=show.MODEL_NOTES,
        lower_is_better=show.LOWER_IS_BETTER,
        most=MOST_ROWS,
        canvas=charts,
        stylesheet=Markup(_source("style.css")),
        page_script=Markup(_source("page.js")),
    )
    return environment.get_template(name)
