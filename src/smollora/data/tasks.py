"""Preparing in tasks: a task is a stretch of one source's records, and makes one shard.

In: the recipe's prepare section, a `Renderer`, the folder of the stage. Out: `rows/NNNNN.parquet`,
`rejected.parquet`, `changed.parquet`, and what was counted. A task leaves its shard, its rejects
and, written last, its counts, so that a killed run goes on with the first task that has none. Which
records a task holds depends on the source and `shard_rows` alone: whoever runs the tasks, and in
whatever order, the files are the same.

    FOLDER/rows/00000.parquet        the prepared set
    FOLDER/rejected.parquet          every rejected record and why
    FOLDER/changed.parquet           every change to a record that is kept
    FOLDER/work/key                  what the tasks were planned from; another key starts afresh
    FOLDER/work/counts/00000.json    a finished task
    FOLDER/work/rejected/00000.jsonl its rejects; beside it, its changes and sketches

`work/` goes when all is done.
"""

from __future__ import annotations

import gc
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from smollora.config import ENGINE_KEYS, PrepareSection, SourceSection
from smollora.data.ledger import write_ledger
from smollora.data.overlap import Overlap
from smollora.data.prepare import (
    RowOutcome,
    count_reasons,
    holds_no_rows,
    nothing_left,
    plan_negatives,
    prepare_batches,
)
from smollora.data.records import read_records
from smollora.data.repeats import list_repeats, sketch_entry, write_sketches
from smollora.data.shards import PreparedRow, ShardWriter, drop_rows
from smollora.data.stretches import is_seekable, plan_source, read_task
from smollora.render import Renderer
from smollora.runs import hash_of, read_json, read_jsonl, write_json, write_jsonl, write_whole

OnRows = Callable[[int], None]
NEW_OBJECTS = 50_000
"""Objects between two looks for unreachable cycles, of some hundred bytes each."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one task did, or all of them together."""

    rows_in: int = 0
    rows_rendered: int = 0
    rejected: dict[str, int] | None = None
    changed: dict[str, int] | None = None
    forms: dict[str, int] | None = None
    """Records that rendered, by source and record form: "mine: openai"."""
    shortened: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    built: int = 0
    """Rows that were built, not read; they are among rows_rendered."""
    built_left_out: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sums."""
        sums: dict[str, Any] = {}
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, int):
                sums[name] = mine + theirs
                continue
            sums[name] = dict(mine or {})
            for reason, count in (theirs or {}).items():
                sums[name][reason] = sums[name].get(reason, 0) + count
        return Counts(**sums)


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

    def changed(self, rank: int) -> Path:
        """What a task changed in the records that it kept."""
        return self.work / "changed" / f"{rank:05d}.jsonl"

    def sketches(self, rank: int) -> Path:
        """What a task's records are compared by."""
        return self.work / "sketches" / f"{rank:05d}.parquet"

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
    for read in (*(source.path for source in section.sources), *section.overlap_with):
        path = Path(read).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        stats += [
            f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}"
            for file in files
            if file.is_file()
        ]
    return hash_of(
        section.model_dump(mode="json", exclude=set(ENGINE_KEYS)),
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
    overlap: Overlap | None = None,
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
                outcomes = prepare_batches(records, source, section, renderer, negatives, overlap)
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
    records = read_records(source, seed)
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
    counts = Counts(rejected={}, changed={}, forms={})
    rejects: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    sketches: list[dict[str, Any]] = []
    with rare_collections(), ShardWriter(place.shard(rank)) as writer:
        for outcomes in batches:
            counts = counts.plus(count_outcomes(outcomes))
            for outcome in outcomes:
                if outcome.reject:
                    rejects.append(asdict(outcome.reject))
                changes.extend(asdict(change) for change in outcome.changes)
                if outcome.sketch:
                    sketches.append(sketch_entry(outcome))
                if outcome.rows:
                    writer.add(outcome.rows)
                if outcome.built:
                    writer.add(outcome.built)
            if on_rows:
                on_rows(counts.rows_in)
        write_jsonl(place.rejected(rank), rejects)
        write_jsonl(place.changed(rank), changes)
        if sketches:
            write_sketches(sketches, place.sketches(rank))
        writer.commit()
    write_json(place.counts(rank), asdict(counts))
    return counts


@contextmanager
def rare_collections() -> Iterator[None]:
    """Python looks for unreachable cycles whenever 700 objects are new, and a row is made of as
    many: a tenth of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def count_outcomes(outcomes: Sequence[RowOutcome]) -> Counts:
    """What became of some records."""
    changed: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    rows: list[PreparedRow] = []
    for outcome in outcomes:
        made = (*outcome.rows, *outcome.built)
        changed.update(dict.fromkeys((change.reason for change in outcome.changes), 1))
        if outcome.form and made:
            forms[f"{made[0].source}: {outcome.form}"] += 1
        rows += made
    return Counts(
        rows_in=len(outcomes),
        rows_rendered=len(rows),
        rejected=count_reasons(item.reject.reason for item in outcomes if item.reject),
        changed=dict(changed),
        forms=dict(forms),
        shortened=sum(outcome.shortened for outcome in outcomes),
        tokens=sum(len(row.rendered.token_ids) for row in rows),
        labelled_tokens=sum(row.rendered.trained.count(True) for row in rows),
        built=sum(len(outcome.built) for outcome in outcomes),
        built_left_out=sum(outcome.built_left_out for outcome in outcomes),
    )


# ── all tasks done ───────────────────────────────────────────────────────────────────────────────


def finish(
    place: Workplace, ranks: Sequence[int], total: Counts, section: PrepareSection
) -> Counts:
    """Put the pieces together once every task is done; can be killed and called again.

    Raises:
        DataError: no row is left.
    """
    known = {place.shard(rank) for rank in ranks}
    for path in place.rows.iterdir():
        if path not in known:  # half a shard that a killed task left
            path.unlink()
    repeated = _listed_repeats(place, ranks, section)
    gone = [item for item in repeated if item["removed"]]
    noted = [item for item in repeated if not item["removed"]]
    total = total.plus(_take_out(place, gone))
    without = {(item["rank"], item["row"]) for item in gone}
    rejects = _in_order(ranks, place.rejected, gone, set())
    rejected = write_ledger(rejects, place.folder / "rejected.parquet")
    changes = _in_order(ranks, place.changed, noted, without)
    changed = write_ledger(changes, place.folder / "changed.parquet")
    if sum(rejected.values()) != sum((total.rejected or {}).values()):
        raise RuntimeError(f"{rejected} is in the ledger and {total.rejected} was counted")
    (place.work / "key").unlink()  # first: half of the folder must not look like work in progress
    shutil.rmtree(place.work)
    if not total.rows_rendered:
        raise nothing_left(total.rows_in, rejected)
    return replace(total, rejected=rejected, changed=changed)


def _in_order(
    ranks: Sequence[int],
    pieces: Callable[[int], Path],
    more: Sequence[dict[str, Any]],
    without: set[tuple[int, int]],
) -> Iterator[dict[str, Any]]:
    """The entries that the tasks wrote and those found at the end, by task and row; none of the
    records (rank, row) in `without`.
    """
    late: dict[int, list[dict[str, Any]]] = {}
    for item in more:
        late.setdefault(item["rank"], []).append(item)
    for rank in ranks:
        entries = read_jsonl(pieces(rank)) if pieces(rank).is_file() else []
        for entry in sorted((*entries, *late.get(rank, ())), key=lambda entry: int(entry["row"])):
            if (rank, entry["row"]) not in without:
                yield entry


def _listed_repeats(
    place: Workplace, ranks: Sequence[int], section: PrepareSection
) -> list[dict[str, Any]]:
    """The rows that repeat others. They are written down before the first shard is rewritten, so
    that a second call after a kill takes out the same ones.
    """
    listed = place.work / "repeats.jsonl"
    if not listed.is_file():
        paths = {rank: place.sketches(rank) for rank in ranks if place.sketches(rank).is_file()}
        write_jsonl(listed, list(list_repeats(paths, section)))
    return read_jsonl(listed)


def _take_out(place: Workplace, gone: Sequence[dict[str, Any]]) -> Counts:
    """Rewrite the shards without these rows; what went, as counts below zero."""
    by_rank: dict[int, list[int]] = {}
    for item in gone:
        by_rank.setdefault(item["rank"], []).append(item["row"])
    for rank, rows in by_rank.items():
        drop_rows(place.shard(rank), rows)
    return Counts(
        rejected=count_reasons(item["reason"] for item in gone),
        rows_rendered=-sum(item["rows"] for item in gone),
        tokens=-sum(item["tokens"] for item in gone),
        labelled_tokens=-sum(item["labelled_tokens"] for item in gone),
        built=-sum(item["built"] for item in gone),
    )
