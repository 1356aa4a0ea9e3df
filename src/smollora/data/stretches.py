"""Which records a task holds, and reading them.

In: a source. Out: `ShardTask`s, stretches of so many records of a file of lines, and their records.
A plain file is entered at the first byte of a stretch. What cannot be entered in its middle
(packed, nested, generated or remote sources) is spooled to a file of lines first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.config import SourceSection
from smollora.data.sources import FromArrow, Undecodable, read_rows
from smollora.data.sources.files import line_lengths


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A stretch of one source."""

    rank: int
    source: int
    """Index into prepare.sources."""
    path: str
    """The file it is read from."""
    start: int
    end: int
    """Bytes of the file."""
    first: int
    """Number of the line that starts at `start`, from 1."""
    spooled: bool = False
    """True if the file holds records that `spool` wrote."""


def is_seekable(source: SourceSection) -> bool:
    """True for a plain file of lines: a task can begin in its middle."""
    path = Path(source.path).expanduser()
    return path.suffix == ".jsonl" and path.is_file() and path.stat().st_size > 0


def plan_file(path: Path, size: int, limit: int | None) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, number of the first line) of stretches of `size` records;
    empty lines are no records.
    """
    with path.open("rb") as stream:
        start = at = records = total = 0
        first = 1
        for number, (length, blank) in enumerate(line_lengths(stream), 1):
            at += length
            records += not blank
            if records == size or (limit is not None and total + records == limit):
                yield start, at, first
                total += records
                start, first, records = at, number + 1, 0
                if total == limit:
                    return
        if records:
            yield start, at, first


def plan_source(
    index: int, source: SourceSection, path: Path, rank: int, size: int, *, spooled: bool = False
) -> list[ShardTask]:
    """The tasks of one file of lines, ranks counted from `rank`."""
    stretches = plan_file(path, size, None if spooled else source.limit)
    return [
        ShardTask(rank + place, index, str(path), start, end, first, spooled)
        for place, (start, end, first) in enumerate(stretches)
    ]


def spool(records: Iterable[tuple[int, Any]], path: Path) -> None:
    """Write a source that cannot be entered in its middle (packed, nested, generated, remote) as
    lines of records.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", errors="surrogatepass") as stream:
        for number, record in records:
            try:
                shown = _show_record(number, record)
            except RecursionError:
                shown = _show_record(number, Undecodable("nested too deep to be read", "too_deep"))
            stream.write(shown + "\n")
    partial.replace(path)


def _show_record(number: int, record: Any) -> str:
    if isinstance(record, Undecodable):
        found = {"row": number, "undecodable": record.detail, "reason": record.reason}
    else:
        found = {"row": number, "record": record, "arrow": isinstance(record, FromArrow)}
    return json.dumps(found, default=str)


def read_task(task: ShardTask, work: Path) -> Iterator[tuple[int, Any]]:
    """(number, record) of a task's records."""
    path = Path(task.path)
    if task.spooled:
        with path.open("rb") as stream:
            stream.seek(task.start)
            while stream.tell() < task.end:
                found = json.loads(stream.readline())
                if "undecodable" in found:
                    yield found["row"], Undecodable(found["undecodable"], found["reason"])
                else:
                    record = found["record"]
                    yield found["row"], FromArrow(record) if found["arrow"] else record
        return
    if task.start == 0 and task.end == path.stat().st_size:
        yield from read_rows(path)
        return
    part = work / "stretches" / f"{task.rank:05d}.jsonl"
    _copy_bytes(path, part, task.start, task.end)
    try:
        for number, record in read_rows(part):
            number += task.first - 1
            if isinstance(record, Undecodable):
                detail = re.sub(r"^line \d+", f"line {number}", record.detail)
                record = Undecodable(detail, record.reason)
            yield number, record
    finally:
        part.unlink(missing_ok=True)


def _copy_bytes(source: Path, target: Path, start: int, end: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        read.seek(start)
        while start < end:
            block = read.read(min(1 << 20, end - start))
            if not block:
                break
            written.write(block)
            start += len(block)
