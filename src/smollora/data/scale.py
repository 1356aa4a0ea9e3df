"""The tasks of `prepare` run by datatrove: on this machine, a Slurm cluster or a Ray cluster.

In: what `tasks.prepare_set` takes. Out: the same files. Every task is one pipeline of `blocks.py`;
datatrove's completion markers say which are done, and a second call runs what is left. Repeated
conversations are found when all shards are there, for no task sees the others'.

The surprise: datatrove's Slurm launcher starts its tasks from a pickle in the work folder, written
by this process for its own jobs; nothing else is ever unpickled.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from datatrove.utils.logging import logger

from smollora.config import PrepareSection
from smollora.data.blocks import Convert, RecordReader, Render, WriteShard
from smollora.data.overlap import Overlap
from smollora.data.prepare import count_reasons, holds_no_rows, plan_negatives
from smollora.data.records import read_records
from smollora.data.stretches import ShardTask, is_seekable, plan_source, spool
from smollora.data.tasks import Counts, Workplace, finish, task_key
from smollora.data.worker import RendererFiles
from smollora.errors import SmolloraError, VerifyError
from smollora.render import Renderer
from smollora.runs import read_json, read_jsonl, write_jsonl, write_whole

WORKERS_NEED = ("smollora.data.blocks", "pyarrow.parquet", "jsonschema", "referencing", "regex")
RAY_STARTS = 3
"""Attempts at a cluster on this machine: on a busy one the first may run into Ray's own limit."""


def prepare_on_engine(
    section: PrepareSection,
    renderer: Renderer,
    folder: Path,
    *,
    seed: int,
    code: str = "",
    overlap: Overlap | None = None,
    on_tasks: Callable[[int, int], None] | None = None,
) -> Counts:
    """Prepare every source into `folder` on `section.engine`; tasks that are done are skipped.

    `on_tasks` is told, about once a second, how many tasks are done and how many there are.

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
    logger.remove()  # datatrove's lines belong into its log files, not into this terminal
    with _told(logs / "completions", len(tasks), on_tasks):
        RUN[section.engine](steps, len(tasks), section, logs)
    left = [task.rank for task in tasks if not (logs / "completions" / f"{task.rank:05d}").exists()]
    if left:
        why = _first_error(logs, left[0])
        raise SmolloraError(
            f"{len(left)} of {len(tasks)} tasks of prepare are not done: {why}",
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
                spool(read_records(source, seed), path)
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
        """Tasks write to their log files, not into this terminal."""

        def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
            with redirect_stderr(io.StringIO()):
                return super()._run_for_rank(rank, local_rank, node_rank)

    workers = _workers(section, tasks)
    with _threads(workers):
        if workers > 1:
            _import_once()
        _quietly(Quiet(steps, tasks=tasks, workers=workers, logging_dir=str(logs)))


def _import_once() -> None:
    """Workers are forked from a process that has imported what they need, instead of importing it
    each; that process has no threads, so that a fork is safe.
    """
    import multiprocess  # type: ignore[import-untyped]

    multiprocess.get_context("forkserver").set_forkserver_preload(list(WORKERS_NEED))


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
        if mine:
            _connect_ray(workers)
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


def _connect_ray(workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine.

    Raises:
        SmolloraError: there is none, or it did not start.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",  # nobody else is to see it
    }
    for attempt in range(RAY_STARTS):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
            return
        except Exception as error:  # Ray raises bare exceptions here, and gives itself 30 seconds
            ray.shutdown()
            if address or attempt + 1 == RAY_STARTS:
                raise SmolloraError(
                    f"no Ray cluster: {' '.join(str(error).split())[:200]}",
                    "check RAY_ADDRESS, or leave it unset for a cluster on this machine; a machine"
                    " without a free core may not start one: take prepare.engine=local",
                ) from error


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
    """Run; what fails in a task is told by the markers that are missing."""
    try:
        executor.run()
    except SmolloraError:
        raise
    except Exception as error:  # of a worker: what it was stands in its log
        write_whole(Path(executor.logging_dir.resolve_paths("failed.txt")), repr(error))


@contextmanager
def _told(
    completions: Path, tasks: int, on_tasks: Callable[[int, int], None] | None
) -> Iterator[None]:
    """Tell how far the tasks are while they run elsewhere."""
    stop = threading.Event()

    def watch() -> None:
        while on_tasks and not stop.wait(1.0):
            on_tasks(len(list(completions.glob("*"))), tasks)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


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


def _first_error(logs: Path, rank: int) -> str:
    """What stopped the run, else the last line that an unfinished task logged."""
    for path in (logs / "failed.txt", logs / "logs" / f"task_{rank:05d}.log"):
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        said = [line.strip() for line in lines if line.strip()]
        if said:
            return said[-1][:300]
    return "no worker said why"


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
        reasons = count_reasons(reject["reason"] for reject in rejects)
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
