"""The cures on a terminal: the verdict first, then a line a cure.

In: the dict of cures.json. Out: lines and a rich table; nothing is computed here but shares. What a
model wrote never stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollora.cures import CURES

RATES = (
    ("calls", "emission"),
    ("valid JSON", "valid_json"),
    ("fits schema", "schema_valid"),
    ("right tool", "right_tool"),
    ("false: no tools", "false_call_no_tools"),
    ("false: unfitting", "false_call_irrelevant"),
    ("false: all", "false_call"),
)


def show_cures(summary: Mapping[str, Any], console: Console) -> None:
    """Verdict, reason and fix; the table; why each cure falls short; notes."""
    for line in (
        f"verdict: {summary['verdict']}",
        f"  {summary['says']}",
        f"  fix: {summary['fix']}",
        "",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    wanting, cases = summary["wanting"], summary["cases"]
    title = f"{wanting} cases that want a call, {cases - wanting} that want none (95% intervals)"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    for word, _ in RATES:
        table.add_column(word, justify="right")
    for word in ("prompt tokens", "new tokens", "seconds a case", "enough"):
        table.add_column(word, justify="right")
    for cure, line in summary["lines"].items():
        cells = _cells(line)
        table.add_row(Text(CURES[cure]), *(Text(cell) for cell in cells))
    console.print(table)
    for text in describe(summary):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(summary: Mapping[str, Any]) -> Iterator[str]:
    """Where each cure falls short, what could not be had, the template's faults, notes."""
    for cure, line in summary["lines"].items():
        if line["unavailable"]:
            yield f"{CURES[cure]}: cannot be had: {line['unavailable']}"
        elif line["same_as"]:
            yield f"{CURES[cure]}: the prompts of the {CURES[line['same_as']]}, not asked again"
        elif not line["enough"]:
            yield f"{CURES[cure]}: {'; '.join(line['reasons'])}"
        if line.get("harness_errors"):
            yield f"{CURES[cure]}: {line['harness_errors']} prompts not answered, in no rate"
    faults = summary["template_faults"]
    if faults:
        yield f"the stock template fails: {', '.join(faults)}"
    yield (
        "prompt and new tokens are of one request; seconds a case are those of the whole line,"
        " answered side by side, over its cases"
    )
    for note in summary["notes"]:
        yield f"note: {note}"


def _cells(line: Mapping[str, Any]) -> list[str]:
    if line["unavailable"]:
        return ["-"] * (len(RATES) + 3) + ["no"]
    prompts = max(line["prompts"], 1)
    return [
        *(_share(line["rates"][rate]) for _, rate in RATES),
        f"{line['prompt_tokens'] / prompts:.0f}",
        f"{line['generated_tokens'] / prompts:.0f}",
        f"{line['seconds'] / prompts:.2f}",
        "yes" if line["enough"] else "no",
    ]


def _share(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return "-"
    return f"{rate['k']}/{rate['n']} ({rate['low']:.0%}-{rate['high']:.0%})"
