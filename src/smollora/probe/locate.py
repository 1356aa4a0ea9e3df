"""Where a fault came in: the same cases asked of base, adapter, merged and served model, compared
neighbour by neighbour.

In: each column's answers to the same cases. Out: `Step`s: how many answers have the same ids, which
outcomes changed, whether that is more than chance, and where the ids of a case part. Two columns
that hold the same model should answer alike; between base and adapter stands the training, which is
there to change answers: no partings are looked for there.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import comb
from typing import Any

from smollora.probe import Asked
from smollora.probe.parting import Parting, find_partings, say_margins

BETWEEN = {
    ("base", "adapter"): "the training",
    ("base", "merged"): "the training or the merge",
    ("base", "served"): "the training, the merge or the server",
    ("adapter", "merged"): "the merge",
    ("adapter", "served"): "the merge or the server",
    ("merged", "served"): "the server (its weights, its precision, where it stops)",
    ("model", "served"): "the server (its weights, its precision, where it stops)",
}
"""What lies between two columns."""
CHANCE = 0.01
"""A change of outcomes that chance alone would make less often than this is called a difference."""
OUTCOMES = ("emission", "right_tool", "stops_after_call", "false_call", "spelled_out")


@dataclass(frozen=True, slots=True)
class Step:
    """What two neighbouring columns answered to the same cases."""

    left: str
    right: str
    between: str
    compared: int
    """Cases that both answered."""
    same_ids: int
    verdicts_changed: int
    lost: Mapping[str, int] = field(default_factory=dict)
    """Outcome -> cases that had it at the left only."""
    gained: Mapping[str, int] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    """Outcome -> how often chance alone would change it so unevenly (McNemar's exact test)."""
    partings: tuple[Parting, ...] = ()
    """Cases with different ids; none where the training lies between the columns."""

    @property
    def differs(self) -> tuple[str, ...]:
        """Outcomes that changed by more than chance."""
        return tuple(name for name, share in self.chance.items() if share < CHANCE)

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        partings = [{**asdict(each), "margin": each.margin} for each in self.partings]
        said = {"differs": list(self.differs), "says": say(self)}
        return {**asdict(self), "partings": partings, **said}


def outcome(item: Asked, name: str) -> bool | None:
    """Whether an answer has an outcome; None where the case does not ask for it."""
    flags = item.score.flags
    if name == "false_call":
        return None if item.case.expected else bool(flags.get("emitted"))
    if not item.case.expected:
        return None
    if name == "stops_after_call":
        return bool(flags.get(name)) if flags.get("emitted") else None
    return bool(flags.get("emitted" if name == "emission" else name))


def mcnemar(lost: int, gained: int) -> float:
    """The two-sided exact test of paired outcomes: 1 where nothing changed.

    Source: Q. McNemar, Psychometrika 12 (1947); exact form: a binomial with one half.
    """
    changed = lost + gained
    if not changed:
        return 1.0
    tail = sum(comb(changed, k) for k in range(min(lost, gained) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def compare(left: str, right: str, before: Sequence[Asked], after: Sequence[Asked]) -> Step:
    """The step from one column to the next; cases are matched by their place."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if not a.failed and not b.failed]
    lost: dict[str, int] = {}
    gained: dict[str, int] = {}
    for name in OUTCOMES:
        both = [(outcome(a, name), outcome(b, name)) for a, b in pairs]
        lost[name] = sum(x is True and y is False for x, y in both)
        gained[name] = sum(x is False and y is True for x, y in both)
    return Step(
        left,
        right,
        BETWEEN.get((left, right), f"what lies between {left} and {right}"),
        len(pairs),
        sum(a.answer.token_ids == b.answer.token_ids for a, b in pairs),
        sum(a.score.verdict != b.score.verdict for a, b in pairs),
        lost,
        gained,
        {name: round(mcnemar(lost[name], gained[name]), 5) for name in OUTCOMES},
        () if left == "base" else find_partings(before, after),
    )


def locate(columns: Mapping[str, Sequence[Asked]]) -> list[Step]:
    """The steps between neighbouring columns, in the order in which they stand."""
    names = list(columns)
    return [compare(left, right, columns[left], columns[right]) for left, right in pairwise(names)]


def say(step: Step) -> str:
    """The step in one sentence."""
    if not step.compared:
        return f"{step.left} and {step.right}: no case was answered by both"
    same = f"{step.same_ids} of {step.compared} answers have the same ids"
    if not step.differs:
        if step.same_ids == step.compared:
            return f"{step.left} and {step.right} agree: all {step.compared} answers are the same"
        verdicts = (
            "1 verdict" if step.verdicts_changed == 1 else f"{step.verdicts_changed} verdicts"
        )
        return (
            f"{step.left} and {step.right} agree: {same}, {verdicts} changed, no more than"
            f" chance{say_margins(step.partings)}"
        )
    changes = ", ".join(
        f"{name} in {step.gained[name]} cases more and {step.lost[name]} less"
        for name in step.differs
    )
    return (
        f"{step.right} differs from {step.left}: {step.between} ({changes}; {same})"
        f"{say_margins(step.partings)}"
    )
