"""A training that is cut off goes on as if nothing had happened: real processes, really killed.

What is killed is a process of its own, and so is the one that goes on and is interrupted. What is
never cut off, and what goes on to its end, runs in the process of the tests, which saves importing
everything anew: it is another process than the one that was cut off.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smollora.data.batch import Refusal, Row
from smollora.errors import ConfigError, SmolloraError
from smollora.train import checkpoint
from tiny_runs import copy_run, mixed_run, smollora
from tiny_training import ROWS, curve, last_checkpoint, start, train, wait_for_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = 1e-5


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of 48 steps, and a run of it up to its rows."""
    folder = tmp_path_factory.mktemp("restart")
    return mixed_run(
        folder,
        train__epochs=12,
        train__max_epochs=16,
        train__dropout=0.1,
        train__batch_tokens=512,
        train__checkpoint_every=3,
        train__lr=1e-3,
        train__loraplus_lr_ratio=2,
    )


@pytest.fixture(scope="module")
def whole(mixed: Path) -> Path:
    """The training that nobody cut off."""
    run = copy_run(mixed, "whole")
    ended = smollora("train", mixed / "recipe.yaml", "--runs", run.parent)
    assert ended.code == 0, ended.err
    events = json.loads((run / "train" / "summary.json").read_text())["events"]
    assert len(events) == 4, "it goes on for the epochs that it may, as the validation loss falls"
    return run


def same_training(found: Path, expected: Path) -> None:
    """Loss for loss, rate for rate, and weight for weight."""
    ours, theirs = curve(found), curve(expected)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=EXACT), a["step"]
        assert a["lr"] == pytest.approx(b["lr"], rel=1e-9), a["step"]
        assert a["tokens"] == b["tokens"]
    weights = load_file(found / "train" / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(
        expected / "train" / "adapter" / "adapter_model.safetensors"
    ).items():
        assert (weights[name] - tensor).abs().max() <= EXACT, name
    summaries = [
        json.loads((run / "train" / "summary.json").read_text()) for run in (found, expected)
    ]
    for key in ("steps", "tokens", "row_tokens", "labelled_tokens", "validation_losses", "events"):
        assert summaries[0][key] == summaries[1][key], key


def test_killed_then_interrupted_and_given_again_the_loss_curve_is_that_of_an_unbroken_run(
    mixed: Path, whole: Path
) -> None:
    """SIGKILL leaves the last checkpoint; Ctrl-C saves, says how to go on, and ends with 130."""
    run = copy_run(mixed, "cut")
    command = ("train", mixed / "recipe.yaml", "--runs", run.parent)
    steps = len(curve(whole))
    assert steps >= 40
    process = start(*command)
    wait_for_checkpoint(process, run, steps // 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "train" / "adapter").exists()
    kept = last_checkpoint(run)
    assert kept >= steps // 4
    process = start(*command, "train.checkpoint_every=3")
    wait_for_checkpoint(process, run, max(steps // 2, kept + 3))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in err
    step = last_checkpoint(run)
    assert f"interrupted: training is saved as it was after step {step} of" in err
    assert "same command" in err
    other = smollora(*command, "train.lr=2e-3")
    assert other.code == 2
    assert "train.lr: 0.001 there, 0.002 here" in other.err
    assert "train.resume=false" in other.err
    assert last_checkpoint(run) == step, "a refusal leaves the checkpoint as it is"
    ended = smollora(*command, "train.checkpoint_every=off")
    assert ended.code == 0, ended.err
    same_training(run, whole)
    summary = json.loads((run / "train" / "summary.json").read_text())
    assert summary["resumed_at"] == step
    assert not (run / "train" / "checkpoints").exists(), "a finished training needs none"


# ── in this process ───────────────────────────────────────────────────────────────────────────


class Cut(Exception):
    """The training ends here, as by a crash."""


def cut_training(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Train until the checkpoint of `step` is written, and no further."""
    write = checkpoint.write_checkpoint

    def write_and_cut(*given: Any) -> Any:
        made = write(*given)
        if made.step >= step:
            raise Cut
        return made

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", write_and_cut)
        with pytest.raises(Cut):
            train(folder, **{"checkpoint_every": 1, **more})


@pytest.mark.parametrize(
    "settings",
    [
        {"embeddings": "lora"},
        {"embeddings": "frozen", "dora": True, "dropout": 0.2},
        {"embeddings": "frozen", "modules_to_save": ["embed_tokens"]},
        {"max_epochs": 6, "schedule": "linear"},
        {"packs_per_step": 3},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_is_trained_does_not_matter(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(tmp_path / "whole", **settings)
    steps = expected.summary["steps"]
    cut_training(tmp_path / "cut", steps // 2, monkeypatch, **settings)
    found = train(tmp_path / "cut", **settings)
    assert found.summary["resumed_at"] == steps // 2
    assert [e["loss"] for e in found.curve] == pytest.approx(
        [e["loss"] for e in expected.curve], abs=EXACT
    )
    assert found.summary["validation_loss"] == expected.summary["validation_loss"]


def test_two_trainings_with_one_seed_are_equal_and_with_another_are_not(tmp_path: Path) -> None:
    first, again, other = (
        [e["loss"] for e in train(tmp_path / name, dropout=0.1, epochs=2, seed=seed).curve]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first != other


def test_every_process_goes_on_with_its_own_random_numbers(tmp_path: Path) -> None:
    wanted, states = [], []
    for seed in (3, 4):
        torch.manual_seed(seed)
        states.append(torch.random.get_rng_state())
        wanted.append(torch.rand(5))
    checkpoint.save_tensors(tmp_path / "random.safetensors", {"cpu": torch.stack(states)})
    lines = checkpoint.load_tensors(tmp_path / "random.safetensors")["cpu"]
    for rank in (1, 0):
        torch.random.set_rng_state(checkpoint.line_of(lines, rank))
        assert torch.equal(torch.rand(5), wanted[rank])


def test_a_checkpoint_holds_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_training(tmp_path, 2, monkeypatch)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    for path in folder.glob("*.json"):
        json.loads(path.read_text())


def test_a_half_written_checkpoint_is_passed_over_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_training(tmp_path, 3, monkeypatch)
    torn = tmp_path / "checkpoints" / ".step-00000004.abc"
    torn.mkdir()
    (torn / "adapter.safetensors").write_bytes(b"half")
    assert train(tmp_path).summary["resumed_at"] == 3


REFUSING = replace(ROWS[0], refusals=(Refusal(ROWS[0].first_trained, 5, 0.5),))


@pytest.mark.parametrize("rows", [ROWS[:-1], [REFUSING, *ROWS[1:]]], ids=["fewer", "refusing"])
def test_other_rows_are_another_training(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_training(tmp_path, 2, monkeypatch)
    monkeypatch.setattr("tiny_training.ROWS", rows)
    with pytest.raises(ConfigError, match="training rows: another one"):
        train(tmp_path)


def test_what_changes_nothing_of_the_training_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_training(tmp_path, 2, monkeypatch)
    assert train(tmp_path, checkpoint_every="off").summary["resumed_at"] == 2


def test_resume_false_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_training(tmp_path, 2, monkeypatch)
    assert train(tmp_path, resume=False, lr=1e-4).summary["resumed_at"] == 0


@pytest.mark.parametrize("file", ["adapter", "optimizer"])
def test_a_full_disk_is_said_and_the_last_checkpoint_is_whole(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As safetensors says it: an error of its own with the system's words."""
    from safetensors import SafetensorError

    expected = [e["loss"] for e in train(tmp_path / "whole").curve]
    save = checkpoint.save_tensors

    def save_or_not(path: Path, tensors: Any) -> None:
        if path.stem == file and int(path.parent.name.split("-")[1].split(".")[0]) > 3:
            path.write_bytes(b"\0" * 64)
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", save_or_not)
        with pytest.raises(SmolloraError, match="No space left") as caught:
            train(tmp_path / "full", checkpoint_every=1)
    assert "that of step 3 is whole" in caught.value.message
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == [
        "step-00000003"
    ]
    found = train(tmp_path / "full")
    assert [e["loss"] for e in found.curve] == pytest.approx(expected, abs=EXACT)


def test_a_loss_that_is_not_a_number_names_step_rate_and_rows(tmp_path: Path) -> None:
    with pytest.raises(SmolloraError, match=r"not a number at step \d+ \(lr 1e\+30, rows \w+-\d+"):
        train(tmp_path, lr=1e30, warmup=0, schedule="constant", embeddings="lora")


def test_a_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    """One that has learned its rows, and goes on with a rate that grows without end."""
    learned = train(tmp_path / "learned", embeddings="lora", epochs=40)
    assert learned.summary["loss_last"] < 1
    model = learned.model.merge_and_unload()
    model.set_attn_implementation("sdpa")
    with pytest.raises(
        SmolloraError, match=r"diverges: the loss began at .* at step \d+ \(lr"
    ) as caught:
        train(
            tmp_path / "on",
            model=model,
            lr=2.0,
            warmup=0.9,
            epochs=40,
            embeddings="frozen",
            checkpoint_every=5,
        )
    assert "rows " in caught.value.message
