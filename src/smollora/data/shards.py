"""The prepared set is written: rows in Parquet shards, each whole or not there.

In: `PreparedRow`s. Out: a file of at most one task's rows, written a row group at a time. What a
plan needs (source, kind, length, labelled tokens) are columns of their own, so that `prepared.py`
can read them alone. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from smollora.errors import SmolloraError
from smollora.types import Rendered, ToolCall

GROUP_ROWS = 512
"""Rows of a row group: what is decoded at a time."""
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 1


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One rendered row of the prepared set."""

    rendered: Rendered
    source: str
    group: str
    """"tool" or "general": which share of the mix it counts to."""
    kind: str
    """"call", "no_call" or "no_tools"."""
    roles: tuple[str, ...]
    calls: tuple[tuple[ToolCall, ...], ...]
    """The calls of each labelled turn."""
    row: int = 0
    """Number of the record within its source, from 1."""
    built: bool = False
    """True for a row that was made here from a general one, not read."""


@dataclass(frozen=True, slots=True)
class RowTable:
    """What planning needs of the rows, a column a field; position = index of the row."""

    source: Sequence[str]
    group: Sequence[str]
    kind: Sequence[str]
    length: Sequence[int]
    """Tokens."""
    labelled: Sequence[int]
    """Labelled tokens."""

    def __len__(self) -> int:
        return len(self.source)


def tabulate(rows: Iterable[PreparedRow]) -> RowTable:
    """The table of rows that are in memory."""
    table = RowTable([], [], [], [], [])
    for row in rows:
        for column, value in zip(
            (table.source, table.group, table.kind, table.length, table.labelled),
            (
                row.source,
                row.group,
                row.kind,
                len(row.rendered.token_ids),
                sum(row.rendered.trained),
            ),
            strict=True,
        ):
            column.append(value)  # type: ignore[attr-defined]
    return table


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("conversation_id", pa.string()),
            ("source", pa.dictionary(pa.int32(), pa.string())),
            ("group", pa.dictionary(pa.int32(), pa.string())),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("row", pa.int64()),
            ("built", pa.bool_()),
            ("length", pa.int32()),
            ("labelled", pa.int32()),
            ("token_ids", pa.list_(pa.int32())),
            ("owner", pa.list_(pa.int32())),
            ("trained", pa.list_(pa.bool_())),
            ("roles", pa.list_(pa.string())),
            ("calls", pa.string()),
            ("digest", pa.int64()),
        ]
    )


class ShardWriter:
    """Writes one shard, a row group at a time, beside its place; `commit` renames it. Left without
    `commit` (an error, a kill) nothing stands in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._stream: Any = None
        self._clear()

    def __enter__(self) -> ShardWriter:
        import pyarrow.parquet as pq

        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle, self._temporary = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name}."
            )
        except OSError as error:
            raise self._full(error) from error
        self._stream = os.fdopen(handle, "wb")
        self._parquet = pq.ParquetWriter(
            self._stream,
            _schema(),
            compression=COMPRESSION,
            compression_level=COMPRESSION_LEVEL,
            use_dictionary=["source", "group", "kind", "owner", "roles.list.element"],
            write_statistics=False,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._parquet.close()
            with suppress(OSError):
                self._stream.close()
            self._stream = None
            with suppress(OSError):
                os.unlink(self._temporary)

    def _full(self, error: OSError) -> SmolloraError:
        return SmolloraError(
            f"cannot write {self.path}: {error.strerror or error}",
            "free some space; the shards that are finished are kept, the same command goes on",
        )

    def _clear(self) -> None:
        self._plain: list[tuple[Any, ...]] = []
        self._ids, self._owner, self._trained = array("i"), array("i"), array("b")
        self._roles: list[tuple[str, ...]] = []
        self._ends = array("i", [0])

    def add(self, rows: Sequence[PreparedRow]) -> None:
        """Append the rendered rows of one conversation."""
        columns = [(array("i", r.rendered.token_ids), bytes(r.rendered.trained)) for r in rows]
        digest = _digest(columns)
        for row, (token_ids, trained) in zip(rows, columns, strict=True):
            rendered = row.rendered
            self._ids.extend(token_ids)
            self._owner.extend(array("i", rendered.owner))
            self._trained.frombytes(trained)
            self._ends.append(len(self._ids))
            self._roles.append(row.roles)
            self._plain.append(
                (
                    rendered.conversation_id,
                    row.source,
                    row.group,
                    row.kind,
                    row.row,
                    row.built,
                    len(rendered.token_ids),
                    trained.count(1),
                    _show_calls(row.calls),
                    digest,
                )
            )
            self.rows += 1
            if len(self._plain) == GROUP_ROWS:
                self._flush()

    def _flush(self) -> None:
        if not self._plain:
            return
        import numpy as np
        import pyarrow as pa

        schema = _schema()
        ends = pa.array(np.frombuffer(self._ends, np.int32))
        lists = {
            "token_ids": np.frombuffer(self._ids, np.int32),
            "owner": np.frombuffer(self._owner, np.int32),
            "trained": np.frombuffer(self._trained, np.bool_),
        }
        names = ("conversation_id", "source", "group", "kind", "row", "built", "length")
        plain = dict(
            zip(
                (*names, "labelled", "calls", "digest"), zip(*self._plain, strict=True), strict=True
            )
        )
        columns = {
            **{name: pa.array(values, schema.field(name).type) for name, values in plain.items()},
            **{
                name: pa.ListArray.from_arrays(ends, pa.array(values))
                for name, values in lists.items()
            },
            "roles": pa.array(self._roles, schema.field("roles").type),
        }
        batch = pa.record_batch([columns[name] for name in schema.names], schema=schema)
        try:
            self._parquet.write_batch(batch)
        except OSError as error:
            raise self._full(error) from error
        self._clear()

    def commit(self) -> None:
        """Put the file in its place.

        Raises:
            SmolloraError: the disk is full.
        """
        self._flush()
        try:
            self._parquet.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._full(error) from error
        self._stream = None


def _show_calls(calls: Sequence[Sequence[ToolCall]]) -> str:
    return json.dumps([[[c.name, dict(c.arguments)] for c in turn] for turn in calls])


def _digest(columns: Sequence[tuple[array[int], bytes]]) -> int:
    """64 bits of what a conversation trains: its token ids and which of them are labelled."""
    state = blake2b(digest_size=8)
    for token_ids, trained in columns:
        state.update(token_ids)
        state.update(trained)
    return int(struct.unpack("<q", state.digest())[0])


def write_rows(rows: Sequence[PreparedRow], path: Path) -> None:
    """Write one shard from rows in memory, each a conversation of its own (written whole)."""
    with ShardWriter(path) as writer:
        for row in rows:
            writer.add([row])
        writer.commit()


def drop_rows(path: Path, rows: Sequence[int]) -> int:
    """Rewrite a shard without the rendered rows of these records; how many rows went."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pa.array(rows, pa.int64())
    with ShardWriter(path) as writer, pq.ParquetFile(path, memory_map=True) as file:
        before = file.metadata.num_rows
        for group in range(file.num_row_groups):
            batch = file.read_row_group(group)
            kept = batch.filter(pc.invert(pc.is_in(batch["row"], value_set=wanted)))
            writer.rows += kept.num_rows
            writer._parquet.write_table(kept.cast(_schema()))
        writer.commit()
        return int(before) - writer.rows
