"""The steps between neighbouring columns of a probe, as the page shows them.

In: `steps` of the probe's summary. Out: a `Step` each: the probe's sentence, and the cases in which
the ids of the two columns part, the widest margins first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smollora.report.fields import Fields


@dataclass(frozen=True, slots=True)
class Side:
    """What one column wrote at the place where the ids part."""

    token: str | None
    """None: its answer had ended."""
    margin: float | None
    """How much likelier (nats) than the other column's token; None where nobody said."""


@dataclass(frozen=True, slots=True)
class Parting:
    """One case that two columns answered with different ids."""

    case_id: str
    category: str
    place: int | None
    """Index of the first differing token of the answer."""
    left: Side
    right: Side
    margin: float | None
    """The larger of the two; near 0 is rounding."""
    same_verdict: bool | None


@dataclass(frozen=True, slots=True)
class Step:
    """Two neighbouring columns."""

    left: str
    right: str
    says: str
    partings: tuple[Parting, ...] = ()


def read_steps(summary: Fields) -> tuple[Step, ...]:
    """The steps of a probe's summary; none where only one column was asked."""
    return tuple(
        Step(
            each.text("left"),
            each.text("right"),
            each.text("says"),
            _widest_first([_parting(one) for one in each.objects("partings")]),
        )
        for each in summary.objects("steps")
    )


def _widest_first(partings: Sequence[Parting]) -> tuple[Parting, ...]:
    return tuple(sorted(partings, key=lambda one: 1.0 if one.margin is None else -abs(one.margin)))


def _parting(read: Fields) -> Parting:
    return Parting(
        case_id=read.text("case_id"),
        category=read.text("category"),
        place=read.count("place"),
        left=_side(read.inner("left")),
        right=_side(read.inner("right")),
        margin=read.number("margin"),
        same_verdict=read.flag("same_verdict"),
    )


def _side(read: Fields) -> Side:
    ended = read.values.get("token_id") is None
    return Side(None if ended else read.text("token"), read.number("margin"))
