"""Sources -> conversations -> rendered rows, every row counted.

In: the recipe's sources, a `Renderer`. Out: one `RowOutcome` a record: its rendered rows, or why it
has none. rows_in = kept + rejected always. Too long: whole exchanges are dropped from the front;
what still does not fit is rejected, never cut. `tasks.py` writes these to shards; `prepare_rows`
keeps them in memory, for estimates and tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from smollora.config import PrepareSection, SourceSection
from smollora.data.duplicates import Sketch, sketch
from smollora.data.negatives import Negatives, collect_pool
from smollora.data.overlap import Overlap
from smollora.data.prepared import PreparedSet, read_prepared
from smollora.data.records import read_records
from smollora.data.shards import PreparedRow, write_rows
from smollora.data.sources import Accepted, read_row
from smollora.errors import DataError
from smollora.render import Renderer
from smollora.types import Change, Conversation, Reject, Rendered

__all__ = [
    "Prepared",
    "PreparedRow",
    "PreparedSet",
    "RowOutcome",
    "drop_first_exchange",
    "prepare_rows",
    "read_prepared",
    "write_rows",
]

BATCH = 512


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What became of one record."""

    row: int
    """Its number within the source, from 1."""
    rows: tuple[PreparedRow, ...] = ()
    reject: Reject | None = None
    shortened: bool = False
    """True if exchanges at the front were dropped so that it fits."""
    built: tuple[PreparedRow, ...] = ()
    """Rows that were built from it beside its own."""
    built_left_out: int = 0
    """Built conversations that did not render or did not fit."""
    changes: tuple[Change, ...] = ()
    """What was changed in a record that is kept."""
    form: str = ""
    """The record form it was read as."""
    sketch: Sketch | None = None
    """What it is compared with other records by; None where the recipe looks for no duplicates."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that `prepare_rows` made."""

    rows: tuple[PreparedRow, ...]
    rejects: tuple[Reject, ...]
    rows_in: int
    shortened: int
    """Conversations that lost exchanges at the front to fit max_length."""


def prepare_rows(
    section: PrepareSection,
    renderer: Renderer,
    *,
    seed: int,
    on_rows: Callable[[int], None] | None = None,
) -> Prepared:
    """Read, convert and render every source, in memory.

    Raises:
        DataError: a file is missing or empty, nothing is left, or, with `strict`, the first bad
            row.
    """
    rows: list[PreparedRow] = []
    rejects: list[Reject] = []
    counted = shortened = 0
    negatives = plan_negatives(section, seed)
    for source in section.sources:
        before = counted
        for outcomes in prepare_batches(
            read_records(source, seed), source, section, renderer, negatives
        ):
            counted += len(outcomes)
            for outcome in outcomes:
                rows.extend((*outcome.rows, *outcome.built))
                rejects.extend([outcome.reject] if outcome.reject else [])
                shortened += outcome.shortened
            if on_rows:
                on_rows(counted)
        if counted == before:
            raise holds_no_rows(source)
    if not rows:
        raise nothing_left(counted, count_reasons(reject.reason for reject in rejects))
    return Prepared(tuple(rows), tuple(rejects), counted, shortened)


def prepare_batches(
    records: Iterable[tuple[int, Any]],
    source: SourceSection,
    section: PrepareSection,
    renderer: Renderer,
    negatives: Negatives | None,
    overlap: Overlap | None = None,
) -> Iterator[list[RowOutcome]]:
    """Outcomes of records, some hundred at a time (the tokenizer's threads share a batch).

    Raises:
        DataError: with `strict`, at the first bad row.
    """
    for batch in batched(records, BATCH):
        read = [(number, convert(number, record, source, overlap)) for number, record in batch]
        good = [item for item in read if isinstance(item[1], Accepted)]
        made = render_batch(good, source, section, renderer, negatives)  # type: ignore[arg-type]
        outcomes = [
            RowOutcome(number, reject=item) if isinstance(item, Reject) else next(made)
            for number, item in read
        ]
        if section.strict:
            raise_at_first(outcomes)
        yield outcomes


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def raise_at_first(outcomes: Sequence[RowOutcome]) -> None:
    """Raise what `prepare.strict` asks for if a row is rejected.

    Raises:
        DataError: names the first rejected row.
    """
    first = next((outcome.reject for outcome in outcomes if outcome.reject), None)
    if first is not None:
        raise DataError(
            f"row {first.row} of {first.source}: {first.reason}: {first.detail}",
            "mend the row, or run without prepare.strict to count such rows and go on",
        )


def holds_no_rows(source: SourceSection) -> DataError:
    """What is said of a source without a single record."""
    return DataError(
        f"source {source.name} ({source.path}) holds no rows",
        "remove it from prepare.sources or fill it",
    )


def nothing_left(rows_in: int, reasons: dict[str, int]) -> DataError:
    """What is said when every row was rejected."""
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    longer = (
        "raise prepare.max_length for those that are too long; " if "too_long" in reasons else ""
    )
    return DataError(
        f"none of {rows_in} rows is left: {listed}",
        f"{longer}prepare.strict=true names the first row and what is wrong with it",
    )


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How many rows each reason took."""
    return dict(Counter(reasons))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def convert(
    number: int, record: Any, source: SourceSection, overlap: Overlap | None = None
) -> Accepted | Reject:
    """One record as a conversation with what was changed in it, or why not."""
    found = read_row(record, source.name, number, form=source.form)
    if overlap is None or isinstance(found, Reject):
        return found
    shared = overlap.of(found.conversation)
    if shared is None:
        return found
    reason = f"evaluation_{shared.what}"
    detail = f"{shared.detail} is in the evaluation case {shared.case}"
    if overlap.remove:
        return Reject(source.name, number, reason, detail)
    noted = Change(source.name, number, f"{reason}_kept", detail)
    return replace(found, changes=(*found.changes, noted))


def plan_negatives(section: PrepareSection, seed: int) -> Negatives | None:
    """What irrelevance rows are built from; None where the recipe wants none.

    Raises:
        DataError: the recipe wants them and no tool source offers a tool.
    """
    if not section.negatives:
        return None
    read = (
        found.conversation
        for source in section.sources
        if source.kind == "tool"
        for number, record in read_records(source, seed)
        if isinstance(found := convert(number, record, source), Accepted)
    )
    pool = collect_pool(read)
    if not pool:
        raise DataError(
            "prepare.negatives needs tools and no source of kind tool offers any",
            "add a tool source, or set prepare.negatives=0",
        )
    return Negatives(pool, section.negatives, seed)


# ── rendering ────────────────────────────────────────────────────────────────────────────────────


def render_batch(
    batch: Sequence[tuple[int, Accepted]],
    source: SourceSection,
    section: PrepareSection,
    renderer: Renderer,
    negatives: Negatives | None,
) -> Iterator[RowOutcome]:
    """The outcome of each conversation, in order; `batch` is tokenised at once."""
    drawn = [
        negatives.of(found.conversation, number) if negatives and source.kind == "general" else None
        for number, found in batch
    ]
    asked = [found.conversation for _, found in batch]
    rendered = renderer.rows([*asked, *(item for item in drawn if item is not None)])
    own = [next(rendered) for _ in batch]
    near = section.near_duplicates != "off"
    for (number, found), extra, result in zip(batch, drawn, own, strict=True):
        outcome, cut = _fit(found.conversation, result, renderer, section.max_length)
        built: tuple[PreparedRow, ...] = ()
        left_out = 0
        if extra is not None:
            beside, _ = _fit(extra, next(rendered), renderer, section.max_length)
            left_out = isinstance(beside, Reject)
            if not isinstance(beside, Reject):
                built = tuple(_prepared(*beside, source.kind, number, built=True))
        if isinstance(outcome, Reject):
            yield RowOutcome(number, reject=replace(outcome, row=number))
        else:
            rows = tuple(_prepared(*outcome, source.kind, number))
            changes = (*found.changes, *_shortening(found, outcome[0], number))
            compared = None
            if near or section.duplicates != "off":
                compared = sketch(outcome[0], near=near)
            yield RowOutcome(
                number, rows, None, cut, built, left_out, changes, found.form, compared
            )


def _shortening(found: Accepted, kept: Conversation, number: int) -> Iterator[Change]:
    before, after = len(found.conversation.messages), len(kept.messages)
    if after < before:
        detail = f"the first {before - after} of {before} messages, to fit max_length"
        yield Change(kept.source, number, "exchanges_dropped", detail)


Fitted = tuple[Conversation, tuple[Rendered, ...]]


def _fit(
    conversation: Conversation,
    rendered: tuple[Rendered, ...] | Reject,
    renderer: Renderer,
    max_length: int,
) -> tuple[Fitted | Reject, bool]:
    """The rendered rows of a conversation if they fit; else with exchanges dropped from the front;
    and whether any were.
    """
    cut = False
    while isinstance(rendered, tuple) and any(len(r.token_ids) > max_length for r in rendered):
        shorter = drop_first_exchange(conversation)
        if shorter is None:
            longest = max(len(r.token_ids) for r in rendered)
            return Reject(
                conversation.source,
                0,
                "too_long",
                f"{conversation.id}: {longest} tokens, max_length is {max_length}",
            ), False
        conversation, cut = shorter, True
        rendered = renderer.row(conversation)
    if isinstance(rendered, Reject):
        return rendered, False
    return (conversation, rendered), cut


def drop_first_exchange(conversation: Conversation) -> Conversation | None:
    """The conversation without its first user turn and what answers it; None if that was the only
    one.
    """
    messages = conversation.messages
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(users) < 2:
        return None
    kept = (*(m for m in messages[: users[0]] if m.role == "system"), *messages[users[1] :])
    return replace(conversation, messages=kept)


def _prepared(
    conversation: Conversation,
    rendered: tuple[Rendered, ...],
    group: str,
    number: int,
    *,
    built: bool = False,
) -> Iterator[PreparedRow]:
    for row in rendered:
        owners = dict.fromkeys(compress(row.owner, row.trained))
        yield PreparedRow(
            row,
            conversation.source,
            group,
            conversation.kind,
            tuple(message.role for message in conversation.messages),
            tuple(conversation.messages[owner].calls for owner in owners),
            number,
            built,
        )
