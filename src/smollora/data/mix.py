"""Which prepared rows are trained: shares by group, by source and by kind, planned before they are
applied.

In: the table of the prepared rows (columns alone: no token is read), the recipe's mix section. Out:
indices of training and validation rows, and what the shares came to, by rows and by labelled
tokens: a 70/30 mix of rows is seldom a 70/30 mix of what the loss counts. The scarcest stratum is
used whole, the others are cut to fit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from smollora.config import MixSection
from smollora.data.shards import PreparedRow, RowTable, tabulate
from smollora.errors import DataError

KINDS = ("call", "no_call", "no_tools")
ROUNDS = 1000
"""Rounds of fitting shares of sources and of kinds to each other; a dozen usually do."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """One line of the plan: rows that share what the shares are about."""

    name: str
    rows: int
    labelled_tokens: int
    wanted: float
    """Share of the mix, counted as `mix.by` says."""
    rows_taken: int
    labelled_taken: int


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Indices into the prepared rows."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    strata: tuple[Stratum, ...] = ()
    """What was there and what was taken, training and validation rows together."""


def plan_mix(
    rows: Sequence[PreparedRow] | RowTable, section: MixSection, *, validation_share: float
) -> MixPlan:
    """Choose rows; deterministic for a seed.

    Raises:
        DataError: a stratum that the shares need is empty, the shares of sources and kinds cannot
            both hold, or no call rows are left.
    """
    table = rows if isinstance(rows, RowTable) else tabulate(rows)
    weights = table.labelled if section.by == "labelled_tokens" else [1] * len(table)
    strata, wanted = _strata(table, section, weights)
    dice = random.Random(section.seed)
    for members in strata.values():
        dice.shuffle(members)
    for name, share in wanted.items():
        if share > 0 and not strata[name]:
            raise DataError(
                f"the mix wants {share:.0%} {name} rows and there are none",
                "add a source of that kind, or change mix.tool_share, mix.sources or mix.kinds",
            )
    whole = min(
        sum(weights[index] for index in strata[name]) / share
        for name, share in wanted.items()
        if share > 0
    )
    chosen: list[int] = []
    for name, share in wanted.items():
        chosen.extend(_take(strata[name], weights, whole * share))
    dice.shuffle(chosen)
    if section.rows is not None:
        chosen = chosen[: section.rows]
    held = round(len(chosen) * validation_share)
    train, validation = chosen[held:], chosen[:held]
    if not any(table.kind[index] == "call" for index in train):
        raise DataError(
            "no call rows are left to train on", "check the reject reasons in prepare/summary.json"
        )
    lines = tuple(_lines(table, strata, wanted, set(chosen)))
    return MixPlan(tuple(train), tuple(validation), lines)


def _strata(
    table: RowTable, section: MixSection, weights: Sequence[int]
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The rows of each stratum, and its share of the mix."""
    if section.sources is None and section.kinds is None:
        wanted = {"tool": section.tool_share, "general": 1 - section.tool_share}
        return _grouped(table.group, tuple(wanted)), wanted
    if section.sources is not None:
        unknown = sorted(set(section.sources) - set(table.source))
        if unknown:
            known = ", ".join(sorted(set(table.source)))
            raise DataError(
                f"mix.sources names {', '.join(unknown)}, of which no row is left",
                f"sources with rows: {known}",
            )
    if section.kinds is None and section.sources is not None:
        return _grouped(table.source, tuple(section.sources)), dict(section.sources)
    if section.sources is None and section.kinds is not None:
        kinds: dict[str, float] = {str(kind): share for kind, share in section.kinds.items()}
        return _grouped(table.kind, tuple(kinds)), kinds
    assert section.sources is not None and section.kinds is not None
    return _crossed(
        table, section.sources, {str(k): share for k, share in section.kinds.items()}, weights
    )


def _grouped(column: Sequence[str], names: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {name: [] for name in names}
    for index, name in enumerate(column):
        if name in groups:
            groups[name].append(index)
    return groups


def _crossed(
    table: RowTable,
    sources: Mapping[str, float],
    kinds: Mapping[str, float],
    weights: Sequence[int],
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Strata of source and kind whose shares add up to those of each source and of each kind.

    Iterative proportional fitting (Deming and Stephan, 1940): of all mixes with these sums it is
    the one nearest to what is there.

    Raises:
        DataError: no mix has these shares.
    """
    cells: dict[str, list[int]] = {}
    places: dict[str, tuple[str, str]] = {}
    for index, place in enumerate(zip(table.source, table.kind, strict=True)):
        if sources.get(place[0], 0) > 0 and kinds.get(place[1], 0) > 0:
            name = " ".join(place)
            cells.setdefault(name, []).append(index)
            places[name] = place
    fitted = {name: float(sum(weights[i] for i in members)) for name, members in cells.items()}
    fitted = {name: weight for name, weight in fitted.items() if weight}
    off = 1.0
    for _ in range(ROUNDS):
        off = 0.0
        for axis, margins in enumerate((sources, kinds)):
            sums: dict[str, float] = {}
            for name, weight in fitted.items():
                sums[places[name][axis]] = sums.get(places[name][axis], 0.0) + weight
            for margin, share in margins.items():
                off = max(off, abs(sums.get(margin, 0.0) - share))
            for name in fitted:
                margin = places[name][axis]
                fitted[name] *= margins[margin] / sums[margin] if sums[margin] else 0.0
        if off < 1e-6:
            break
    if off >= 1e-6:
        raise DataError(
            "no mix has these shares of sources and of kinds at once",
            "set mix.sources or mix.kinds alone, or shares that the rows of each source allow:"
            f" {_what_is_there(table)}",
        )
    return {name: cells[name] for name in fitted}, fitted


def _what_is_there(table: RowTable) -> str:
    counts: dict[str, int] = {}
    for place in zip(table.source, table.kind, strict=True):
        counts[" ".join(place)] = counts.get(" ".join(place), 0) + 1
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _take(indices: Sequence[int], weights: Sequence[int], amount: float) -> list[int]:
    taken: list[int] = []
    total = 0.0
    for index in indices:
        if total + weights[index] > amount + 1e-6:
            break
        taken.append(index)
        total += weights[index]
    return taken


def _lines(
    table: RowTable,
    strata: Mapping[str, Sequence[int]],
    wanted: Mapping[str, float],
    chosen: set[int],
) -> Iterator[Stratum]:
    for name, members in strata.items():
        taken = [index for index in members if index in chosen]
        yield Stratum(
            name,
            len(members),
            sum(table.labelled[index] for index in members),
            wanted[name],
            len(taken),
            sum(table.labelled[index] for index in taken),
        )


def show_plan(plan: MixPlan, section: MixSection) -> list[str]:
    """The plan as lines for a terminal."""
    rows = sum(line.rows_taken for line in plan.strata)
    labelled = sum(line.labelled_taken for line in plan.strata)
    width = max((len(line.name) for line in plan.strata), default=0)
    return [
        f"mix of {rows:,} rows and {labelled:,} labelled tokens, shares by {section.by},"
        f" seed {section.seed}; {len(plan.validation):,} rows held back",
        *(
            f"  {line.name:{width}s}  wanted {line.wanted:6.1%}"
            f"  rows {line.rows_taken:,} of {line.rows:,} ({_share(line.rows_taken, rows)})"
            f"  labelled tokens {line.labelled_taken:,} of {line.labelled_tokens:,}"
            f" ({_share(line.labelled_taken, labelled)})"
            for line in plan.strata
        ),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "no rows"


def shares(
    rows: Sequence[PreparedRow] | RowTable, chosen: Sequence[int] | None = None
) -> dict[str, dict[str, float]]:
    """Rows and labelled tokens of each source and of each kind ("kind:call", ...), with their
    shares; of the `chosen` rows, or of all.
    """
    table = rows if isinstance(rows, RowTable) else tabulate(rows)
    counts: dict[str, list[int]] = {}
    found: dict[str, list[int]] = {f"kind:{kind}": [0, 0] for kind in KINDS}
    total = [0, 0]
    for index in range(len(table)) if chosen is None else chosen:
        source = counts.setdefault(table.source[index], [0, 0])
        for line in (source, found.setdefault(f"kind:{table.kind[index]}", [0, 0]), total):
            line[0] += 1
            line[1] += table.labelled[index]
    return {
        name: {
            "rows": mine,
            "labelled_tokens": labelled,
            "share_rows": round(mine / total[0], 4) if total[0] else 0.0,
            "share_labelled_tokens": round(labelled / total[1], 4) if total[1] else 0.0,
        }
        for name, (mine, labelled) in [*sorted(counts.items()), *found.items()]
    }
