"""Several processes of one training: real ones, over gloo, on the CPU."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from smollora import launch
from smollora.config import load_recipe
from smollora.data.batch import plan_batches
from smollora.errors import ConfigError
from smollora.train.steps import StepPlan
from tiny_runs import THREE_PACKS, copy_run, mixed_run, smollora
from tiny_training import PAD, ROWS, curve, start, torchrun, train


def accelerate(processes: int) -> tuple[str, ...]:
    """The same by accelerate. Its `--cpu` starts several processes by MPI alone; `--multi_gpu` does
    so as on GPUs, and where there are none they train on the CPU. What it is told of types and
    compiling does not matter: that is the recipe's.
    """
    return (
        *("-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"),
        *("--num_machines=1", "--mixed_precision=bf16", "--dynamo_backend=eager"),
        *("--main_process_port=0", "-m", "smollora"),
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of global steps of three packs, and a run of it up to its rows; beside it a
    bitsandbytes that must not be imported where no layer has 4 bits: peft does so of itself.
    """
    folder = tmp_path_factory.mktemp("launch")
    (folder / "packages" / "bitsandbytes").mkdir(parents=True)
    code = "raise SystemExit('bitsandbytes was imported')\n"
    (folder / "packages" / "bitsandbytes" / "__init__.py").write_text(code, encoding="utf-8")
    return mixed_run(folder, **THREE_PACKS)


def trained(mixed: Path, name: str, launcher: tuple[str, ...]) -> tuple[Path, str]:
    """(run folder, what was printed) of a training of the mixed rows."""
    run = copy_run(mixed, name)
    process = start(
        *("train", mixed / "recipe.yaml", "--runs", run.parent),
        launcher=launcher,
        packages=mixed / "packages",
    )
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return run, out


@pytest.fixture(scope="module")
def one(mixed: Path, one_thread: None) -> Path:
    """The training of one process, that of the tests."""
    run = copy_run(mixed, "one")
    ended = smollora("train", mixed / "recipe.yaml", "--runs", run.parent)
    assert ended.code == 0, ended.err
    return run


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_two_processes_train_what_one_does(
    mixed: Path, one: Path, launcher: Any, request: Any
) -> None:
    two, out = trained(mixed, f"{request.node.callspec.id}-two", launcher(2))
    summary = json.loads((two / "train" / "summary.json").read_text())
    assert (summary["processes"], summary["packs_per_step"]) == (2, 3)
    ours, theirs = curve(two), curve(one)
    assert len(ours) == len(theirs) >= 8
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5), a["step"]
        assert a["lr"] == b["lr"]
        for key in ("tokens", "row_tokens", "labelled", "loss_by_part", "accuracy_by_part"):
            assert a[key] == pytest.approx(b[key], abs=1e-3), key
    weights = load_file(two / "train" / "adapter" / "adapter_model.safetensors")
    for key, tensor in load_file(one / "train" / "adapter" / "adapter_model.safetensors").items():
        assert (weights[key] - tensor).abs().max() <= 1e-4, key
    single = json.loads((one / "train" / "summary.json").read_text())
    assert summary["validation_loss"] == pytest.approx(single["validation_loss"], abs=1e-3)
    assert out.count("train ") == 1, "one process prints"


# ── in this process ───────────────────────────────────────────────────────────────────────────


def test_what_only_one_process_can_do_is_refused_and_the_first_says_so(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(smollora("run", mixed / "recipe.yaml", "--runs", mixed / "runs"))
    assert [each.code for each in said] == [2, 2]
    told = [each.err.count("error: 2 processes were launched for") for each in said]
    assert told == [1, 0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("packs", [3, 4])
@pytest.mark.parametrize("in_step", [False, True])
def test_the_processes_take_every_pack_of_a_step_once(
    in_step: bool, packs: int, processes: int
) -> None:
    plan = plan_batches(ROWS, length=96, seed=1)
    plans = [StepPlan(plan, 8, PAD, packs, rank, processes, in_step) for rank in range(processes)]
    assert plan.steps > packs, "an epoch has more than one step"
    for epoch in range(2):
        seen: list[str] = []
        for place in range(plans[0].per_epoch):
            index = epoch * plans[0].per_epoch + place
            made = [each[index] for each in plans]
            held = [b for step in made for b in step.held]
            seen += [row for batch in held for row in batch.row_ids]
            idle = [b for step in made for b in step.batches[len(step.held) :]]
            assert all(step.batches for step in made), "every process exchanges gradients"
            if in_step:
                assert len({len(step.batches) for step in made}) == 1, "and weights"
            assert all(float(batch.weights.sum()) == 0 for batch in idle)
            assert sorted(row for b in held for row in b.row_ids) == sorted(plans[0].row_ids(index))
        assert sorted(seen) == sorted(row.conversation_id for row in ROWS)


def test_a_pack_after_the_other_is_one_large_pack(tmp_path: Path) -> None:
    """Weighted by labels, not by packs: packs of 96 tokens, all in one step, and one large pack."""
    many = train(tmp_path / "many", packs_per_step=1000)
    whole = train(tmp_path / "whole", batch_tokens=4096)
    assert many.summary["steps"] == whole.summary["steps"] == 4
    assert [e["loss"] for e in many.curve] == pytest.approx(
        [e["loss"] for e in whole.curve], abs=1e-4
    )


def test_more_processes_than_packs_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "processes", lambda: 4)
    with pytest.raises(ConfigError, match=r"4 processes for train\.packs_per_step=2"):
        train(tmp_path, packs_per_step=2)


# ── the commands of docs/training.md ──────────────────────────────────────────────────────────


def shown(launcher: str) -> list[list[str]]:
    """Commands of the page that start with these words, split as a shell splits them."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.removeprefix(launcher)) for line in lines if line.startswith(launcher)]


ACCELERATED = shown("accelerate launch ")


def packs_of(module: str, words: list[str]) -> int:
    """Packs a step of the training that is started, which is one of a shipped recipe, whose rows
    the page prepares with the same settings.
    """
    verb, recipe, *rest = words
    assert (module, verb) == ("smollora", "train")
    assert [recipe, *rest] in shown("smollora mix ")
    settings = rest[: rest.index("--runs")] if "--runs" in rest else rest
    packs = load_recipe(recipe, settings).train.packs_per_step
    assert packs
    return packs


def test_the_page_shows_every_way_to_launch() -> None:
    asked = [" ".join(words) for words in ACCELERATED]
    for way in ("--multi_gpu", "--fsdp_version 2", "--zero_stage", "--deepspeed_config_file"):
        assert any(way in words for words in asked), way
    assert any("--num_machines 2" in words for words in asked) and shown("torchrun ")


@pytest.mark.parametrize("words", ACCELERATED, ids=" ".join)
def test_accelerate_reads_the_commands_of_the_page(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its own parser and checks; the environment that it makes for its processes is one that is
    not refused, and asks for what the page says.
    """
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = launch_command_parser().parse_args(words)
    asked, _, _ = _validate_launch_command(asked)
    assert asked.module
    packs = packs_of(asked.training_script, asked.training_script_args)
    assert asked.num_processes <= packs
    if asked.use_deepspeed:
        asked.deepspeed_fields_from_accelerate_config = ""  # no config file
        _, made = prepare_deepspeed_cmd_env(asked)
    else:
        made = prepare_multi_gpu_env(asked)
    for variable, value in made.items():
        if variable.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(variable, value)
    monkeypatch.setenv("WORLD_SIZE", str(asked.num_processes))
    launch.check_sharding()
    assert launch.shards() is not asked.multi_gpu


@pytest.mark.parametrize("words", shown("torchrun "), ids=" ".join)
def test_torchrun_reads_the_commands_of_the_page(words: list[str]) -> None:
    asked = get_args_parser().parse_args(words)
    assert asked.module
    packs = packs_of(asked.training_script, asked.training_script_args)
    assert int(asked.nnodes) * int(asked.nproc_per_node) <= packs
