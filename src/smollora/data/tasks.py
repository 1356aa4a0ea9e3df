"""Preparing in tasks: a task is a stretch of one source's records, and makes one shard.

In: the recipe's prepare section, a `Renderer`, the folder of the stage. Out: `rows/NNNNN.parquet`,
`rejected.jsonl`, and what was counted. A task leaves its shard, its rejects and, written last, its
counts, so that a killed run goes on with the first task that has none. Which records a task holds
depends on the source and `shard_rows` alone: whoever runs the tasks, and in whatever order, the
files are the same.

    FOLDER/rows/00000.parquet        the prepared set
    FOLDER/rejected.jsonl            every rejected record and why
    FOLDER/work/key                  what the tasks were planned from; another key starts afresh
    FOLDER/work/counts/00000.json    a finished task
    FOLDER/work/rejected/00000.jsonl its rejects

`work/` goes when all is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from smollora.config import PrepareSection, SourceSection
from smollora.data.duplicates import drop_duplicates
from smollora.data.prepare import (
    RowOutcome,
    holds_no_rows,
    nothing_left,
    plan_negatives,
    prepare_batches,
    records_of,
)
from smollora.data.shards import ShardWriter
from smollora.data.stretches import is_seekable, plan_source, read_task
from smollora.render import Renderer
from smollora.runs import hash_of, read_json, read_jsonl, write_json, write_jsonl, write_whole

OnRows = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Counts:
    """What one task did, or all of them together."""

    rows_in: int = 0
    rows_rendered: int = 0
    rejected: dict[str, int] | None = None
    shortened: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    built: int = 0
    """Rows that were built, not read; they are among rows_rendered."""
    built_left_out: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sums."""
        reasons = dict(self.rejected or {})
        for reason, count in (other.rejected or {}).items():
            reasons[reason] = reasons.get(reason, 0) + count
        sums = {
            name: value + getattr(other, name)
            for name, value in asdict(self).items()
            if name != "rejected"
        }
        return Counts(**sums, rejected=reasons)


@dataclass(frozen=True, slots=True)
class Workplace:
    """The folder of the stage."""

    folder: Path

    @property
    def rows(self) -> Path:
        """The prepared set."""
        return self.folder / "rows"

    @property
    def work(self) -> Path:
        """What is only needed until all tasks are done."""
        return self.folder / "work"

    def shard(self, rank: int) -> Path:
        """The shard that a task writes."""
        return self.rows / f"{rank:05d}.parquet"

    def counts(self, rank: int) -> Path:
        """What a finished task counted."""
        return self.work / "counts" / f"{rank:05d}.json"

    def rejected(self, rank: int) -> Path:
        """What a task rejected."""
        return self.work / "rejected" / f"{rank:05d}.jsonl"

    def open(self, key: str) -> None:
        """Keep the tasks that were finished under the same key, drop everything else."""
        marker = self.work / "key"
        if not marker.is_file() or marker.read_text(encoding="utf-8") != key:
            shutil.rmtree(self.work, ignore_errors=True)
            shutil.rmtree(self.rows, ignore_errors=True)
            write_whole(marker, key)


def task_key(section: PrepareSection, renderer: Renderer, *, seed: int, code: str) -> str:
    """What the shards depend on: rows, template, tokenizer, recipe and code."""
    stats = []
    for source in section.sources:
        path = Path(source.path).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats += [
            f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
            for file in files
            if file.is_file()
        ]
    return hash_of(
        section.model_dump(mode="json", exclude={"engine", "workers", "slurm"}),
        section.engine == "in_process",  # whose half-done work looks different
        seed,
        renderer.facts.model_dump(mode="json"),
        hash_of(renderer.tokenizer.backend_tokenizer.to_str()),
        code,
        stats,
    )


# ── running in this process ──────────────────────────────────────────────────────────────────────


def prepare_set(
    section: PrepareSection,
    renderer: Renderer,
    folder: Path,
    *,
    seed: int,
    code: str = "",
    on_rows: OnRows | None = None,
) -> Counts:
    """Prepare every source into `folder`, in this process; goes on where a killed run stopped.

    Raises:
        DataError: as `prepare_rows`.
        SmolloraError: the disk is full.
    """
    place = Workplace(folder)
    place.open(task_key(section, renderer, seed=seed, code=code))
    negatives = plan_negatives(section, seed)
    done = 0
    total = Counts()
    ranks: list[int] = []
    for index, source in enumerate(section.sources):
        before = total.rows_in
        for rank, records in _stretches(index, source, section, len(ranks), seed, place):
            ranks.append(rank)
            if place.counts(rank).is_file():
                counts = Counts(**read_json(place.counts(rank)))
                for _ in records if not is_seekable(source) else ():
                    pass  # a stream has to be read past what is done
            else:
                told = _from(done, on_rows) if on_rows else None
                outcomes = prepare_batches(records, source, section, renderer, negatives)
                counts = write_task(place, rank, outcomes, on_rows=told)
            done += counts.rows_in
            total = total.plus(counts)
        if total.rows_in == before:
            raise holds_no_rows(source)
    return finish(place, ranks, total, section)


def _from(done: int, on_rows: OnRows) -> OnRows:
    return lambda rows: on_rows(done + rows)


def _stretches(
    index: int,
    source: SourceSection,
    section: PrepareSection,
    rank: int,
    seed: int,
    place: Workplace,
) -> Iterator[tuple[int, Iterator[tuple[int, Any]]]]:
    """(rank, records) of the tasks of one source."""
    if is_seekable(source):
        path = Path(source.path).expanduser()
        for task in plan_source(index, source, path, rank, section.shard_rows):
            yield task.rank, read_task(task, place.work)
        return
    records = records_of(source, seed)
    while (first := next(records, None)) is not None:
        yield rank, chain([first], islice(records, section.shard_rows - 1))
        rank += 1


def write_task(
    place: Workplace,
    rank: int,
    batches: Iterable[Sequence[RowOutcome]],
    *,
    on_rows: OnRows | None = None,
) -> Counts:
    """Write what became of a task's records: rejects, shard and, last, counts."""
    counts = Counts(rejected={})
    rejects = []
    with ShardWriter(place.shard(rank)) as writer:
        for outcomes in batches:
            for outcome in outcomes:
                counts = count_outcome(counts, outcome)
                if outcome.reject:
                    rejects.append(asdict(outcome.reject))
                if outcome.rows:
                    writer.add(outcome.rows)
                if outcome.built:
                    writer.add(outcome.built)
            if on_rows:
                on_rows(counts.rows_in)
        write_jsonl(place.rejected(rank), rejects)
        writer.commit()
    write_json(place.counts(rank), asdict(counts))
    return counts


def count_outcome(counts: Counts, outcome: RowOutcome) -> Counts:
    """`counts` with one more record."""
    reasons = counts.rejected or {}
    if outcome.reject:
        reasons[outcome.reject.reason] = reasons.get(outcome.reject.reason, 0) + 1
    rows = (*outcome.rows, *outcome.built)
    return Counts(
        counts.rows_in + 1,
        counts.rows_rendered + len(rows),
        reasons,
        counts.shortened + outcome.shortened,
        counts.tokens + sum(len(row.rendered.token_ids) for row in rows),
        counts.labelled_tokens + sum(row.rendered.trained.count(True) for row in rows),
        counts.built + len(outcome.built),
        counts.built_left_out + outcome.built_left_out,
    )


# ── all tasks done ───────────────────────────────────────────────────────────────────────────────


def finish(
    place: Workplace, ranks: Sequence[int], total: Counts, section: PrepareSection
) -> Counts:
    """Put the pieces together once every task is done; can be killed and called again.

    Raises:
        DataError: no row is left.
    """
    if not total.rows_rendered:
        raise nothing_left(total.rows_in, total.rejected or {})
    known = {place.shard(rank) for rank in ranks}
    for path in place.rows.iterdir():
        if path not in known:  # half a shard that a killed task left
            path.unlink()
    repeated: list[dict[str, Any]] = []
    if section.duplicates == "drop":
        repeated = drop_duplicates(place.rows, place.work / "duplicates.jsonl")
        total = total.plus(_gone(repeated))
    names = [source.name for source in section.sources]
    with _replacing(place.folder / "rejected.jsonl") as stream:
        for rank in ranks:
            rejects = read_jsonl(place.rejected(rank)) if place.rejected(rank).is_file() else []
            for reject in sorted(rejects, key=lambda item: int(item["row"])):
                stream.write(json.dumps(reject, ensure_ascii=False) + "\n")
        for reject in sorted(repeated, key=lambda item: (names.index(item["source"]), item["row"])):
            shown = {name: reject[name] for name in ("source", "row", "reason", "detail")}
            stream.write(json.dumps(shown, ensure_ascii=False) + "\n")
    (place.work / "key").unlink()  # first: half of the folder must not look like work in progress
    shutil.rmtree(place.work)
    return replace(total, rejected=dict(sorted((total.rejected or {}).items())))


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes its place once it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream
    partial.replace(path)


def _gone(repeated: Sequence[dict[str, Any]]) -> Counts:
    """What is subtracted for repeated conversations."""
    return Counts(
        rows_rendered=-sum(item["rows"] for item in repeated),
        rejected={"duplicate": len(repeated)} if repeated else {},
        tokens=-sum(item["tokens"] for item in repeated),
        labelled_tokens=-sum(item["labelled_tokens"] for item in repeated),
        built=-sum(item["built"] for item in repeated),
    )
