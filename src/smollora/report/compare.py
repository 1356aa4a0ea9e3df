"""Runs side by side: several `ReportData` in, one `Comparison` out, which `compare_page` shows.

Pure: nothing is read or measured here. The surprise: two runs may have asked different questions
under one case id (a changed case file, a changed limit); such cases are counted and not compared,
for their verdicts say nothing about each other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.report import show
from smollora.report.cases import Case, failures_first, group
from smollora.report.contents import (
    Gate,
    MixSource,
    Probe,
    Rates,
    Record,
    ReportData,
)
from smollora.report.tables import Table, in_order
from smollora.types import PARTS, Check

JUDGED = ("merged", "adapter", "served")
"""Whose verdict stands for a run; the first that was asked."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss at both ends of the training; None where it was not recorded."""

    first: float | None
    last: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """The first run against another one, on the cases that both answered."""

    other: str
    both_right: int
    fixed: int
    """Wrong in the first, right in the other."""
    broken: int
    """Right in the first, wrong in the other."""
    both_wrong: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the runs share and where they differ; every tuple of cells is in the runs' order."""

    labels: tuple[str, ...]
    runs: tuple[ReportData, ...]
    gates: tuple[tuple[str, tuple[Gate | None, ...]], ...]
    before: Table
    after: Table
    categories: Mapping[str, Table]
    suites: Mapping[str, Table]
    mix: tuple[tuple[str, tuple[MixSource | None, ...]], ...]
    losses: tuple[tuple[str, tuple[Loss, ...]], ...]
    checks: tuple[tuple[str, tuple[tuple[Check | None, Check | None], ...]], ...]
    """Per check and run: on the template as it came, on the repaired one."""
    recipe: tuple[tuple[str, tuple[str | None, ...]], ...]
    """Keys whose values differ; None where a run's recipe has no such key."""
    cases: tuple[Case, ...]
    """Answered by at least two runs, with different verdicts; those worse than the first run's
    answer come first."""
    pairs: tuple[Pair, ...]
    shared: int
    """Cases that at least two runs answered."""
    not_shared: int
    other_question: int
    """Case ids under which the runs asked different things."""


def compare(labels: Sequence[str], runs: Sequence[ReportData]) -> Comparison:
    """Put runs beside each other; `labels` names them."""
    probes = [run.probe for run in runs]
    asked, not_shared, other_question = _shared_cases(runs)
    differing = [case for case in asked if len({r.verdict for r in case.values()}) > 1]
    built = [group([(labels[place], r) for place, r in c.items()], None) for c in differing]
    worse = {
        id(made)
        for made, case in zip(built, differing, strict=True)
        if case.get(0) is not None and case[0].is_right
    }
    return Comparison(
        labels=tuple(labels),
        runs=tuple(runs),
        gates=_gates(probes),
        before=_rates(labels, [_of_model(probe, "before") for probe in probes]),
        after=_rates(labels, [_of_model(probe, "after") for probe in probes]),
        categories=_categories(labels, probes),
        suites=_suites(labels, runs),
        mix=_mix(runs),
        losses=_losses(runs),
        checks=_checks(runs),
        recipe=recipe_differences([run.recipe for run in runs]),
        cases=tuple(failures_first(built, lambda case: id(case) in worse)),
        pairs=_pairs(labels, asked),
        shared=len(asked),
        not_shared=not_shared,
        other_question=other_question,
    )


def labels_of(folders: Sequence[Path]) -> list[str]:
    """A letter and the last part of the path that tells the runs apart: "A starter"."""
    parts = [folder.resolve().parts for folder in folders]
    names = [each[-1] for each in parts]
    for place in range(1, min(map(len, parts)) + 1):
        at_place = [each[-place] for each in parts]
        if len(set(at_place)) == len(parts):
            names = at_place
            break
    return [f"{chr(ord('A') + place)} {name}" for place, name in enumerate(names)]


def _of_model(probe: Probe | None, when: str) -> Rates:
    model = None if probe is None else probe.before if when == "before" else probe.after
    return probe.models[model] if probe and model else {}


def _rates(labels: Sequence[str], by_run: Sequence[Rates]) -> Table:
    names = in_order(name for rates in by_run for name in rates)
    return Table(
        tuple(labels), tuple((name, tuple(rates.get(name) for rates in by_run)) for name in names)
    )


def _gates(probes: Sequence[Probe | None]) -> tuple[tuple[str, tuple[Gate | None, ...]], ...]:
    found = [{gate.rate: gate for gate in probe.gates} if probe else {} for probe in probes]
    names = dict.fromkeys(name for gates in found for name in gates)
    return tuple((name, tuple(gates.get(name) for gates in found)) for name in names)


def _categories(labels: Sequence[str], probes: Sequence[Probe | None]) -> dict[str, Table]:
    """For each rate, the categories of the models after training."""
    found = [
        probe.by_category.get(probe.after, {}) if probe and probe.after else {} for probe in probes
    ]
    categories = list(dict.fromkeys(name for by_name in found for name in by_name))
    rates = in_order(rate for by_name in found for each in by_name.values() for rate in each)
    tables = {}
    for rate in rates:
        cells = {
            name: tuple(by_name.get(name, {}).get(rate) for by_name in found) for name in categories
        }
        with_cases = {n: c for n, c in cells.items() if any(x and x.has_cases for x in c)}
        without = tuple(name for name in categories if name not in with_cases)
        tables[rate] = Table(tuple(labels), tuple(with_cases.items()), without)
    return tables


def _suites(labels: Sequence[str], runs: Sequence[ReportData]) -> dict[str, Table]:
    """For each suite, its categories and rates of the models after training."""
    names = dict.fromkeys(name for run in runs for name in run.suites or {})
    tables = {}
    for name in names:
        found = [
            {
                category: next((by_model[m] for m in JUDGED if m in by_model), {})
                for category, by_model in (run.suites or {}).get(name, {}).items()
            }
            for run in runs
        ]
        rows = []
        for category in dict.fromkeys(c for by_name in found for c in by_name):
            rates = in_order(r for by_name in found for r in by_name.get(category, {}))
            for rate in rates:
                cells = tuple(by_name.get(category, {}).get(rate) for by_name in found)
                if any(cell and cell.has_cases for cell in cells):
                    rows.append((f"{category}: {show.rate_name(rate).lower()}", cells))
        tables[name] = Table(tuple(labels), tuple(rows))
    return tables


def _mix(runs: Sequence[ReportData]) -> tuple[tuple[str, tuple[MixSource | None, ...]], ...]:
    found = [{source.name: source for source in run.mix or ()} for run in runs]
    names = dict.fromkeys(name for sources in found for name in sources)
    return tuple((name, tuple(sources.get(name) for sources in found)) for name in names)


def _losses(runs: Sequence[ReportData]) -> tuple[tuple[str, tuple[Loss, ...]], ...]:
    """The loss as a whole, on held-out rows, and on each part of the answers."""
    ends = [_loss_ends(run) for run in runs]
    seen = {name for losses in ends for name in losses}
    known = ["all labelled tokens", "held-out rows", *PARTS]
    names = [n for n in known if n in seen] + sorted(seen - set(known))
    return tuple(
        (name, tuple(losses.get(name, Loss(None, None)) for losses in ends)) for name in names
    )


def _loss_ends(run: ReportData) -> dict[str, Loss]:
    found: dict[str, Loss] = {}
    points = sorted(run.curve, key=lambda point: point.step)
    if run.train:
        found["all labelled tokens"] = Loss(run.train.loss_first, run.train.loss_last)
        held = [p.validation_loss for p in points if p.validation_loss is not None]
        found["held-out rows"] = Loss(held[0] if held else None, run.train.validation_loss)
    at_end = run.train.loss_by_part if run.train else {}
    parts = dict.fromkeys([*(part for p in points for part in p.loss_by_part), *at_end])
    for part in parts:
        logged = [p.loss_by_part[part] for p in points if part in p.loss_by_part]
        last = at_end.get(part, logged[-1] if logged else None)
        found[part] = Loss(logged[0] if logged else None, last)
    return {name: loss for name, loss in found.items() if loss != Loss(None, None)}


def _checks(
    runs: Sequence[ReportData],
) -> tuple[tuple[str, tuple[tuple[Check | None, Check | None], ...]], ...]:
    stock = [{c.name: c for c in run.inspect.checks} if run.inspect else {} for run in runs]
    mended = [
        {c.name: c for c in run.inspect.repaired_checks} if run.inspect else {} for run in runs
    ]
    names = dict.fromkeys(name for checks in (*stock, *mended) for name in checks)
    return tuple(
        (name, tuple((a.get(name), b.get(name)) for a, b in zip(stock, mended, strict=True)))
        for name in names
    )


def recipe_differences(
    texts: Sequence[str | None],
) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """Keys (dotted) whose values are not the same in every recipe; unreadable ones have none."""
    import yaml

    read: list[dict[str, str]] = []
    for text in texts:
        try:
            value = yaml.safe_load(text) if text is not None else None
            read.append(dict(_flat(value)) if isinstance(value, dict) else {})
        except (yaml.YAMLError, ValueError, RecursionError):
            read.append({})
    names = dict.fromkeys(name for values in read for name in values)
    rows = ((name, tuple(values.get(name) for values in read)) for name in names)
    return tuple((name, cells) for name, cells in rows if len(set(cells)) > 1)


def _flat(value: Mapping[Any, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys with their values as text; entries of a list go by their `name`."""
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}.")
        elif isinstance(inner, list) and inner and all(isinstance(e, Mapping) for e in inner):
            named = {str(entry.get("name", place)): entry for place, entry in enumerate(inner)}
            yield from _flat(named, f"{name}.")
        elif isinstance(inner, str):
            yield name, inner
        else:
            yield name, json.dumps(inner, ensure_ascii=False, default=str)


def _shared_cases(
    runs: Sequence[ReportData],
) -> tuple[list[dict[int, Record]], int, int]:
    """(cases by the run's place, cases of one run only, ids that mean different questions)."""
    by_case: dict[tuple[str, str], dict[int, Record]] = {}
    for place, run in enumerate(runs):
        there = {record.model for record in run.records}
        judged = next((model for model in JUDGED if model in there), None)
        for record in run.records:
            if record.model == judged:
                by_case.setdefault((record.source, record.case_id), {})[place] = record
    shared, alone, other = [], 0, 0
    for asked in by_case.values():
        if len(asked) < 2:
            alone += 1
        elif len({_question(record) for record in asked.values()}) > 1:
            other += 1
        else:
            shared.append(asked)
    return shared, alone, other


def _question(record: Record) -> str:
    return json.dumps([record.request, record.tools, record.expected], sort_keys=True, default=str)


def _pairs(labels: Sequence[str], asked: Sequence[Mapping[int, Record]]) -> tuple[Pair, ...]:
    found = []
    for place in range(1, len(labels)):
        counts = Counter(
            (case[0].is_right, case[place].is_right)
            for case in asked
            if 0 in case and place in case
        )
        found.append(
            Pair(
                labels[place],
                both_right=counts[True, True],
                fixed=counts[False, True],
                broken=counts[True, False],
                both_wrong=counts[False, False],
            )
        )
    return tuple(found)
