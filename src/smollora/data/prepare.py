"""Sources -> conversations -> rendered rows, every row counted.

In: the recipe's sources, a `Renderer`. Out: `rows.parquet` (token ids, owners, labels, calls) and
the list of rejects. rows_in = kept + rejected always. Too long: whole exchanges are dropped from
the front; what still does not fit is rejected, never cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollora.config import PrepareSection, SourceSection
from smollora.data.sources import Undecodable, read_conversation, read_rows
from smollora.data.starter import build_general_rows, build_rows
from smollora.errors import DataError
from smollora.render import Renderer
from smollora.types import Conversation, Reject, Rendered, ToolCall

BATCH = 512


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One row of rows.parquet."""

    rendered: Rendered
    source: str
    group: str
    """"tool" or "general": which share of the mix it counts to."""
    kind: str
    """"call", "no_call" or "no_tools"."""
    roles: tuple[str, ...]
    calls: tuple[tuple[ToolCall, ...], ...]
    """The calls of each labelled turn."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that `prepare` made."""

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
    """Read, convert and render every source.

    Raises:
        DataError: a file is missing or empty, nothing is left, or, with `strict`, the first bad
            row.
    """
    rows: list[PreparedRow] = []
    rejects: list[Reject] = []
    counted = shortened = 0
    for source in section.sources:
        before = counted
        for batch in _conversations(source, seed):
            counted += len(batch)
            good = [item for item in batch if isinstance(item[1], Conversation)]
            rejects.extend(item for _, item in batch if isinstance(item, Reject))
            rendered = renderer.rows([item for _, item in good if isinstance(item, Conversation)])
            for (number, item), result in zip(good, rendered, strict=True):
                assert isinstance(item, Conversation)
                outcome, cut = _fit(item, result, renderer, section.max_length)
                shortened += cut
                if isinstance(outcome, Reject):
                    rejects.append(replace(outcome, row=number))
                else:
                    rows.extend(_prepared(*outcome, source.kind))
            if section.strict and rejects:
                first = min(rejects, key=lambda reject: reject.row)
                raise DataError(
                    f"row {first.row} of {first.source}: {first.reason}: {first.detail}",
                    "mend the row, or run without prepare.strict to count such rows and go on",
                )
            if on_rows:
                on_rows(counted)
        if counted == before:
            raise DataError(
                f"source {source.name} ({source.path}) holds no rows",
                "remove it from prepare.sources or fill it",
            )
    if not rows:
        raise DataError(
            f"none of {counted} rows is left: {_reasons(rejects)}",
            "raise prepare.max_length if they are too long; prepare.strict=true names the first",
        )
    return Prepared(tuple(rows), tuple(rejects), counted, shortened)


def _reasons(rejects: Sequence[Reject]) -> str:
    counts: dict[str, int] = {}
    for reject in rejects:
        counts[reject.reason] = counts.get(reject.reason, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _records(source: SourceSection, seed: int) -> Iterator[tuple[int, Any]]:
    if source.path == "starter:tools":
        yield from enumerate(build_rows("train", seed=seed, share=source.share), 1)
    elif source.path == "starter:general":
        yield from enumerate(build_general_rows("train", seed=seed), 1)
    elif source.path.startswith("hub:"):
        yield from enumerate(_hub_rows(source.path.removeprefix("hub:")), 1)
    else:
        yield from read_rows(Path(source.path).expanduser())


def _hub_rows(name: str) -> Iterator[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"reading hub:{name} needs the package datasets",
            "pip install datasets; or download the file and give its path",
        ) from error
    dataset, _, config = name.partition(":")
    try:
        yield from load_dataset(dataset, config or None, split="train", streaming=True)
    except Exception as error:  # the hub client raises a dozen kinds
        raise DataError(
            f"cannot read {dataset} from the Hub: {type(error).__name__}",
            "check the name and the connection, or give a local file",
        ) from error


def _conversations(
    source: SourceSection, seed: int
) -> Iterator[list[tuple[int, Conversation | Reject]]]:
    batch: list[tuple[int, Conversation | Reject]] = []
    for count, (number, record) in enumerate(_records(source, seed)):
        if source.limit is not None and count >= source.limit:
            break
        if isinstance(record, Undecodable):
            batch.append((number, Reject(source.name, number, "bad_json", record.detail)))
        else:
            batch.append((number, read_conversation(record, source.name, number)))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


Outcome = tuple[Conversation, tuple[Rendered, ...]]


def _fit(
    conversation: Conversation,
    rendered: tuple[Rendered, ...] | Reject,
    renderer: Renderer,
    max_length: int,
) -> tuple[Outcome | Reject, bool]:
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
    conversation: Conversation, rendered: tuple[Rendered, ...], group: str
) -> Iterator[PreparedRow]:
    for row in rendered:
        owners = dict.fromkeys(
            owner for owner, trained in zip(row.owner, row.trained, strict=True) if trained
        )
        yield PreparedRow(
            row,
            conversation.source,
            group,
            conversation.kind,
            tuple(message.role for message in conversation.messages),
            tuple(conversation.messages[owner].calls for owner in owners),
        )


def write_rows(rows: Sequence[PreparedRow], path: Path) -> None:
    """Write rows.parquet (written whole)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from smollora.runs import write_whole

    table = pa.table(
        {
            "conversation_id": [row.rendered.conversation_id for row in rows],
            "source": [row.source for row in rows],
            "group": [row.group for row in rows],
            "kind": [row.kind for row in rows],
            "token_ids": pa.array([row.rendered.token_ids for row in rows], pa.list_(pa.int32())),
            "owner": pa.array([row.rendered.owner for row in rows], pa.list_(pa.int32())),
            "trained": pa.array([row.rendered.trained for row in rows], pa.list_(pa.bool_())),
            "roles": pa.array([row.roles for row in rows], pa.list_(pa.string())),
            "calls": [
                json.dumps([[[c.name, dict(c.arguments)] for c in turn] for turn in row.calls])
                for row in rows
            ],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def read_prepared(path: Path) -> list[PreparedRow]:
    """Read rows.parquet back.

    Raises:
        DataError: not there or broken.
    """
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path).to_pydict()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "run `prepare` again") from error
    return [
        PreparedRow(
            Rendered(identity, tuple(ids), tuple(owner), tuple(trained)),
            source,
            group,
            kind,
            tuple(roles),
            tuple(tuple(ToolCall(n, a) for n, a in turn) for turn in json.loads(calls)),
        )
        for identity, source, group, kind, ids, owner, trained, roles, calls in zip(
            columns["conversation_id"],
            columns["source"],
            columns["group"],
            columns["kind"],
            columns["token_ids"],
            columns["owner"],
            columns["trained"],
            columns["roles"],
            columns["calls"],
            strict=True,
        )
    ]
