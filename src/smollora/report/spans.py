"""Token ids as coloured spans: the training rows of the token view, and the models' answers.

Every token is one `<i title="id 49152">`; neighbours of one kind share a `<span>` with the classes,
which keeps sixty rows of six hundred tokens below a megabyte. What does not fit is counted by the
caller: `fitting` takes from the front until the budget of bytes is spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, zip_longest
from typing import Protocol, TypeVar

from markupsafe import Markup, escape

from smollora.report import show
from smollora.report.contents import MODELS, Inspect, Record, ReportData, TokenRow

MOST_TOKENS_AT_START, MOST_TOKENS_AT_END = 300, 1_200
"""A longer row is cut in its middle: what is trained stands at the end."""
REQUEST_CHARACTERS = 1_500
MARKUP_OF_ROW, MARKUP_OF_CASE, MARKUP_OF_ANSWER, MARKUP_OF_RUN = 400, 550, 550, 60
"""Bytes of the page around the tokens, about."""
OWNERS = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of one kind, one element of the page."""

    css: str
    says: str
    """Whose tokens these are and whether they are labelled; empty where there is nothing to say."""
    tokens: Markup


@dataclass(frozen=True, slots=True)
class Row:
    """A training row of the token view."""

    row: TokenRow
    runs: tuple[Run, ...]
    labelled: int
    """Labelled tokens."""
    size: int
    """Bytes on the page, about."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and every model that gave these very tokens and got this verdict."""

    record: Record
    models: tuple[str, ...]
    runs: tuple[Run, ...]
    opener_probability: float | None

    @property
    def name(self) -> str:
        """The model to name where there is room for one."""
        return "merged" if "merged" in self.models else self.models[0]


@dataclass(frozen=True, slots=True)
class Case:
    """A question with the models' answers."""

    question: Record
    answers: tuple[Answer, ...]
    is_failure: bool
    """The model after training (or before, where it is the only one) was wrong."""
    size: int
    """Bytes on the page, about."""


class Sized(Protocol):
    """Something with a size on the page."""

    @property
    def size(self) -> int: ...


T = TypeVar("T")
S = TypeVar("S", bound=Sized)


def token_row(row: TokenRow) -> Row:
    """A training row with its owners, labels and delimiters."""
    kinds = [_kind(row, *column) for column in zip(row.owner, row.trained, row.part, strict=True)]
    runs = _runs(row.token_ids, row.tokens, kinds)
    return Row(row, runs, sum(row.trained), MARKUP_OF_ROW + _size(runs))


def cases(data: ReportData) -> list[Case]:
    """The probe's answers by case: those failed after training first, categories taking turns."""
    judge = (data.probe.after or data.probe.before) if data.probe else None
    special = _special(data.inspect)
    by_case: dict[str, list[Record]] = {}
    for record in data.records:
        by_case.setdefault(record.case_id, []).append(record)
    built = [_case(records, judge, special) for records in by_case.values()]
    failed = [case for case in built if case.is_failure]
    passed = [case for case in built if not case.is_failure]
    return _taking_turns(failed) + _taking_turns(passed)


def fitting(items: Sequence[S], budget: float) -> list[S]:
    """The first items whose sizes sum up to at most `budget` bytes."""
    taken: list[S] = []
    for item in items:
        budget -= item.size
        if budget < 0:
            break
        taken.append(item)
    return taken


def _kind(row: TokenRow, owner: int, trained: bool, part: str | None) -> tuple[str, str]:
    """CSS classes of a token, and what they mean in words."""
    role, says = "template", "template"
    if 0 <= owner < len(row.roles):
        role = row.roles[owner]
        says = f"{role}, message {owner + 1}"
    elif owner != -1:
        says = f"owner {owner}, which is no message"
    css = f"run {role if role in OWNERS else 'template'}"
    if trained:
        css, says = f"{css} labelled", f"{says}, labelled as {part or 'text'}"
    else:
        says += ", not labelled"
    return (f"{css} delimiter" if part in ("open", "close") else css), says


def _special(inspect: Inspect | None) -> dict[int, tuple[str, str]]:
    """Ids that stand out in an answer."""
    if inspect is None:
        return {}
    marked = dict.fromkeys(inspect.stop_ids, ("run stop", "stop token"))
    for delimiter, says in ((inspect.open, "opens a call"), (inspect.close, "closes a call")):
        if delimiter and delimiter.id is not None and delimiter.single is not False:
            marked[delimiter.id] = ("run delimiter", says)
    return marked


def _runs(
    token_ids: Sequence[int], tokens: Sequence[str], kinds: Sequence[tuple[str, str]]
) -> tuple[Run, ...]:
    columns = list(zip(token_ids, tokens, kinds, strict=True))
    missing = len(columns) - MOST_TOKENS_AT_START - MOST_TOKENS_AT_END
    if missing <= 0:
        return _joined(columns)
    gap = Run("gap", "", Markup("{} tokens not shown").format(f"{missing:,}"))
    end = len(columns) - MOST_TOKENS_AT_END
    return (*_joined(columns[:MOST_TOKENS_AT_START]), gap, *_joined(columns[end:]))


def _joined(columns: Iterable[tuple[int, str, tuple[str, str]]]) -> tuple[Run, ...]:
    markup = Markup('<i title="id {}">{}</i>')
    runs = []
    for (css, says), group in groupby(columns, key=lambda column: column[2]):
        spans = (
            markup.format(token_id, show.visible(show.token_text(token)))
            for token_id, token, _ in group
        )
        runs.append(Run(css, says, Markup("").join(spans)))
    return tuple(runs)


def _case(
    records: Sequence[Record], judge: str | None, special: Mapping[int, tuple[str, str]]
) -> Case:
    order = {model: place for place, model in enumerate(MODELS)}
    ordered = sorted(records, key=lambda record: order.get(record.model, len(order)))
    same: dict[tuple[object, ...], list[Record]] = {}
    for record in ordered:
        key = (record.token_ids, record.text, record.finish, record.verdict, record.detail)
        same.setdefault(key, []).append(record)
    answers = tuple(_answer(group, special) for group in same.values())
    judged = next((record for record in ordered if record.model == judge), ordered[-1])
    said = show.clip(judged.request, REQUEST_CHARACTERS) + "".join(map(show.call, judged.expected))
    size = MARKUP_OF_CASE + len(escape(said).encode("utf-8", "replace"))
    size += sum(MARKUP_OF_ANSWER + _size(answer.runs) for answer in answers)
    return Case(judged, answers, not judged.is_right, size)


def _answer(records: Sequence[Record], special: Mapping[int, tuple[str, str]]) -> Answer:
    record = records[0]
    kinds = [special.get(token_id, ("run", "")) for token_id in record.token_ids]
    logprob = record.opener_logprob
    return Answer(
        record=record,
        models=tuple(each.model for each in records),
        runs=_runs(record.token_ids, record.tokens, kinds),
        opener_probability=None if logprob is None else math.exp(min(logprob, 0.0)),
    )


def _taking_turns(built: Sequence[Case]) -> list[Case]:
    """One case of each category after the other, so that a cut leaves every category some."""
    by_category: dict[str, list[Case]] = {}
    for case in built:
        by_category.setdefault(case.question.category, []).append(case)
    turns = zip_longest(*by_category.values())
    return [case for case in chain.from_iterable(turns) if case is not None]


def _size(runs: Iterable[Run]) -> int:
    return sum(
        MARKUP_OF_RUN + len(run.css) + len(run.says) + len(run.tokens.encode()) for run in runs
    )
