"""The prepared set is read: mapped into memory, decoded as its rows are asked for.

In: a folder of shards. Out: a `PreparedSet`, which keeps one row group of Python objects whatever
the number of rows: verifying streams, a plan reads columns alone, training takes its rows in
storage order.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

from smollora.data.shards import PreparedRow, RowTable
from smollora.errors import DataError
from smollora.types import Rendered, ToolCall


def shard_paths(path: Path) -> list[Path]:
    """The shards under `path` in order, or the file itself."""
    return sorted(path.glob("[0-9]*.parquet")) if path.is_dir() else [path]


class PreparedSet(Sequence[PreparedRow]):
    """The rows of a folder of shards, decoded as they are asked for.

    Iterating and `take` read in storage order, a row group at a time; indexing at random decodes a
    group a row.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self._files = [pq.ParquetFile(path, memory_map=True) for path in paths]
        self._places: list[tuple[int, int]] = []
        self._starts = [0]
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                self._places.append((number, group))
                self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)
        self._held: tuple[int, list[PreparedRow]] = (-1, [])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> PreparedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreparedRow]: ...
    def __getitem__(self, index: int | slice) -> PreparedRow | list[PreparedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._starts, index) - 1
        return self._group(place)[index - self._starts[place]]

    def __iter__(self) -> Iterator[PreparedRow]:
        for place in range(len(self._places)):
            yield from self._group(place)

    def take(self, indices: Iterable[int]) -> Iterator[tuple[int, PreparedRow]]:
        """(index, row) of some rows, in storage order: each row group is decoded once."""
        for index in sorted(indices):
            yield index, self[index]

    def _group(self, place: int) -> list[PreparedRow]:
        if self._held[0] != place:
            number, group = self._places[place]
            self._held = (place, _rows_of(self._files[number].read_row_group(group)))
        return self._held[1]

    @cached_property
    def table(self) -> RowTable:
        """The columns that planning needs; the token columns are not read."""
        columns: dict[str, list[Any]] = {
            name: [] for name in ("source", "group", "kind", "length", "labelled")
        }
        for file in self._files:
            read = file.read(columns=list(columns))
            for name, column in columns.items():
                column.extend(read[name].to_pylist())
        shared: dict[str, str] = {}
        for name in ("source", "group", "kind"):
            columns[name] = [shared.setdefault(text, text) for text in columns[name]]
        length, labelled = array("i", columns["length"]), array("i", columns["labelled"])
        return RowTable(columns["source"], columns["group"], columns["kind"], length, labelled)


def _rows_of(table: Any) -> list[PreparedRow]:
    plain = {
        name: table[name].to_pylist()
        for name in ("conversation_id", "source", "group", "kind", "row", "built", "roles", "calls")
    }
    lists = {}
    for name in ("token_ids", "owner", "trained"):
        chunk = table[name].combine_chunks()
        offsets = chunk.offsets.to_pylist()
        values = chunk.values.to_numpy(zero_copy_only=False).tolist()
        lists[name] = [tuple(values[a:b]) for a, b in pairwise(offsets)]
    return [
        PreparedRow(
            Rendered(identity, ids, owner, trained),
            source,
            group,
            kind,
            tuple(roles),
            tuple(tuple(ToolCall(n, a) for n, a in turn) for turn in json.loads(calls)),
            row,
            built,
        )
        for identity, source, group, kind, row, built, roles, calls, ids, owner, trained in zip(
            *plain.values(), *lists.values(), strict=True
        )
    ]


def read_prepared(path: Path) -> PreparedSet:
    """Open the shards of a folder, or one file.

    Raises:
        DataError: not there or broken.
    """
    paths = shard_paths(path)
    try:
        if not paths:
            raise FileNotFoundError(f"no shards in {path}")
        return PreparedSet(paths)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "run `prepare` again") from error
