"""Turns `ReportData` into one self-contained HTML page.

The page needs neither network nor server: style, script, charts and tokens are inside, and it stays
under `PAGE_BYTES`. Here is decided what is shown and what is cut, never without saying so; how it
looks is `page.html.jinja`. The surprise: the page carries a content security policy with the hashes
of its own style and script, so that even markup which slipped past the escaping could neither run
nor fetch anything; the price is that `style=""` attributes do not work.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from smollora.errors import SmolloraError
from smollora.report import charts, show, spans
from smollora.report.contents import (
    MODELS,
    RATES,
    RIGHT,
    Inspect,
    Probe,
    Rate,
    Rates,
    Record,
    ReportData,
)
from smollora.types import Check

PAGE_BYTES = 3_000_000
TOKEN_VIEW_BYTES = 1_000_000
EXAMPLES_BYTES = 1_400_000
MOST_ROWS = 40
"""Rows of any one table and items of any one list; the page says how many there are."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rates side by side: a row for each name, a cell for each model."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Rate | None, ...]], ...]
    without_cases: tuple[str, ...] = ()
    """Names in which no model had a case; they have no row."""


def render_html(data: ReportData) -> str:
    """The page, under `PAGE_BYTES` as UTF-8.

    Raises:
        SmolloraError: the page is larger even without token view and examples.
    """
    rows = [spans.token_row(row) for row in data.preview]
    cases = spans.cases(data)
    for shrink in (1.0, 0.6, 0.3, 0.0):
        page = load_page("page.html.jinja").render(
            data=data,
            sections=data.sections(),
            headline=headline(data),
            tables=_tables(data),
            checks=_checks(data.inspect) if data.inspect else [],
            chart=charts.loss_chart(data.curve),
            part_lines=charts.part_lines(data.curve),
            rows=spans.fitting(rows, TOKEN_VIEW_BYTES * shrink),
            rows_total=len(rows),
            cases=spans.fitting(cases, EXAMPLES_BYTES * shrink),
            cases_total=len(cases),
            verdicts=_verdicts(data.records),
        )
        if len(page.encode()) < PAGE_BYTES:
            return page
    raise SmolloraError(
        f"the report of {data.run} is larger than {PAGE_BYTES:,} bytes even without its examples",
        "look for a summary.json, manifest.json or recipe.yaml of unusual size in the run folder",
    )


def headline(data: ReportData) -> list[str]:
    """The finding in plain sentences; none where nothing was probed."""
    probe = data.probe
    if probe is None or (probe.before is None and probe.after is None):
        return []
    opener = _opener(data.inspect)
    before, after = _rate(probe, probe.before, "emission"), _rate(probe, probe.after, "emission")
    served = _rate(probe, "served", "emission") if probe.after != "served" else None
    if before and before.has_cases:
        said = f"Before: {show.of(before)} prompts that need a tool emitted {opener}."
        said += f" After: {show.of(after) if after else 'not run'}."
    elif after and after.has_cases:
        said = f"Before: {show.of(before) if before else 'not run'}. After: {show.of(after)}"
        said += f" prompts that need a tool emitted {opener}."
    else:
        said = "Prompts that need a tool: no cases."
    if served:
        said += f" From the server: {show.of(served)}."
    return [said, *_false_calls(probe)]


def _opener(inspect: Inspect | None) -> str:
    if inspect is None or inspect.open is None:
        return "the opening token"
    number = "" if inspect.open.id is None else f" (id {inspect.open.id})"
    return f"the opening token {inspect.open.text}{number}"


def _false_calls(probe: Probe) -> list[str]:
    before, after = (_rate(probe, model, "false_call") for model in (probe.before, probe.after))
    if after is None or not after.has_cases:
        return []
    earlier = f"; before, in {show.of(before)}" if before and before.has_cases else ""
    return [f"Where no call was wanted, it called in {show.of(after)}{earlier}."]


def _rate(probe: Probe, model: str | None, rate: str) -> Rate | None:
    return probe.models.get(model or "", {}).get(rate)


def _tables(data: ReportData) -> dict[str, Any]:
    probe = data.probe
    models = tuple(model for model in MODELS if probe and model in probe.models)
    return {
        "overall": _overall(probe.models, models) if probe else None,
        "categories": _by_category(probe, models) if probe else {},
        "suites": {name: _suite(suite) for name, suite in (data.suites or {}).items()},
    }


def _overall(by_model: Mapping[str, Rates], models: tuple[str, ...]) -> Table:
    names = _in_order(rate for model in models for rate in by_model[model])
    rows = [(name, tuple(by_model[model].get(name) for model in models)) for name in names]
    return Table(models, tuple(rows))


def _by_category(probe: Probe, models: tuple[str, ...]) -> dict[str, Table]:
    """A table of categories for each rate."""
    read = {model: probe.by_category.get(model, {}) for model in models}
    categories = list(dict.fromkeys(name for by_name in read.values() for name in by_name))
    rates = [rates for by_name in read.values() for rates in by_name.values()]
    tables = {}
    for rate in _in_order(name for each in rates for name in each):
        rows, without_cases = [], []
        for name in categories:
            cells = tuple(read[model].get(name, {}).get(rate) for model in models)
            if any(cell and cell.has_cases for cell in cells):
                rows.append((name, cells))
            else:
                without_cases.append(name)
        tables[rate] = Table(models, tuple(rows), tuple(without_cases))
    return tables


def _suite(suite: Mapping[str, Mapping[str, Rates]]) -> Table:
    asked = {model for by_model in suite.values() for model in by_model}
    models = (*(model for model in MODELS if model in asked), *sorted(asked - set(MODELS)))
    rows = []
    for category, by_model in suite.items():
        names = _in_order(rate for rates in by_model.values() for rate in rates)
        for rate in names:
            name = category if len(names) == 1 else f"{category}: {show.rate_name(rate).lower()}"
            rows.append((name, tuple(by_model.get(model, {}).get(rate) for model in models)))
    return Table(models, tuple(rows))


def _in_order(rates: Iterable[str]) -> list[str]:
    """The known rates in their order, then the others by name."""
    asked = set(rates)
    return [rate for rate in RATES if rate in asked] + sorted(asked - set(RATES))


def _checks(inspect: Inspect) -> list[tuple[str, Check | None, Check | None]]:
    """Each check by name, on the template as it came and on the repaired one."""
    stock = {check.name: check for check in inspect.checks}
    repaired = {check.name: check for check in inspect.repaired_checks}
    names = dict.fromkeys([*stock, *repaired])
    return [(name, stock.get(name), repaired.get(name)) for name in names]


def _verdicts(records: Sequence[Record]) -> Table | None:
    """How often each model got each verdict, the right ones first, then by number."""
    if not records:
        return None
    models = [model for model in MODELS if any(record.model == model for record in records)]
    models += sorted({record.model for record in records} - set(MODELS))
    counts = Counter((record.verdict, record.model) for record in records)
    asked = Counter(record.model for record in records)
    totals = Counter(record.verdict for record in records)
    rows = []
    for verdict in sorted(totals, key=lambda name: (name != RIGHT, -totals[name], name)):
        cells = tuple(
            Rate(counts[verdict, model], asked[model], counts[verdict, model] / asked[model])
            for model in models
        )
        rows.append((verdict, cells))
    return Table(tuple(models), tuple(rows))


def _csp_hash(text: str) -> str:
    """The source expression that allows exactly this inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def load_page(name: str) -> Template:
    """A page of this folder, with the report's filters, style and rules of escaping."""
    folder = files("smollora.report")
    environment = Environment(
        autoescape=True,
        finalize=show.visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        *(
            show.number,
            show.percent,
            show.threshold,
            show.of,
            show.duration,
            show.memory,
            show.yes_no,
            show.call,
        ),
        *(show.pretty, show.clip, show.rate_name, show.rate_note),
    ):
        environment.filters[function.__name__] = function
    environment.filters["csp_hash"] = lambda text: Markup(_csp_hash(str(text)))
    environment.globals.update(
        model_notes=show.MODEL_NOTES,
        lower_is_better=show.LOWER_IS_BETTER,
        request_characters=spans.REQUEST_CHARACTERS,
        most=MOST_ROWS,
        canvas=charts,
        stylesheet=Markup(folder.joinpath("style.css").read_text(encoding="utf-8")),
    )
    return environment.from_string(folder.joinpath(name).read_text(encoding="utf-8"))
