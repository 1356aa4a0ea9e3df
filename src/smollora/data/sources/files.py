"""Data files -> (row number, record): JSON lines, JSON lists, Parquet, compressed or in folders.

In: a path. Out: every row in order, from 1; a row that is no record is an `Undecodable` with a
reason, never skipped. JSON lines and Parquet are read in constant memory: a line longer than
LINE_LIMIT is passed over in small pieces and counted. The surprise: many a `.json` file holds JSON
lines, and is read as such.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from smollora.data.notes import FromArrow, Undecodable
from smollora.errors import DataError

LINE_LIMIT = 8 * 2**20
"""Bytes. A row of 100,000 tokens takes about half a megabyte."""
LIST_LIMIT = 1 * 2**30
"""Bytes of a .json list, which is read whole."""
PIECE = 1 << 16
PARQUET_ROWS = 256
"""Rows of a Parquet file that are decoded at a time."""
LINES = (".jsonl", ".ndjson")
PACKED = {".gz": "gzip", ".zst": "zstd"}
CARDS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside the rows."""
KINDS = ".jsonl, .json, .parquet, each of the first two also as .gz or .zst"

Row = tuple[int, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of all data files in a folder, one after the other.

    Raises:
        DataError: missing, empty, of no known kind, or broken as a whole.
    """
    if path.is_dir():
        files = [item for item in sorted(path.rglob("*")) if item.is_file() and is_data_file(item)]
        if not files:
            raise DataError(f"folder {path} holds no data files", f"kinds: {KINDS}")
        rows = itertools.chain.from_iterable(read_file(item) for item in files)
        yield from ((number, record) for number, (_, record) in enumerate(rows, 1))
        return
    yield from read_file(path)


def is_data_file(path: Path) -> bool:
    """Whether the name says that this is data, and not a card or a licence of a downloaded set."""
    if path.name.startswith(".") or path.name in CARDS:
        return False
    return _kind(path) in (*LINES, ".json", ".parquet")


def _kind(path: Path) -> str:
    """The suffix that says what a file holds, compression apart."""
    inner = path.with_suffix("") if path.suffix in PACKED else path
    return inner.suffix


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one file.

    Raises:
        DataError: missing, empty, of no known kind, or broken as a whole.
    """
    if not path.is_file():
        raise DataError(f"data file {path} is not there", "check the path under prepare.sources")
    if path.stat().st_size == 0:
        raise DataError(f"data file {path} is empty", "it should hold one JSON object a line")
    kind = _kind(path)
    if kind == ".parquet":
        yield from _read_parquet(path)
    elif kind in (*LINES, ".json"):
        try:
            lines = kind in LINES or _holds_lines(path)
            with _opened(path) as stream:
                yield from _read_lines(stream) if lines else _read_list(stream, path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read to its end: {error}", "it is cut short or broken"
            ) from error
    else:
        raise DataError(f'{path}: "{kind}" is no kind of data file', f"kinds: {KINDS}")


def _opened(path: Path) -> IO[bytes]:
    codec = PACKED.get(path.suffix)
    if codec is None:
        return path.open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=codec), PIECE)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


def _read_lines(stream: IO[bytes]) -> Iterator[Row]:
    number = 0
    while line := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT and not line.endswith(b"\n"):
            length = len(line)
            while (piece := stream.readline(PIECE)) and not piece.endswith(b"\n"):
                length += len(piece)
            detail = (
                f"line {number}: {length + len(piece):,} bytes; at most {LINE_LIMIT:,} are read"
            )
            yield number, Undecodable(detail, "line_too_long")
        elif line.strip():
            yield number, _decode_line(line, number)


def line_lengths(stream: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """(bytes, is blank) of each line, however long, in constant memory."""
    length, blank = 0, True
    while piece := stream.readline(PIECE):
        length += len(piece)
        blank = blank and not piece.strip()
        if piece.endswith(b"\n"):
            yield length, blank
            length, blank = 0, True
    if length:
        yield length, blank


def _decode_line(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return Undecodable(f"line {number}: not UTF-8 at byte {error.start}", "bad_unicode")
    except RecursionError:
        return Undecodable(f"line {number}: nested too deep to be read", "too_deep")
    except ValueError as error:
        return Undecodable(f"line {number}: {error}")


def _holds_lines(path: Path) -> bool:
    """Whether a .json file begins with an object on a line of its own and goes on after it."""
    with _opened(path) as stream:
        first = stream.readline(LINE_LIMIT).removeprefix(b"\xef\xbb\xbf").strip()
        if not first.startswith(b"{") or isinstance(_decode_line(first, 1), Undecodable):
            return False
        return any(line.strip() for line in iter(lambda: stream.readline(PIECE), b""))


def _read_list(stream: IO[bytes], path: Path) -> Iterator[Row]:
    hint = "use .jsonl for one row a line"
    text = stream.read(LIST_LIMIT + 1)
    if len(text) > LIST_LIMIT:
        raise DataError(f"{path} is a JSON list of more than {LIST_LIMIT:,} bytes", hint)
    try:
        rows = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deep to be read", hint) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}", hint) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of rows", "a .json data file is one JSON list")
    yield from enumerate(rows, 1)


# ── Parquet ──────────────────────────────────────────────────────────────────────────────────────


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for record in _records(batch):
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet after row {number}: {error}",
            "download it again, or check that it is a Parquet file",
        ) from error


def _records(batch: Any) -> Iterator[Any]:
    try:
        decoded = batch.to_pylist()
    except UnicodeDecodeError:  # one bad cell spoils the batch: row by row
        for place in range(batch.num_rows):
            try:
                yield FromArrow(batch.slice(place, 1).to_pylist()[0])
            except UnicodeDecodeError as error:
                yield Undecodable(f"a cell is not UTF-8 at byte {error.start}", "bad_unicode")
        return
    for record in decoded:
        yield FromArrow(record)
