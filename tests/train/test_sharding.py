"""Weights spread over processes (FSDP 2): real processes, over gloo, on the CPU. The other side of
every number is a training of one process, which spreads nothing.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smollora import launch
from smollora.errors import ConfigError
from smollora.train.checks import check_settings
from tiny_runs import changed, smollora, tiny_recipe, write_model, write_recipe
from tiny_training import ENDS, ROWS, curve, last_checkpoint, section, start, wait_for_checkpoint

EXACT = 1e-5
ONE = ("-m", "smollora")


def sharding(processes: int) -> tuple[str, ...]:
    """The start of a command line that asks accelerate for FSDP 2; types and compiling, which it is
    asked for as well, are the recipe's.
    """
    return (
        *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version=2"),
        *(f"--num_processes={processes}", "--num_machines=1", "--mixed_precision=bf16"),
        *("--dynamo_backend=eager", "--main_process_port=0", "-m", "smollora"),
    )


def whole(processes: int) -> tuple[str, ...]:
    """The start of a command line whose processes hold the whole model."""
    return (
        *("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", "smollora"),
    )


@pytest.fixture(scope="module", params=["tool_tokens", "lora"])
def mixed(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of global steps of three packs, and a run of it up to its rows."""
    folder = tmp_path_factory.mktemp("sharded")
    recipe = changed(
        tiny_recipe(folder, write_model(folder / "model")),
        train__embeddings=request.param,
        train__epochs=4,
        train__max_epochs=6,
        train__batch_tokens=384,
        train__packs_per_step=3,
        train__lr=2e-3,
        train__weights={"open": 4.0, "text": 0.5},
        train__checkpoint_every=2,
    )
    write_recipe(folder / "recipe.yaml", recipe)
    said = smollora("mix", folder / "recipe.yaml", "--runs", folder / "runs")
    assert said.code == 0, said.err
    return folder


def copy_run(mixed: Path, name: str) -> Path:
    run = mixed / name / "tiny"
    shutil.copytree(mixed / "runs" / "tiny", run, symlinks=True)
    return run


def trained(mixed: Path, name: str, launcher: tuple[str, ...], *more: str) -> tuple[Path, str]:
    """(run folder, what was printed) of a training of the mixed rows."""
    run = copy_run(mixed, name)
    command = ("train", mixed / "recipe.yaml", "--runs", run.parent, *more)
    process = start(*command, launcher=launcher)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return run, out


@pytest.fixture(scope="module")
def one(mixed: Path) -> Path:
    """What one process trains."""
    return trained(mixed, "one", ONE)[0]


def same_training(found: Path, expected: Path, *, held: float = 0.5) -> None:
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
    assert summaries[0]["validation_losses"] == pytest.approx(
        summaries[1]["validation_losses"], abs=2e-4
    )
    assert summaries[0]["validation_loss"] == pytest.approx(
        summaries[1]["validation_loss"], abs=2e-4
    )


def test_shared_among_two_processes_the_training_is_that_of_one_and_merges(
    mixed: Path, one: Path
) -> None:
    two, out = trained(mixed, "two", sharding(2))
    same_training(two, one)
    assert out.count("train ") == 1, "one process prints"
    said = smollora("merge", mixed / "recipe.yaml", "--runs", two.parent)
    assert said.code == 0, said.err
    assert json.loads((two / "merge" / "summary.json").read_text())["passed"]


def test_killed_and_given_again_it_goes_on(mixed: Path, one: Path) -> None:
    """Sharded as before, or in processes that hold the whole model: checkpoints are the same."""
    run = copy_run(mixed, "killed")
    process = start("train", mixed / "recipe.yaml", "--runs", run.parent, launcher=sharding(2))
    wait_for_checkpoint(process, run, 4)
    kill_tree(process)
    assert not (run / "train" / "adapter").exists()
    kept = last_checkpoint(run)
    for launcher, held in ((sharding(2), 0.5), (whole(2), 1.0)):
        again = mixed / f"again-{held}" / "tiny"
        shutil.copytree(run, again, symlinks=True)
        command = ("train", mixed / "recipe.yaml", "--runs", again.parent)
        process = start(*command, launcher=launcher)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        same_training(again, one, held=held)
        assert json.loads((again / "train/summary.json").read_text())["resumed_at"] == kept > 0


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
    ask_for_sharding(monkeypatch)
    check_settings(ROWS, section(), ENDS)
    with pytest.raises(ConfigError, match=says) as refused:
        check_settings(ROWS, section(**more), ENDS)
    assert "FSDP spreads them over 2 processes" in str(refused.value)
    assert "or launch without --use_fsdp" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is asked for"),
        ("FSDP_VERSION", "1", "FSDP 1 is asked for"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "own activation checkpointing"),
        ("FSDP_OFFLOAD_PARAMS", "true", "keep weights in the processor's memory"),
        ("WORLD_SIZE", "1", "one process was launched"),
    ],
)
def test_other_ways_to_shard_are_refused(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for_sharding(monkeypatch)
    launch.check_sharding()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=says) as refused:
        launch.check_sharding()
    assert refused.value.hint


def ask_for_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that `sharding(2)` makes."""
    for variable, value in (
        ("ACCELERATE_USE_FSDP", "true"),
        ("FSDP_VERSION", "2"),
        ("WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(variable, value)
