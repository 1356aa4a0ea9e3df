"""What became of every record: `rejected.parquet` and `changed.parquet`.

In: rejects and changes in the order of their rows. Out: one file each, columns source, row, reason,
detail; written in pieces, so that memory does not grow with the rows. A record is either kept or
has exactly one line in rejected.parquet; a kept one may have several in changed.parquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smollora.errors import DataError
from smollora.runs import whole_file

COLUMNS = ("source", "row", "reason", "detail")
PIECE = 4096


def write_ledger(entries: Iterable[Mapping[str, Any]], path: Path) -> dict[str, int]:
    """Write entries (the columns of a `Reject` or `Change`) to a Parquet file, whole or not at all.

    Returns:
        How many there are of each reason.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.string(), pa.int64(), pa.string(), pa.string()]
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    counts: dict[str, int] = {}
    piece: list[Mapping[str, Any]] = []
    with (
        whole_file(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            rows = [{name: entry[name] for name in COLUMNS} for entry in piece]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            piece.clear()

        for entry in entries:
            counts[entry["reason"]] = counts.get(entry["reason"], 0) + 1
            piece.append(entry)
            if len(piece) == PIECE:
                flush()
        if piece:
            flush()
    return dict(sorted(counts.items()))


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The entries of a ledger.

    Raises:
        DataError: not there or broken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        entries: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}", "run `prepare` again") from error
    return entries
