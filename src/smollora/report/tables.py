"""Rates and verdicts as tables: a row for each name, a cell for each model or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollora.report import show
from smollora.report.contents import (
    MODELS,
    RATES,
    RIGHT,
    Probe,
    Rate,
    Rates,
    Record,
    ReportData,
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rates side by side: a row for each name, a cell for each model or run."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Rate | None, ...]], ...]
    without_cases: tuple[str, ...] = ()
    """Names in which nobody had a case; they have no row."""


def rate_tables(data: ReportData) -> dict[str, Any]:
    """All models' rates: overall, by category, in each suite of an evaluation."""
    probe = data.probe
    models = tuple(model for model in MODELS if probe and model in probe.models)
    return {
        "overall": _overall(probe.models, models) if probe else None,
        "categories": _by_category(probe, models) if probe else {},
        "suites": {name: _suite(suite) for name, suite in (data.suites or {}).items()},
    }


def _overall(by_model: Mapping[str, Rates], models: tuple[str, ...]) -> Table:
    names = in_order(rate for model in models for rate in by_model[model])
    rows = [(name, tuple(by_model[model].get(name) for model in models)) for name in names]
    return Table(models, tuple(rows))


def _by_category(probe: Probe, models: tuple[str, ...]) -> dict[str, Table]:
    """A table of categories for each rate."""
    read = {model: probe.by_category.get(model, {}) for model in models}
    categories = list(dict.fromkeys(name for by_name in read.values() for name in by_name))
    rates = [rates for by_name in read.values() for rates in by_name.values()]
    tables = {}
    for rate in in_order(name for each in rates for name in each):
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
        names = in_order(rate for rates in by_model.values() for rate in rates)
        for rate in names:
            name = category if len(names) == 1 else f"{category}: {show.rate_name(rate).lower()}"
            rows.append((name, tuple(by_model.get(model, {}).get(rate) for model in models)))
    return Table(models, tuple(rows))


def in_order(rates: Iterable[str]) -> list[str]:
    """The known rates in their order, then the others by name."""
    asked = set(rates)
    return [rate for rate in RATES if rate in asked] + sorted(asked - set(RATES))


def verdict_table(records: Sequence[Record]) -> Table | None:
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
