"""Which conversations are asked.

In: cases. Out: as many as wanted, half of which want a call where there are enough, spread over the
categories. Cases with nested arguments count as a category of their own: they are few, and are what
servers break first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from smollora.errors import DataError
from smollora.types import EvalCase, Role

ROLES = get_args(Role)


def is_nested(case: EvalCase) -> bool:
    """True if a right call has an object or a list among its arguments."""
    values = (value for call in case.expected for value in call.arguments.values())
    return any(isinstance(value, (Mapping, list, tuple)) for value in values)


def choose_cases(cases: Iterable[EvalCase], limit: int | None) -> list[EvalCase]:
    """At most `limit` cases; None: all of them."""
    given = list(cases)
    if limit is None or limit >= len(given):
        return given
    wanting = [case for case in given if case.expected]
    quiet = [case for case in given if not case.expected]
    half = min(len(wanting), max(limit - limit // 2, limit - len(quiet)))
    return [*_spread(wanting, half), *_spread(quiet, limit - half)]


def _spread(cases: Sequence[EvalCase], count: int) -> list[EvalCase]:
    """`count` cases: categories in turn, and evenly over each of them."""
    groups: dict[str, list[EvalCase]] = {}
    for case in cases:
        groups.setdefault("nested" if is_nested(case) else case.category, []).append(case)
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < count:
        for name, group in groups.items():
            if shares[name] < len(group) and sum(shares.values()) < count:
                shares[name] += 1
    return [
        group[place * len(group) // shares[name]]
        for name, group in groups.items()
        for place in range(shares[name])
    ]


def require_askable(cases: Sequence[EvalCase], source: str) -> None:
    """Refuse cases of a file that cannot be asked.

    Raises:
        DataError: the first one, with its row.
    """
    for row, case in enumerate(cases, 1):
        problem = _problem(case)
        if problem:
            raise DataError(
                f"row {row} of {source} ({case.id}) is no conversation: {problem}",
                "messages have a role and a text, end with the user or a tool; expected calls"
                " have a name and an arguments object",
            )


def _problem(case: EvalCase) -> str:
    if not case.messages:
        return "it has no messages"
    for message in case.messages:
        if message.role not in ROLES:
            return f"there is no role {message.role!r}"
        if not isinstance(message.content, str):
            return f"the {message.role}'s content is no text"
    if case.messages[-1].role not in ("user", "tool"):
        return f"it ends with the {case.messages[-1].role}"
    wrong = [call for call in case.expected if not isinstance(call.arguments, Mapping)]
    return f"the arguments of {wrong[0].name} are no object" if wrong else ""
