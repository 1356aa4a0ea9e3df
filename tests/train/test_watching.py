"""What a training shows while it runs: the line, the utilisation, trackers, Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smollora.config import TrainSection
from smollora.errors import ConfigError, Interrupted
from smollora.train import StepReport
from smollora.train.interrupt import stop_after_step
from smollora.train.line import describe_step
from smollora.train.reporting import flat_logs
from smollora.train.speed import Cost, measure_products, read_cost
from tiny_models import tiny_model
from tiny_training import train

REPORT = StepReport(
    step=40,
    steps=200,
    loss=0.7316,
    lr=1e-3,
    tokens=2000,
    row_tokens=9000,
    labelled=700,
    seconds=100.0,
    loss_by_part={"open": 0.831, "name": None, "arguments": 0.777, "close": 0.01, "text": 2.3},
    accuracy_by_part={},
    tokens_so_far=80_000,
    row_tokens_so_far=360_000,
    labelled_so_far=28_000,
    memory=3 * 2**30,
    utilisation=0.354,
    resumed_at=0,
    found={"validation_loss": 1.25, "emission": {"k": 11, "n": 12}, "false_call": {"k": 1, "n": 9}},
)


def test_the_line_holds_what_a_person_watches_for() -> None:
    assert describe_step(REPORT) == (
        "loss 0.732 (open 0.83 args 0.78 close 0.01 text 2.30)  3,600 row tokens/s"
        "  280 labelled/s  MFU 35%  3.0 GiB  validation 1.250  calls 11/12  false 1/9"
    )


def test_operations_are_counted_by_hand() -> None:
    """Llama of width 64 and inner 128, two layers, rank 4: q and o 64x64, k and v 64x32, three of
    64x128; frozen weights cost 4 a token, trained ones 6, the head 4 a label."""
    from smollora.train import attach_adapter

    settings = TrainSection(rank=4, embeddings="frozen")
    cost = read_cost(attach_adapter(tiny_model("llama"), settings, ()), "float32", "cpu")
    frozen = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    trained = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert cost.per_token == 4 * frozen + 6 * trained
    assert cost.per_label == 4 * 64 * 512
    assert Cost(10, 20, 1000.0).utilisation(30, 10, 2.0) == pytest.approx(0.25)


def test_timing_the_machine_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    assert measure_products(64, 128, "float32", "cpu") > 1e6
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_first_signal_waits_for_the_step_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_after_step() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_training_says_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smollora.train import watch

    enter = watch.enter

    def enter_and_ask(session: Any, step: int, logs: Any) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return enter(session, step, logs)

    monkeypatch.setattr(watch, "enter", enter_and_ask)
    with pytest.raises(Interrupted, match="after step 3 of") as caught:
        train(tmp_path, checkpoint_every="off")
    assert caught.value.exit_code == 130
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


# ── trackers ──────────────────────────────────────────────────────────────────────────────────


def test_a_tracker_is_given_numbers_alone() -> None:
    entry = {
        **{"step": 3, "loss": 1.0, "lr": 1e-3, "tokens": 12, "seconds": 4.0},
        **{"loss_by_part": {"open": 0.5, "name": None}, "emission": {"k": 1, "n": 4}},
        **{"false_call": {"k": 0, "n": 0}, "validation_loss": None},
    }
    assert flat_logs(entry) == {"tokens": 12, "loss_by_part/open": 0.5, "emission": 0.25}


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from smollora.train import reporting

    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb, which is not installed"):
        reporting.check_trackers(["wandb"])


def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    """Read back by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = train(tmp_path, report_to=["tensorboard"], probe_every=4, epochs=2)
    (events,) = (tmp_path / "trackers").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    found = {event.step: event.value for event in read.Scalars("train/loss")}
    assert found == pytest.approx({entry["step"]: entry["loss"] for entry in made.curve})
    tags = set(read.Tags()["scalars"])
    assert {
        *("train/learning_rate", "train/grad_norm", "train/mfu", "train/emission"),
        *("train/loss_by_part/open", "train/accuracy_by_part/name", "train/validation_loss"),
    } <= tags
