"""Answers grouped by the case that they answer: what a reader compares.

`cases` groups the models of one run, `group` anything that answered the same cases; both put what
failed first and let the categories take turns, so that a page which holds only some of them still
shows every category.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from smollora.report.contents import MODELS, Record, ReportData


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and everyone who gave these very tokens and got this verdict."""

    record: Record
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A question with its answers."""

    question: Record
    answers: tuple[Answer, ...]
    is_failure: bool
    """What is judged was wrong."""


def cases(data: ReportData) -> list[Case]:
    """The answers by case: those that failed after training (before, if that is all) come first."""
    judge = (data.probe.after or data.probe.before) if data.probe else None
    if judge is None:
        judge = "merged" if any(record.model == "merged" for record in data.records) else None
    by_case: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    for record in data.records:
        by_case.setdefault((record.source, record.case_id), []).append((record.model, record))
    built = [group(_in_order(asked), judge) for asked in by_case.values()]
    return failures_first(built, lambda case: case.is_failure)


def group(asked: Sequence[tuple[str, Record]], judge: str | None) -> Case:
    """A case of answers under their names; equal answers become one."""
    same: dict[tuple[object, ...], list[tuple[str, Record]]] = {}
    for name, record in asked:
        key = (record.token_ids, record.text, record.finish, record.verdict, record.detail)
        same.setdefault(key, []).append((name, record))
    answers = tuple(
        Answer(alike[0][1], tuple(dict.fromkeys(name for name, _ in alike)))
        for alike in same.values()
    )
    judged = next((record for name, record in asked if name == judge), asked[-1][1])
    return Case(judged, answers, not judged.is_right)


def failures_first(built: Iterable[Case], is_first: Callable[[Case], bool]) -> list[Case]:
    """Those that come first, then the others, in each part one of every category in turn."""
    found = list(built)
    first = [case for case in found if is_first(case)]
    return [*_taking_turns(first), *_taking_turns([case for case in found if not is_first(case)])]


def _in_order(asked: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    order: Mapping[str, int] = {model: place for place, model in enumerate(MODELS)}
    return sorted(asked, key=lambda pair: order.get(pair[0], len(order)))


def _taking_turns(built: Sequence[Case]) -> list[Case]:
    by_category: dict[str, list[Case]] = {}
    for case in built:
        by_category.setdefault(case.question.category, []).append(case)
    turns = zip_longest(*by_category.values())
    return [case for case in chain.from_iterable(turns) if case is not None]
