"""The tasks of `prepare` as datatrove pipelines: on this machine, a Slurm cluster or a Ray cluster.

In: what `tasks.prepare_set` takes. Out: the same files. Every task runs read -> convert -> render
and verify -> write; rejects leave through datatrove's exclusion writers, and its completion markers
say which tasks are done. Repeated conversations are found when all shards are there, for no task
sees the others'.

The surprise: datatrove's Slurm launcher starts its tasks from a pickle in the work folder, written
by this process for its own jobs; nothing else is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from smollora.config import PrepareSection, SourceSection
from smollora.data.negatives import Negatives
from smollora.data.overlap import Overlap
from smollora.data.prepare import (
    BATCH,
    RowOutcome,
    convert,
    count_reasons,
    holds_no_rows,
    plan_negatives,
    raise_at_first,
    records_of,
    render_batch,
)
from smollora.data.tasks import (
    Counts,
    ShardTask,
    Workplace,
    finish,
    is_seekable,
    plan_source,
    read_task,
    spool,
    task_key,
    write_task,
)
from smollora.errors import SmolloraError, VerifyError
from smollora.formats import get_format
from smollora.render import Renderer
from smollora.runs import read_json, read_jsonl, write_json, write_jsonl, write_whole
from smollora.tokens import TokenFacts
from smollora.types import Reject
from smollora.verify import check_row


@dataclass(frozen=True)
class RendererFiles:
    """What a worker builds its renderer from, without transformers."""

    template: str
    facts: TokenFacts
    tokenizer: str
    """A tokenizer.json."""

    def load(self) -> Renderer:
        """The renderer; built once a process."""
        return _load_renderer(self.template, self.facts.model_dump_json(), self.tokenizer)


@lru_cache(maxsize=1)
def _load_renderer(template: str, facts: str, tokenizer: str) -> Renderer:
    return Renderer(template, BareTokenizer(tokenizer), TokenFacts.model_validate_json(facts))


class BareTokenizer:
    """The few methods of a Hugging Face tokenizer that rendering and verifying use."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(path)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.backend_tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens shown."""
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token; None if there is no such token."""
        found: int | None = self.backend_tokenizer.token_to_id(token)
        return found


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────


class RecordReader(PipelineStep):  # type: ignore[misc]
    """The records of one task, one document each."""

    type = "📖 - READER"
    name = "smollora records"

    def __init__(self, tasks: Sequence[ShardTask], folder: Path) -> None:
        super().__init__()
        self.tasks, self.folder = tuple(tasks), folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """One document a record; how many there were is written down at the end."""
        place = Workplace(self.folder)
        count = 0
        for number, record in read_task(self.tasks[rank], place.work):
            count += 1
            self.stat_update("documents")
            yield Document("", str(number), metadata={"number": number, "record": record})
        write_json(place.work / "read" / f"{rank:05d}.json", {"rows_in": count})


class RejectWriter(DiskWriter):  # type: ignore[misc]
    """Rejected records as lines of JSON."""

    name = "smollora rejects"

    def __init__(self, folder: Path, block: str) -> None:
        super().__init__(str(folder), f"${{rank}}-{block}.jsonl", adapter=_as_reject)

    def _write(self, document: dict[str, Any], file_handler: Any, _: str) -> None:
        file_handler.write(json.dumps(document) + "\n")


def _as_reject(writer: Any, document: Any) -> dict[str, Any]:
    return asdict(document.metadata["reject"])


class Convert(BaseFilter):  # type: ignore[misc]
    """Records that are a conversation pass."""

    name = "smollora convert"

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        section: PrepareSection,
        overlap: Overlap | None,
        rejects: Path,
    ) -> None:
        super().__init__(RejectWriter(rejects, "convert"))
        self.tasks, self.section, self.overlap = tuple(tasks), section, overlap

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Converts with the settings of the task's source."""
        self.source: SourceSection = self.section.sources[self.tasks[rank].source]
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """True, or the slug of the reason why not."""
        number = doc.metadata["number"]
        found = convert(number, doc.metadata.pop("record"), self.source, self.overlap)
        if not isinstance(found, Reject):
            doc.metadata["conversation"] = found
            return True
        if self.section.strict:
            raise_at_first([RowOutcome(number, reject=found)])
        doc.metadata["reject"] = found
        return False, found.reason


class Render(BaseFilter):  # type: ignore[misc]
    """Conversations that render and fit pass; what the proof of a row finds goes with it."""

    name = "smollora render and verify"

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        section: PrepareSection,
        files: RendererFiles,
        negatives: Negatives | None,
        rejects: Path,
    ) -> None:
        super().__init__(RejectWriter(rejects, "render"), batch_size=BATCH)
        self.tasks, self.section, self.files = tuple(tasks), section, files
        self.negatives = negatives

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Renders with the settings of the task's source."""
        self.source: SourceSection = self.section.sources[self.tasks[rank].source]
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """One conversation."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Any]) -> list[bool | tuple[bool, str]]:
        """True, or the slug of the reason why not, for each conversation."""
        renderer = self.files.load()
        asked = [(doc.metadata["number"], doc.metadata.pop("conversation")) for doc in batch]
        outcomes = list(render_batch(asked, self.source, self.section, renderer, self.negatives))
        if self.section.strict:
            raise_at_first(outcomes)
        results: list[bool | tuple[bool, str]] = []
        for doc, outcome in zip(batch, outcomes, strict=True):
            doc.metadata["outcome"] = outcome
            doc.metadata["failures"] = _failures(outcome, renderer)
            if outcome.reject:
                doc.metadata["reject"] = outcome.reject
            results.append((False, outcome.reject.reason) if outcome.reject else True)
        return results


def _failures(outcome: RowOutcome, renderer: Renderer) -> list[dict[str, Any]]:
    """What `smollora verify` would say of these rows."""
    fmt = get_format(renderer.facts.format)
    return [
        {"conversation_id": row.rendered.conversation_id, **asdict(check)}
        for row in (*outcome.rows, *outcome.built)
        for check in check_row(row.rendered, row.calls, renderer.facts, fmt, renderer.tokenizer)
        if not check.ok
    ]


class WriteShard(PipelineStep):  # type: ignore[misc]
    """The task's shard and its counts."""

    type = "💽 - WRITER"
    name = "smollora shard"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Takes every document; nothing comes after."""
        place = Workplace(self.folder)
        failures: list[dict[str, Any]] = []

        def batches() -> Iterator[list[RowOutcome]]:
            for document in data:
                failures.extend(document.metadata["failures"])
                self.stat_update("documents")
                yield [document.metadata["outcome"]]

        write_task(place, rank, batches())
        write_json(
            place.work / "unproved" / f"{rank:05d}.json",
            {"failures_in_all": len(failures), "failures": failures[:20]},
        )
        yield from ()


# ── executors ────────────────────────────────────────────────────────────────────────────────────


def prepare_on_engine(
    section: PrepareSection,
    renderer: Renderer,
    folder: Path,
    *,
    seed: int,
    code: str = "",
    overlap: Overlap | None = None,
) -> Counts:
    """Prepare every source into `folder` on `section.engine`; tasks that are done are skipped.

    Raises:
        DataError: as `prepare_rows`.
        VerifyError: a rendered row does not hold what must be learned.
        SmolloraError: tasks are left: a worker failed, or the cluster has not run them yet.
    """
    place = Workplace(folder.resolve())
    place.open(task_key(section, renderer, seed=seed, code=code))
    tasks = plan_tasks(section, place, seed)
    files = RendererFiles(
        renderer.template.source, renderer.facts, str(place.work / "tokenizer.json")
    )
    write_whole(Path(files.tokenizer), renderer.tokenizer.backend_tokenizer.to_str())
    rejects = place.work / "rejected"
    steps = [
        RecordReader(tasks, place.folder),
        Convert(tasks, section, overlap, rejects),
        Render(tasks, section, files, plan_negatives(section, seed), rejects),
        WriteShard(place.folder),
    ]
    logs = place.work / "datatrove"
    (logs / "failed.txt").unlink(missing_ok=True)
    RUN[section.engine](steps, len(tasks), section, logs)
    left = [task.rank for task in tasks if not (logs / "completions" / f"{task.rank:05d}").exists()]
    if left:
        raise SmolloraError(
            f"{len(left)} of {len(tasks)} tasks of prepare are not done: {_first_error(logs)}",
            f"the logs are in {logs / 'logs'}; the same command goes on with what is left",
        )
    return _collect(place, tasks, section)


def plan_tasks(section: PrepareSection, place: Workplace, seed: int) -> list[ShardTask]:
    """The tasks of every source; what cannot be entered in its middle is spooled first.

    Raises:
        DataError: a source is missing or holds no rows.
    """
    tasks: list[ShardTask] = []
    for index, source in enumerate(section.sources):
        path, spooled = Path(source.path).expanduser().resolve(), not is_seekable(source)
        if spooled:
            path = place.work / "spooled" / f"{index:03d}.jsonl"
            if not path.is_file():
                spool(records_of(source, seed), path)
        mine = plan_source(index, source, path, len(tasks), section.shard_rows, spooled=spooled)
        if not mine:
            raise holds_no_rows(source)
        tasks.extend(mine)
    return tasks


def _workers(section: PrepareSection, tasks: int) -> int:
    return min(section.workers or os.cpu_count() or 1, tasks)


def _run_local(steps: list[Any], tasks: int, section: PrepareSection, logs: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor

    class Quiet(LocalPipelineExecutor):  # type: ignore[misc]
        """Workers write to their log files, not into this terminal."""

        def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
            return super()._run_for_rank(rank, local_rank + 1, node_rank)

    workers = _workers(section, tasks)
    with _threads(workers):
        _quietly(Quiet(steps, tasks=tasks, workers=workers, logging_dir=str(logs)))


def _run_ray(steps: list[Any], tasks: int, section: PrepareSection, logs: Path) -> None:
    try:
        import ray
    except ImportError as error:
        raise SmolloraError(
            "prepare.engine=ray needs the package ray", "pip install 'smollora[scale]'"
        ) from error
    from datatrove.executor import RayPipelineExecutor

    workers = _workers(section, tasks)
    mine = not ray.is_initialized()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _threads(workers):
        if mine and os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False)
        elif mine:
            ray.init(
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
            )
        try:
            _quietly(
                RayPipelineExecutor(
                    steps,
                    tasks=tasks,
                    workers=workers,
                    mem_per_cpu_gb=0.5,
                    logging_dir=str(logs),
                )
            )
        finally:
            if mine:
                ray.shutdown()


def _run_slurm(steps: list[Any], tasks: int, section: PrepareSection, logs: Path) -> None:
    from datatrove.executor import SlurmPipelineExecutor

    asked = section.slurm
    executor = SlurmPipelineExecutor(
        steps,
        tasks=tasks,
        time=asked.time,
        partition=asked.partition,
        mem_per_cpu_gb=asked.memory_gb,
        qos=asked.qos,
        workers=section.workers or -1,
        job_name="smollora-prepare",
        env_command=asked.setup or f"export PATH={Path(sys.executable).parent}:$PATH",
        logging_dir=str(logs),
    )
    if not executor.get_incomplete_ranks():
        return
    if shutil.which("sbatch") is None:
        raise SmolloraError(
            "prepare.engine=slurm needs the command sbatch, which is not on PATH",
            "run it on a login node of the cluster, or take prepare.engine=local",
        )
    submitted = logs / "submitted.txt"
    if not submitted.is_file():
        _quietly(executor)
        if executor.job_id is None:
            return
        write_whole(submitted, f"{executor.job_id}\n")
    job = submitted.read_text(encoding="utf-8").strip()
    raise SmolloraError(
        f"prepare runs on the cluster as job {job}: {len(executor.get_incomplete_ranks())} of"
        f" {tasks} tasks are not done",
        f"give the same command when `squeue -j {job}` shows nothing; if tasks failed (logs in"
        f" {logs}), delete {submitted} first, and what is left is submitted again",
    )


RUN = {"local": _run_local, "ray": _run_ray, "slurm": _run_slurm}


def _quietly(executor: Any) -> None:
    """Run without datatrove's log lines in this terminal; what fails in a task is told by the
    markers that are missing.
    """
    from datatrove.utils.logging import logger

    logger.remove()
    try:
        executor.run()
    except SmolloraError:
        raise
    except Exception as error:  # of a worker: what it was stands in its log
        write_whole(Path(executor.logging_dir.resolve_paths("failed.txt")), repr(error))


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """One tokenizer thread a worker, where workers share a machine."""
    wanted = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} if workers > 1 else {}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _first_error(logs: Path) -> str:
    found = logs / "failed.txt"
    return found.read_text(encoding="utf-8") if found.is_file() else "no worker said why"


def _collect(place: Workplace, tasks: Sequence[ShardTask], section: PrepareSection) -> Counts:
    """The counts of all tasks, each checked against what its reader read."""
    total = Counts(rejected={})
    failures: list[dict[str, Any]] = []
    failed = 0
    for task in tasks:
        counts = Counts(**read_json(place.counts(task.rank)))
        name = f"{task.rank:05d}"
        files = sorted((place.work / "rejected").glob(f"{name}-*.jsonl"))
        rejects = [reject for path in files for reject in read_jsonl(path)]
        write_jsonl(place.rejected(task.rank), rejects)
        reasons = count_reasons(Reject(**reject) for reject in rejects)
        rows_in = read_json(place.work / "read" / f"{name}.json")["rows_in"]
        if rows_in != counts.rows_in + len(rejects):
            raise RuntimeError(
                f"task {task.rank} read {rows_in} records, kept {counts.rows_in} and rejected"
                f" {len(rejects)}"
            )
        total = total.plus(replace(counts, rows_in=rows_in, rejected=reasons))
        unproved = read_json(place.work / "unproved" / f"{name}.json")
        failed += unproved["failures_in_all"]
        failures.extend(unproved["failures"])
    if failed:
        first = failures[0]
        raise VerifyError(
            f"{failed} checks failed; training would teach the wrong tokens\n"
            f"  row {first['conversation_id']}: {first['name']}: {first['detail']}",
            "`smollora inspect` shows what the template loses; model.template=auto repairs it",
        )
    return finish(place, [task.rank for task in tasks], total, section)
