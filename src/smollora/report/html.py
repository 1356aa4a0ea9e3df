"""Turns `ReportData` into one self-contained HTML page.

The page needs neither network nor server: style, script, charts, rows and answers are inside, and
it stays under `PAGE_BYTES`. Here is decided what is shown and what is cut, never without saying so;
how it looks is `page.html.jinja`, what stands in its lists `island`, who draws them `page.js`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.report import charts, show
from smollora.report.cases import cases
from smollora.report.contents import Inspect, Probe, Rate, ReportData
from smollora.report.lists import lists
from smollora.report.pages import fitting_page
from smollora.report.tables import rate_tables, verdict_table
from smollora.types import Check


def render_html(data: ReportData) -> str:
    """The page, under `PAGE_BYTES` as UTF-8.

    Raises:
        SmolloraError: the page is larger even without training rows and answers.
    """
    asked = cases(data)
    probed = [record for record in data.records if record.source == "probe"]
    fixed = {
        "data": data,
        "sections": data.sections(),
        "headline": headline(data),
        "tables": rate_tables(data),
        "checks": _checks(data.inspect) if data.inspect else [],
        "chart": charts.loss_chart(data.curve),
        "part_lines": charts.part_lines(data.curve),
        "verdicts": verdict_table(probed),
    }

    def values_at(share: float) -> Mapping[str, Any]:
        return {**fixed, "lists": lists(data.preview, asked, data.inspect, share)}

    return fitting_page("page.html.jinja", values_at, data.run)


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


def _checks(inspect: Inspect) -> list[tuple[str, Check | None, Check | None]]:
    """Each check by name, on the template as it came and on the repaired one."""
    stock = {check.name: check for check in inspect.checks}
    repaired = {check.name: check for check in inspect.repaired_checks}
    names = dict.fromkeys([*stock, *repaired])
    return [(name, stock.get(name), repaired.get(name)) for name in names]
