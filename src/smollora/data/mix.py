"""Which prepared rows are trained: shares of tool and general rows, planned before they are
applied.

In: prepared rows, the recipe's mix section. Out: indices of training and validation rows, and what
the shares came to, by rows and by labelled tokens: a 70/30 mix of rows is seldom a 70/30 mix of
what the loss counts. The scarcer group is used whole, the other is cut to fit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from smollora.config import MixSection
from smollora.data.prepare import PreparedRow
from smollora.errors import DataError


@dataclass(frozen=True, slots=True)
class MixPlan:
    """Indices into the prepared rows."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def plan_mix(
    rows: Sequence[PreparedRow], section: MixSection, *, validation_share: float
) -> MixPlan:
    """Choose rows; deterministic for a seed.

    Raises:
        DataError: a group that the shares need is empty, or no call rows are left.
    """
    dice = random.Random(section.seed)
    groups = {
        name: [index for index, row in enumerate(rows) if row.group == name]
        for name in ("tool", "general")
    }
    for group in groups.values():
        dice.shuffle(group)
    wanted = {"tool": section.tool_share, "general": 1 - section.tool_share}
    weight = {
        name: [_weight(rows[index], section.by) for index in group]
        for name, group in groups.items()
    }
    for name, share in wanted.items():
        if share > 0 and not groups[name]:
            raise DataError(
                f"the mix wants {share:.0%} {name} rows and there are none",
                "add a source of that kind, or change mix.tool_share",
            )
    whole = min(sum(weight[name]) / share for name, share in wanted.items() if share > 0)
    chosen: list[int] = []
    for name, share in wanted.items():
        chosen.extend(_take(groups[name], weight[name], whole * share))
    dice.shuffle(chosen)
    if section.rows is not None:
        chosen = chosen[: section.rows]
    held = round(len(chosen) * validation_share)
    train, validation = chosen[held:], chosen[:held]
    if not any(rows[index].kind == "call" for index in train):
        raise DataError(
            "no call rows are left to train on", "check the reject reasons in prepare/summary.json"
        )
    return MixPlan(tuple(train), tuple(validation))


def _weight(row: PreparedRow, by: str) -> int:
    return sum(row.rendered.trained) if by == "labelled_tokens" else 1


def _take(indices: Sequence[int], weights: Sequence[int], amount: float) -> list[int]:
    taken: list[int] = []
    total = 0.0
    for index, weight in zip(indices, weights, strict=True):
        if total + weight > amount + 1e-6:
            break
        taken.append(index)
        total += weight
    return taken


def shares(rows: Sequence[PreparedRow]) -> dict[str, dict[str, float]]:
    """Rows and labelled tokens of each source and of each kind ("kind:call", ...), with their
    shares.
    """
    labelled = [sum(row.rendered.trained) for row in rows]
    names = sorted({row.source for row in rows}) + [
        f"kind:{k}" for k in ("call", "no_call", "no_tools")
    ]
    table = {}
    for name in names:
        mine = [
            count
            for row, count in zip(rows, labelled, strict=True)
            if name in (row.source, f"kind:{row.kind}")
        ]
        table[name] = {
            "rows": len(mine),
            "labelled_tokens": sum(mine),
            "share_rows": round(len(mine) / len(rows), 4) if rows else 0.0,
            "share_labelled_tokens": round(sum(mine) / sum(labelled), 4) if sum(labelled) else 0.0,
        }
    return table
