"""Sketches on disk, and the rows of a prepared set that repeat others.

In: one Parquet file of sketches a task. Out: a list of rows that are to be taken out or noted. Only
hashes are held for all rows at once; MinHash signatures are read again for the few rows that share
a band with another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from smollora.config import PrepareSection
from smollora.data.duplicates import Repeat, bands, find_repeats
from smollora.data.prepare import RowOutcome
from smollora.runs import whole_file

COUNTED = ("rows", "tokens", "labelled_tokens", "built")


def sketch_entry(outcome: RowOutcome) -> dict[str, Any]:
    """What is remembered of a kept record until all tasks are done."""
    assert outcome.sketch is not None
    made = (*outcome.rows, *outcome.built)
    identity = outcome.rows[0].rendered.conversation_id.encode(errors="replace")
    return {
        "row": outcome.row,
        "source": outcome.rows[0].source,
        "id": blake2b(identity, digest_size=8).digest(),
        "rows": len(made),
        "tokens": sum(len(row.rendered.token_ids) for row in made),
        "labelled_tokens": sum(row.rendered.trained.count(True) for row in made),
        "built": len(outcome.built),
        "exact": outcome.sketch.exact,
        "beginnings": list(outcome.sketch.beginnings),
        "signature": outcome.sketch.signature,
    }


def write_sketches(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the entries of one task, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "row": pa.int64(),
        "source": pa.string(),
        "id": pa.binary(8),
        **dict.fromkeys(COUNTED, pa.int64()),
        "exact": pa.binary(16),
        "beginnings": pa.list_(pa.binary(16)),
        "signature": pa.binary(),
    }
    with whole_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(entries), pa.schema(list(kinds.items()))), partial)


def list_repeats(paths: Mapping[int, Path], section: PrepareSection) -> Iterator[dict[str, Any]]:
    """Rows that repeat others, by task and row, with what they hold.

    Args:
        paths: the sketches of each task, by its rank.
        section: says what is looked for and what becomes of it.
    """
    if not paths:
        return
    known = _Sketches(paths, near=section.near_duplicates != "off")
    found = find_repeats(
        known.exact,
        known.beginnings,
        known.banded,
        known.signatures,
        section.near_duplicate_threshold,
    )
    for repeat in found:
        wanted = section.duplicates if repeat.how == "exact" else section.near_duplicates
        if wanted == "off":
            continue
        reason = "duplicate" if repeat.how == "exact" else "near_duplicate"
        yield known.entry(
            repeat.index,
            reason if wanted == "remove" else f"{reason}_kept",
            _detail(repeat, known),
            removed=wanted == "remove",
        )
    for index, of in known.repeated_ids():
        detail = f"row {known.row[of]} has the same id"
        yield known.entry(index, "id_repeated", detail, removed=False)


def _detail(repeat: Repeat, known: _Sketches) -> str:
    other = f"row {known.row[repeat.of]} of {known.source(repeat.of)}"
    if repeat.how == "exact":
        return f"the same as {other}"
    if repeat.how == "beginning":
        return f"the beginning of {other}"
    return f"{repeat.similarity:.0%} the same as {other}"


class _Sketches:
    """The sketches of all tasks; rows are counted through."""

    def __init__(self, paths: Mapping[int, Path], *, near: bool) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        self.paths = paths
        ranks, rows, ids, counts = [], [], [], []
        exact: list[bytes] = []
        banded: list[Any] = []
        self.beginnings: list[tuple[int, bytes]] = []
        self.sources: list[tuple[int, str]] = []
        total = 0
        for rank, path in paths.items():
            table = pq.read_table(path)
            rows.append(table["row"].to_numpy())
            ranks.append(np.full(len(table), rank))
            counts.append(np.stack([table[name].to_numpy() for name in COUNTED], axis=1))
            exact.append(b"".join(table["exact"].to_pylist()))
            ids.append(np.frombuffer(b"".join(table["id"].to_pylist()), np.uint64))
            self.sources.append((total, table["source"][0].as_py()))
            if near:
                banded.append(bands(table["signature"].to_pylist()))
                for place, listed in enumerate(table["beginnings"].to_pylist()):
                    self.beginnings += [(total + place, value) for value in listed]
            total += len(table)
        self.row, self.rank = np.concatenate(rows), np.concatenate(ranks)
        self.ids, self.counts = np.concatenate(ids), np.concatenate(counts)
        self.exact = b"".join(exact)
        self.banded = np.concatenate(banded) if near else None

    def source(self, index: int) -> str:
        """Name of the source of a row."""
        return next(name for first, name in reversed(self.sources) if first <= index)

    def signatures(self, wanted: Sequence[int]) -> list[bytes]:
        """The signatures of some rows, which ascend."""
        import pyarrow.parquet as pq

        asked, found, first = set(wanted), [], 0
        for path in self.paths.values():
            column = pq.read_table(path, columns=["signature"])["signature"]
            last = first + len(column)
            found += [column[row - first].as_py() for row in range(first, last) if row in asked]
            first = last
        return found

    def repeated_ids(self) -> Iterator[tuple[int, int]]:
        """(row, earlier row of the same source with the same id)."""
        import numpy as np

        number = np.zeros(len(self.ids), np.uint64)
        names: dict[str, int] = {}
        for first, name in self.sources:
            number[first:] = names.setdefault(name, len(names))
        both = np.stack([number, self.ids], axis=1)
        _, first_of, group = np.unique(both, axis=0, return_index=True, return_inverse=True)
        origin = first_of[group.reshape(-1)]
        for index in np.flatnonzero(origin != np.arange(len(origin))):
            yield int(index), int(origin[index])

    def entry(self, index: int, reason: str, detail: str, *, removed: bool) -> dict[str, Any]:
        """A row as the ledger and the counts need it."""
        return {
            "source": self.source(index),
            "row": int(self.row[index]),
            "reason": reason,
            "detail": detail,
            "rank": int(self.rank[index]),
            "removed": removed,
            **dict(zip(COUNTED, (int(count) for count in self.counts[index]), strict=True)),
        }
