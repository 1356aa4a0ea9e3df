"""Whoever runs the tasks, the files are the same; what a cluster would be sent is run here."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_sets import CHATML, digests, renderer_files, small_renderer, small_section
from smollora.config import PrepareSection, SlurmSection, SourceSection
from smollora.data.scale import plan_tasks, prepare_on_engine
from smollora.data.tasks import Counts, Workplace, prepare_set
from smollora.data.worker import bare_tokenizer
from smollora.errors import ConfigError, DataError, SmolloraError, VerifyError
from smollora.render import Renderer
from smollora.stages import import_scale
from tiny_models import tiny_tokenizer


def on(engine: str, section: PrepareSection, folder: Path, workers: int = 1) -> Counts:
    """Prepare on an engine."""
    asked = section.model_copy(update={"engine": engine, "workers": workers})
    return prepare_on_engine(asked, small_renderer(folder), folder / engine, seed=7)


@pytest.fixture
def section(tmp_path: Path) -> PrepareSection:
    """Five tasks with rejects, built rows and duplicates."""
    return small_section(tmp_path, negatives=0.4, duplicates="remove")


@pytest.fixture
def expected(tmp_path: Path, section: PrepareSection) -> tuple[Counts, dict[str, str]]:
    """What one process makes of it."""
    counts = prepare_set(section, small_renderer(tmp_path), tmp_path / "alone", seed=7)
    return counts, digests(tmp_path / "alone")


Expected = tuple[Counts, dict[str, str]]


def test_a_pipeline_in_this_process_leaves_the_same_files_and_says_nothing(
    tmp_path: Path,
    section: PrepareSection,
    expected: Expected,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert on("local", section, tmp_path) == expected[0]
    assert digests(tmp_path / "local") == expected[1]
    assert capfd.readouterr() == ("", "")


def test_two_processes_leave_the_same_files(
    tmp_path: Path, section: PrepareSection, expected: Expected
) -> None:
    assert on("local", section, tmp_path, workers=2) == expected[0]
    assert digests(tmp_path / "local") == expected[1]


@pytest.mark.slow
def test_a_ray_cluster_of_two_workers_leaves_the_same_files(
    tmp_path: Path, section: PrepareSection, expected: Expected
) -> None:
    """A real cluster, started on this machine for the call and stopped after it."""
    import ray

    assert on("ray", section, tmp_path, workers=2) == expected[0]
    assert digests(tmp_path / "ray") == expected[1]
    assert not ray.is_initialized()


def test_a_ray_cluster_that_is_not_there_is_named(
    tmp_path: Path, section: PrepareSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance at 10.0.0.9:6379")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    with pytest.raises(SmolloraError, match=r"no Ray cluster: Could not find") as caught:
        on("ray", section, tmp_path)
    assert "RAY_ADDRESS" in caught.value.hint


# ── Slurm, with the commands of a cluster played by scripts ───────────────────────────────────

SBATCH = """#!/bin/sh
for script; do :; done
count=$(ls "$CLUSTER" | grep -c '^script')
cp "$script" "$CLUSTER/script-$count.sh"
echo "$@" > "$CLUSTER/arguments-$count"
echo "Submitted batch job 7$count"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder into which `sbatch` puts what it is given."""
    commands, taken = tmp_path / "commands", tmp_path / "cluster"
    commands.mkdir()
    taken.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/sh\necho here\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(taken))
    return taken


def test_slurm_is_sent_one_array_whose_tasks_leave_the_same_files(
    tmp_path: Path, section: PrepareSection, expected: Expected, cluster: Path
) -> None:
    asked = section.model_copy(
        update={"slurm": SlurmSection(partition="long", time="01:30:00", memory_gb=6, qos="low")}
    )
    with pytest.raises(SmolloraError, match="as job 70: 5 of 5 tasks are not done") as caught:
        on("slurm", asked, tmp_path, workers=2)
    assert "squeue -j 70" in caught.value.hint
    script = cluster / "script-0.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script.read_text(), re.M))
    wanted = {"array": "0-4%2", "partition": "long", "time": "01:30:00", "mem-per-cpu": "6G"}
    wanted |= {"qos": "low", "cpus-per-task": "1", "nodes": "1", "job-name": "smollora-prepare"}
    assert wanted.items() <= options.items()
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in lines

    with pytest.raises(SmolloraError, match="5 of 5 tasks are not done"):
        on("slurm", asked, tmp_path, workers=2)
    assert not (cluster / "script-2.sh").exists(), "a second call submits nothing again"

    environment = {**os.environ, "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}
    for task in range(5):
        done = subprocess.run(
            ["bash", str(script)],
            env={**environment, "SLURM_ARRAY_TASK_ID": str(task)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert on("slurm", asked, tmp_path, workers=2) == expected[0]
    assert digests(tmp_path / "slurm") == expected[1]


def test_without_sbatch_the_person_is_told(
    tmp_path: Path, section: PrepareSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SmolloraError, match="sbatch, which is not on PATH"):
        on("slurm", section, tmp_path)


# ── what is left, what failed ─────────────────────────────────────────────────────────────────


def test_tasks_that_are_done_are_not_done_again(
    tmp_path: Path, section: PrepareSection, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollora.data.scale._collect", lambda *_: Counts())
    on("local", section, tmp_path)
    rows = tmp_path / "local" / "rows"
    work = tmp_path / "local" / "work"
    before = {path.name: path.stat().st_ino for path in rows.iterdir()}
    (work / "datatrove" / "completions" / "00003").unlink()
    (rows / "00003.parquet").write_bytes(b"half of it")
    monkeypatch.undo()
    assert on("local", section.model_copy(update={"duplicates": "remove"}), tmp_path) == expected[0]
    assert digests(tmp_path / "local") == expected[1]
    after = {path.name: path.stat().st_ino for path in rows.iterdir()}
    assert {name for name in before if before[name] != after[name]} >= {"00003.parquet"}
    assert before["00000.parquet"] == after["00000.parquet"]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from small_sets import small_renderer, small_section

if __name__ == "__main__":
    from smollora.data.scale import prepare_on_engine
    folder = Path(sys.argv[1])
    section = small_section(
        folder, tools=900, negatives=0.4, duplicates="remove", engine="local", workers=2
    )
    prepare_on_engine(section, small_renderer(folder), folder / "local", seed=7)
"""


@pytest.mark.slow
def test_workers_that_were_killed_are_gone_on_with_and_nothing_stands_twice(
    tmp_path: Path,
) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    tests = str(Path(__file__).parent.parent)
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), tests], start_new_session=True
    )
    completions = tmp_path / "local" / "work" / "datatrove" / "completions"
    while child.poll() is None and not (completions.is_dir() and any(completions.iterdir())):
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    assert (tmp_path / "local" / "work" / "key").is_file()
    section = small_section(tmp_path, tools=900, negatives=0.4, duplicates="remove")
    counts = prepare_set(section, small_renderer(tmp_path), tmp_path / "alone", seed=7)
    assert on("local", section, tmp_path) == counts
    assert digests(tmp_path / "local") == digests(tmp_path / "alone")


def test_strict_names_the_row(tmp_path: Path, section: PrepareSection) -> None:
    strict = section.model_copy(update={"strict": True})
    with pytest.raises(DataError, match="row 1 of a: empty_turn"):
        on("local", strict, tmp_path)


def test_what_stopped_a_worker_is_told_and_the_rest_is_gone_on_with(
    tmp_path: Path, section: PrepareSection, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr("smollora.data.blocks.render_batch", fail)
    with pytest.raises(SmolloraError, match=r"5 of 5 tasks .*the machine is on fire") as caught:
        on("local", section, tmp_path)
    assert "logs" in caught.value.hint
    monkeypatch.undo()
    assert on("local", section, tmp_path) == expected[0]
    assert digests(tmp_path / "local") == expected[1]


def test_a_template_that_drops_calls_is_noticed_by_the_tasks(
    tmp_path: Path, section: PrepareSection
) -> None:
    loses = CHATML.replace("tool_call", "tool_cal")
    assert loses != CHATML
    files = renderer_files(tmp_path)
    renderer = Renderer(loses, bare_tokenizer(files.tokenizer), files.facts)
    asked = section.model_copy(update={"engine": "local", "workers": 1})
    with pytest.raises(VerifyError, match="checks failed"):
        prepare_on_engine(asked, renderer, tmp_path / "local", seed=7)


def test_a_source_without_rows_is_named(tmp_path: Path, section: PrepareSection) -> None:
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"source b .* holds no rows"):
        on("local", section, tmp_path)


def test_what_cannot_be_entered_in_its_middle_is_spooled(tmp_path: Path) -> None:
    source = SourceSection(name="s", path="starter:tools", kind="tool", share=0.05)
    section = PrepareSection(sources=(source,), shard_rows=20, engine="local", workers=1)
    place = Workplace(tmp_path / "set")
    tasks = plan_tasks(section, place, seed=7)
    assert len(tasks) > 1 and all(task.spooled for task in tasks)
    alone = section.model_copy(update={"engine": "in_process"})
    renderer = small_renderer(tmp_path)
    counts = prepare_set(alone, renderer, tmp_path / "alone", seed=7)
    assert prepare_on_engine(section, renderer, tmp_path / "set", seed=7) == counts
    assert digests(tmp_path / "set") == digests(tmp_path / "alone")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smollora.data.scale", "smollora.data.blocks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("smollora.data.scale", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "datatrove"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="needs datatrove") as caught:
        import_scale("ray")
    assert "smollora[scale]" in caught.value.hint


def test_the_workers_tokenizer_is_the_one_of_this_process(tmp_path: Path) -> None:
    mine = tiny_tokenizer()
    theirs = bare_tokenizer(renderer_files(tmp_path).tokenizer)
    for text in ("What is it?", "<tool_call>\n{}</tool_call><|im_end|>\n", " naïve 東京 🙂"):
        ids = mine.encode(text, add_special_tokens=False)
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == mine.decode(ids)
    for token in ("<tool_call>", "<|im_end|>", "no such token"):
        assert theirs.convert_tokens_to_ids(token) == mine.convert_tokens_to_ids(token)
