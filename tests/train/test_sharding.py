"""Weights spread over processes (FSDP 2, DeepSpeed's ZeRO): real processes, over gloo, on the CPU.
The other side of every number is a training of one process, which spreads nothing: that of the
tests, as starting one takes longer than all of its steps.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smollora import launch
from smollora.errors import ConfigError
from smollora.runs import write_json
from smollora.train.checks import check_settings
from tiny_runs import THREE_PACKS, copy_run, mixed_run, smollora
from tiny_training import (
    ENDS,
    ROWS,
    curve,
    last_checkpoint,
    section,
    start,
    wait_for_checkpoint,
)

EXACT = 1e-5
ONE = ("-m", "smollora")


def sharding(processes: int, *way: object) -> tuple[str, ...]:
    """The start of a command line that asks accelerate for `way`; types and compiling, which it is
    asked for as well, are the recipe's.
    """
    asked = [str(word) for word in way]
    if "--config_file" not in asked:  # DeepSpeed's own file has types
        asked.append("--mixed_precision=bf16")
    return (
        *("-m", "accelerate.commands.launch", *asked, f"--num_processes={processes}"),
        *("--num_machines=1", "--dynamo_backend=eager", "--main_process_port=0"),
        *("-m", "smollora"),
    )


@dataclass(frozen=True)
class Mixed:
    """Rows of a recipe, and what one process trains of them."""

    folder: Path
    recipe: Path
    one: Path

    def copy(self, name: str, run: Path | None = None) -> Path:
        """A run up to its rows, or a copy of `run`, that a training may go on in."""
        return copy_run(self.folder, name, run)

    def finish_here(self, run: Path) -> None:
        """Train to the end in this process."""
        ended = smollora("train", self.recipe, "--runs", run.parent)
        assert ended.code == 0, ended.err

    def start(self, run: Path, launcher: tuple[str, ...]) -> Any:
        """A training of the run, in processes of its own."""
        return start("train", self.recipe, "--runs", run.parent, launcher=launcher)

    def finish(self, run: Path, launcher: tuple[str, ...]) -> str:
        """Train to the end; what was printed."""
        out, err = (process := self.start(run, launcher)).communicate(timeout=600)
        assert process.returncode == 0, err
        return str(out)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Mixed]:
    """A recipe of global steps of three packs in an embeddings mode, a run of it up to its rows,
    and the training of one process.
    """

    @cache
    def make(embeddings: str) -> Mixed:
        folder = tmp_path_factory.mktemp(embeddings)
        settings = {**THREE_PACKS, "train__embeddings": embeddings, "train__checkpoint_every": 2}
        settings |= {"train__epochs": 6, "train__max_epochs": 6, "train__loraplus_lr_ratio": 2}
        mixed_run(folder, **settings)
        found = Mixed(folder, folder / "recipe.yaml", folder / "one" / "tiny")
        found.finish_here(found.copy("one"))
        return found

    return make


def same_training(found: Path, expected: Path, *, held: float, resumed_at: int) -> None:
    ours, theirs = curve(found), curve(expected)
    assert len(ours) == len(theirs) >= 8
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=EXACT), a["step"]
        assert a["lr"] == b["lr"]
        for key in ("tokens", "row_tokens", "labelled", "loss_by_part", "accuracy_by_part"):
            assert a[key] == pytest.approx(b[key], abs=1e-3), key
    weights, expected_weights = (
        load_file(run / "train" / "adapter" / "adapter_model.safetensors")
        for run in (found, expected)
    )
    assert weights.keys() == expected_weights.keys()
    for key, tensor in expected_weights.items():
        assert (weights[key] - tensor).abs().max() <= 1e-4, key
    summaries = [json.loads((run / "train/summary.json").read_text()) for run in (found, expected)]
    assert summaries[0]["weights_held"] == pytest.approx(held, abs=0.05)
    assert summaries[1]["weights_held"] == 1
    assert summaries[0]["resumed_at"] == resumed_at >= 4
    assert summaries[0]["validation_losses"] == pytest.approx(
        summaries[1]["validation_losses"], abs=2e-4
    )
    assert summaries[0]["validation_loss"] == pytest.approx(
        summaries[1]["validation_loss"], abs=2e-4
    )


@pytest.mark.parametrize(
    ("embeddings", "relay"),
    [("tool_tokens", ("fsdp", "zero-2", "zero-3")), ("lora", ("zero-3", "fsdp"))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_shared_among_two_processes_killed_and_gone_on_with_a_training_is_that_of_one_and_merges(
    embeddings: str, relay: tuple[str, ...], mixed: Callable[[str], Mixed]
) -> None:
    """Each way goes on with what the one before it left when it was killed, the last one to the
    end. What each left is also finished by one process, that of the tests or a new one.
    """
    rows = mixed(embeddings)
    run, kept = rows.copy("relay"), 0
    *killed, last = relay
    for way in killed:
        kept = kill_halfway(rows, run, launcher_of(way, rows.folder), max(4, kept + 2))
        alone = rows.copy(f"after-{way}", run)
        if way == "zero-2":
            assert "WARNING" not in rows.finish(alone, ONE), "DeepSpeed: installed, and not used"
        else:
            rows.finish_here(alone)
        same_training(alone, rows.one, held=1.0, resumed_at=kept)
    out = rows.finish(run, launcher_of(last, rows.folder))
    assert out.count("train ") == 1, "one process prints"
    same_training(run, rows.one, held=0.5, resumed_at=kept)
    said = smollora("merge", rows.recipe, "--runs", run.parent)
    assert said.code == 0, said.err
    assert json.loads((run / "merge" / "summary.json").read_text())["passed"]


def launcher_of(way: str, folder: Path) -> tuple[str, ...]:
    """FSDP 2 and ZeRO 2 from options; ZeRO 3 from accelerate's config file and DeepSpeed's own,
    which names an optimizer and types that are the recipe's to choose, and limits at which a tiny
    model is spread.
    """
    if way == "fsdp":
        return sharding(2, "--use_fsdp", "--fsdp_version=2")
    if way == "zero-2":
        return sharding(2, "--use_deepspeed", "--zero_stage=2")
    write_json(folder / "zero.json", ZERO_3)
    own = {"deepspeed_config_file": f"{folder}/zero.json"}
    write_json(folder / "accelerate.json", {**ACCELERATE, "deepspeed_config": own})
    return sharding(2, "--config_file", folder / "accelerate.json")


ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
}
ZERO_3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "reduce_bucket_size": "auto",
    },
    "optimizer": {"type": "SGD", "params": {"lr": 1}},
    "bf16": {"enabled": True},
    "gradient_clipping": 1e-6,
}


def kill_halfway(rows: Mixed, run: Path, launcher: tuple[str, ...], step: int) -> int:
    """Train until a checkpoint of `step` is there, then SIGKILL: the step of the last one."""
    process = rows.start(run, launcher)
    wait_for_checkpoint(process, run, step)
    kill_tree(process)
    assert not (run / "train" / "adapter").exists()
    return last_checkpoint(run)


def kill_tree(process: Any) -> None:
    """SIGKILL the launcher and the processes that it started."""
    import psutil

    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for child in family:
        if child.is_running():
            child.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"dora": True}, r"train\.dora"),
        ({"compile": "on"}, r"train\.compile=on"),
        ({"probe_every": 2}, r"train\.probe_every"),
        ({"embeddings": "frozen", "modules_to_save": ["norm"]}, r"train\.modules_to_save"),
    ],
)
def test_what_needs_whole_weights_is_refused(
    more: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for_sharding(monkeypatch, FSDP)
    check_settings(ROWS, section(), ENDS)
    with pytest.raises(ConfigError, match=says) as refused:
        check_settings(ROWS, section(**more), ENDS)
    assert "are spread over 2 processes" in str(refused.value)
    assert "or launch without --use_fsdp" in str(refused.value.hint)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "WORLD_SIZE": "2",
}
"""What accelerate sets for the processes that it starts."""


@pytest.mark.parametrize(
    ("asked", "variable", "value", "says"),
    [
        (FSDP, "FSDP_VERSION", "1", "FSDP 1 is asked for"),
        (FSDP, "FSDP_ACTIVATION_CHECKPOINTING", "true", "own activation checkpointing"),
        (FSDP, "FSDP_OFFLOAD_PARAMS", "true", "keep weights in the processor's memory"),
        (FSDP, "WORLD_SIZE", "1", "one process was launched"),
        (ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE", "1", "ZeRO stage 1 is asked for"),
        (ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu", "asked to offload"),
        (ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "nvme", "asked to offload"),
        (ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE", "/none/zero.json", "cannot be read"),
        (ZERO, "WORLD_SIZE", "1", "one process was launched"),
    ],
)
def test_other_ways_to_shard_are_refused(
    asked: dict[str, str],
    variable: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask_for_sharding(monkeypatch, asked)
    launch.check_sharding()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=says) as refused:
        launch.check_sharding()
    assert refused.value.hint


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "ZeRO stage 0"),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}',
            "offload_param",
        ),
    ],
)
def test_what_deepspeeds_own_file_asks_for_is_refused_as_well(
    written: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zero.json"
    path.write_text(written, encoding="utf-8")
    ask_for_sharding(monkeypatch, {**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})
    with pytest.raises(ConfigError, match=says):
        launch.check_sharding()


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_for_sharding(monkeypatch, ZERO)
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed") as refused:
        launch.check_sharding()
    assert "smollora[deepspeed]" in str(refused.value.hint)


def ask_for_sharding(monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]) -> None:
    """The environment that accelerate makes."""
    for variable, value in asked.items():
        monkeypatch.setenv(variable, value)
