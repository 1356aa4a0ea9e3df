"""Where two columns' answers to one case part, and how near that decision was.

In: two answers to the same prompt. Out: a `Parting`: the first place where the ids differ, the
token of each column, and each column's margin there. The surprise: greedy answers part for good at
one near-tie that rounding turned; so what tells rounding from a fault is not how many ids differ
but the margin at the first. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from smollora.probe import Asked

NEAR = 0.5
"""Nats. Two tokens nearer than this in both columns are a near-tie that rounding may turn: bfloat16
has steps of 0.125 at a logit of 20, and sums in another order move a logit by a few of them: by
0.26 at most between the starter's adapter, merged and served model (docs/probe.md).
"""


@dataclass(frozen=True, slots=True)
class Side:
    """What one column wrote at the place."""

    token_id: int | None
    """None: its answer had ended, for it was as long as it may be."""
    token: str
    margin: float | None = None
    """Log-probability of its own token less that of the other column's, after the same ids (nats);
    None where it cannot be had. A little below 0 where a pass of its own rounds otherwise.
    """


@dataclass(frozen=True, slots=True)
class Parting:
    """One case that two columns answer with different ids."""

    number: int
    """Which of the cases that were asked, from 0: ids of a person's cases may come twice."""
    case_id: str
    category: str
    place: int
    """Index of the first differing token of the answer."""
    left: Side
    right: Side
    same_verdict: bool

    @property
    def margin(self) -> float | None:
        """The larger margin of the two, whichever sign it has: near 0 in both columns is rounding;
        None where neither is known.
        """
        known = [abs(side.margin) for side in (self.left, self.right) if side.margin is not None]
        return max(known, default=None)

    @property
    def is_near(self) -> bool:
        """Rounding may have decided it."""
        return self.margin is not None and self.margin < NEAR


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
    """Index of the first differing token; the length of the shorter where it begins the other."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def find_partings(before: Sequence[Asked], after: Sequence[Asked]) -> tuple[Parting, ...]:
    """The cases that both answered, with different ids; margins are still to be measured."""
    found = []
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.failed or b.failed or a.answer.token_ids == b.answer.token_ids:
            continue
        place = first_difference(a.answer.token_ids, b.answer.token_ids)
        same = a.score.verdict == b.score.verdict
        sides = _side(a, place), _side(b, place)
        found.append(Parting(number, a.case.id, a.case.category, place, *sides, same))
    return tuple(found)


def _side(item: Asked, place: int) -> Side:
    if place >= len(item.answer.token_ids):
        return Side(None, "")
    return Side(item.answer.token_ids[place], item.record.get("tokens", {place: ""})[place])


def with_margins(parting: Parting, left: float | None, right: float | None) -> Parting:
    """The same with both columns' margins."""
    return replace(
        parting,
        left=replace(parting.left, margin=left),
        right=replace(parting.right, margin=right),
    )


def say_margins(partings: Sequence[Parting]) -> str:
    """How near the decisions were, for the end of a sentence; empty where nothing was measured."""
    known = sorted(each.margin for each in partings if each.margin is not None)
    if not known:
        return ""
    wide = [margin for margin in known if margin >= NEAR]
    middle, most = f"{median(known):.2f}", f"{known[-1]:.2f}"
    if wide:
        said = (
            f"; where ids part, the margin between the two tokens is {wide[0]:.2f} to {most} in"
            f" {len(wide)} of {len(known)} cases (median of all {middle}): more than rounding"
        )
    else:
        said = (
            f"; where ids part, the margin between the two tokens is at most {most}"
            f" (median {middle}): rounding"
        )
    missing = len(partings) - len(known)
    return f"{said} ({missing} without a margin)" if missing else said
