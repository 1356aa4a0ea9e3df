"""A probe's summary on a terminal: a column a model, a line a rate, then where columns part.

In: the dict of summary.json. Out: rich tables and lines; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

OVERALL = (
    *("emission", "valid_json", "schema_valid", "right_tool", "right_call", "stops_after_call"),
    *("spelled_out", "false_call", "false_call_no_tools", "false_call_irrelevant"),
    "false_call_near",
)
PARTINGS = 12
"""Cases of a step that the terminal shows; summary.json holds all."""


def show_probe(summary: Mapping[str, Any], console: Console) -> None:
    """Overall rates, then categories, languages and system texts; then steps, notes and gate."""
    names: list[str] = summary["columns"]
    rows = [
        (rate, [_share(summary[name][rate], interval=True) for name in names]) for rate in OVERALL
    ]
    console.print(_table(f"{summary['cases']} cases, rates with 95% intervals", names, rows))
    for key, title in (
        ("by_category", "by category"),
        ("by_language", "by language"),
        ("by_system", "by system text"),
    ):
        groups: dict[str, Mapping[str, Any]] = summary[key]
        labels = sorted({label for by_label in groups.values() for label in by_label})
        if len(labels) < 2:
            continue
        lines = [
            (label or "(none)", [_calls(groups[name].get(label, {})) for name in names])
            for label in labels
        ]
        console.print(_table(f"{title}: calls made / wanted, false calls", names, lines))
    for step in summary["steps"]:
        if step.get("partings"):
            console.print(_partings(step))
    for line in describe(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe(summary: Mapping[str, Any]) -> Iterator[str]:
    """How near the decisions were, steps, notes and the gate, a sentence a line."""
    for name, nearness in summary["opener_logprob"].items():
        if nearness["calling"] is not None and nearness["quiet"] is not None:
            yield (
                f"{name}: the opening token has a log-probability of {nearness['calling']:.2f}"
                f" where a call is wanted, {nearness['quiet']:.2f} where none is (medians)"
            )
    for step in summary["steps"]:
        yield step["says"]
    for name, failed in summary["harness_errors"].items():
        if failed:
            yield f"{name}: {failed} prompts were not answered (harness errors, in no rate)"
    for note in (*summary["notes"], *summary["broken_rows"]):
        yield f"note: {note}"
    for name, verdict in summary["gate"].items():
        word = "at most" if "at_most" in verdict else "at least"
        limit = verdict.get("at_most", verdict.get("at_least"))
        found = "no cases" if verdict["value"] is None else f"{verdict['value']:.1%}"
        mark = "ok" if verdict["ok"] else "SHORT"
        yield f"{mark:5} {summary['judged']} {name}: {found}, wanted {word} {limit:.0%}"


def _table(title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, cells in rows:
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def _partings(step: Mapping[str, Any]) -> Table:
    """Where the ids of a step part, the widest margins first; those without one come last."""

    def width(parting: Mapping[str, Any]) -> float:
        return -1.0 if parting["margin"] is None else float(parting["margin"])

    rows = sorted(step["partings"], key=width, reverse=True)
    title = f"where {step['left']} and {step['right']} part: token, and its margin over the other's"
    if len(rows) > PARTINGS:
        title += f" (the widest {PARTINGS} of {len(rows)})"
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in ("case", "category", "at"):
        table.add_column(name, justify="right" if name == "at" else "left")
    for name in (step["left"], step["right"], "verdict"):
        table.add_column(name)
    for parting in rows[:PARTINGS]:
        cells = (
            *(parting["case_id"], parting["category"], str(parting["place"])),
            *(_side(parting[side]) for side in ("left", "right")),
            "same" if parting["same_verdict"] else "changed",
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _side(side: Mapping[str, Any]) -> str:
    if side["token_id"] is None:
        return "(ended)"
    margin = "?" if side["margin"] is None else f"{side['margin']:+.2f}"
    return f"{side['token']!r} {margin}"


def _share(rate: Mapping[str, Any], *, interval: bool = False) -> str:
    if rate["rate"] is None:
        return "no cases"
    text = f"{rate['k']}/{rate['n']} {rate['rate']:.0%}"
    return f"{text} ({rate['low']:.0%}-{rate['high']:.0%})" if interval else text


def _calls(rates: Mapping[str, Any]) -> str:
    """Emission where calls are wanted, false calls where none are."""
    said = []
    for name, word in (("emission", ""), ("false_call", " false")):
        rate = rates.get(name)
        if rate and rate["n"]:
            said.append(f"{rate['k']}/{rate['n']}{word}")
    return ", ".join(said) or "-"
