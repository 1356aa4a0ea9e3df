"""One LoRA trainer: transformers' Trainer over accelerate, peft adapters, packed trees, loss by
part.

In: a loaded model, rows, the recipe's train section. Out: an adapter folder and the numbers of the
train stage's summary. What is fast here: common prompts are computed once (data/batch.py), the head
runs on labelled positions only (loss.py), adapter products run in the compute type with fp32
masters, and decoder layers are compiled where a C++ compiler is there. A training that was cut off
goes on from its last checkpoint (checkpoint.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from smollora import launch
from smollora.config import TrainSection
from smollora.data.batch import Row, plan_batches
from smollora.errors import Interrupted
from smollora.memory import keep_freed_memory
from smollora.models import without_bitsandbytes
from smollora.runs import whole_folder
from smollora.train import checkpoint
from smollora.train.activations import checkpoint_layers, wants_checkpointing
from smollora.train.adapter import attach_adapter, compute_rows_apart, leave_casting_to_autocast
from smollora.train.checks import check_settings
from smollora.train.decisions import Counts, Ends, ask_prompts, plan_prompts
from smollora.train.four_bit import base_weights_summary, four_bit_layers
from smollora.train.hardware import can_compile, choose_device, compute_dtype, peak_memory
from smollora.train.identity import FILE, base_identity, describe_origin
from smollora.train.interrupt import stop_after_step
from smollora.train.loop import build_trainer
from smollora.train.loss import Evaluation, TreeLoss, evaluate_loss
from smollora.train.progress import Progress, StepReport
from smollora.train.schedule import Pace
from smollora.train.session import Session
from smollora.train.speed import read_cost
from smollora.train.steps import StepPlan

TRACKERS = "trackers"
"""Folder beside the adapter for what trackers write into files."""
COMPILE_FROM = {"cpu": 50, "cuda": 700}
"""Steps that repay compiling: on a CPU it takes 34 s and saves 0.7 s a step of 1,000 tokens, on a
GPU a tenth (docs/log.md, docs/benchmarks.md)."""


@dataclass(frozen=True)
class Trained:
    """What training made."""

    model: Any
    """The live adapter on its base."""
    summary: dict[str, Any]
    curve: list[dict[str, Any]]


def train_adapter(
    model: Any,
    rows: Sequence[Row],
    validation: Sequence[Row],
    settings: TrainSection,
    *,
    token_ids: Sequence[int],
    pad_id: int,
    out: Path,
    base: Path | None = None,
    ends: Ends | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Trained:
    """Train and save an adapter, or go on with one that was cut off.

    Args:
        model: causal language model.
        rows, validation: what is trained, and what is only looked at.
        settings: the recipe's train section.
        token_ids: rows that `embeddings: tool_tokens` trains.
        pad_id: what packs are filled up with.
        out: the adapter's folder; checkpoints lie in `checkpoints` beside it.
        base: the folder that `model` was loaded from; the adapter is marked with it.
        ends: how answers are read; needed for `settings.probe_every`.
        on_step: told of every step, in the first process.

    Returns:
        The model, the numbers of the train stage's summary, and the curve (one dict a step).

    Raises:
        ConfigError: the recipe asks for what does not go, or a checkpoint is another training's.
        SmolloraError: the loss is not a number or diverges; the disk is full.
        Interrupted: somebody asked to stop; what is needed to go on is saved.
    """
    check_settings(rows, settings, ends)
    with without_bitsandbytes():
        from transformers import set_seed

    keep_freed_memory()
    device = choose_device(settings.device)
    launch.wait_for_everyone(device)
    set_seed(settings.seed)
    dtype = compute_dtype(settings.dtype, device)
    sharded = launch.shards()
    peft = attach_adapter(model, settings, token_ids)
    if not sharded:  # else FSDP moves to the device what a process keeps
        peft = peft.to(device)
    compute_rows_apart(peft)
    plan = plan_batches(rows, length=settings.batch_tokens, seed=settings.seed)
    packs = settings.packs_per_step or launch.processes()
    per_epoch = -(-plan.steps // packs)
    planned = max(1, round(per_epoch * settings.epochs))
    most = max(planned, round(per_epoch * (settings.max_epochs or settings.epochs)))
    pace = Pace(planned, most, round(settings.warmup * planned), settings.schedule)
    in_step = launch.computes_in_step()
    steps = StepPlan(plan, most, pad_id, packs, launch.rank(), launch.processes(), in_step)
    loss_of = TreeLoss(peft, dtype, device, spread=sharded)
    cost = read_cost(peft, dtype, device)
    compiled = settings.compile == "on" or (
        settings.compile == "auto"
        and not sharded
        and can_compile()
        and most >= COMPILE_FROM[device]
    )
    checkpointed = wants_checkpointing(peft, settings, dtype, device)
    if checkpointed:
        checkpoint_layers(peft, loss_of.separate)
    if compiled:
        _compile_layers(loss_of.decoder)
    origin = describe_origin(settings, base, rows, validation, plan, packs, dtype)
    trainers: list[Any] = []  # the one, once it is there

    def validate() -> Evaluation:
        found = evaluate_loss(
            loss_of,
            validation,
            settings,
            pad_id,
            rank=steps.rank,
            processes=steps.processes,
            look_at=trainers[0].look_at,
            add_up=trainers[0].add_up,
        )
        trainers[0].rest()
        return found

    probe = None
    if settings.probe_every and ends is not None:
        prompts = plan_prompts(validation, settings.probe_prompts)

        def probe() -> Counts:
            def ask() -> tuple[int, ...]:
                return astuple(
                    ask_prompts(loss_of, prompts, ends, new_tokens=settings.probe_tokens)
                )

            return Counts(*launch.from_first(ask, device))

    with stop_after_step() as asked:
        session = Session(
            settings=settings,
            loss_of=loss_of,
            steps=steps,
            progress=Progress(pace),
            planned=planned,
            checkpoints=out.parent / "checkpoints",
            origin=origin,
            cost=cost,
            asked=asked,
            validate=validate if validation else None,
            probe=probe,
            on_step=on_step if launch.is_first() else None,
        )
        last_step = most if validation else planned
        trainer = build_trainer(session, _arguments(settings, out, last_step, device))
        trainers.append(trainer)
        resumed = _resume(session)
        if steps.processes > 1:
            set_seed(settings.seed + steps.rank)  # dropout is drawn in each process for itself
        with _precision(peft, dtype):
            if resumed is not None:  # before FSDP or DeepSpeed take shares of it
                checkpoint.restore_trained(peft, resumed.folder / "adapter.safetensors")
            if resumed is None or not (session.progress.ended or resumed.step >= last_step):
                trainer.train(resume_from_checkpoint=str(resumed.folder) if resumed else None)
            elif sharded:
                peft.to(device)  # nobody has taken shares
    progress = session.progress
    if session.stop:
        step, of = len(progress.curve), planned if len(progress.curve) <= planned else most
        raise Interrupted(
            f"training is saved as it was after step {step} of {of}",
            "the same command goes on from there",
        )
    seconds = progress.seconds
    if progress.best is not None:
        checkpoint.restore_best(session.checkpoints, progress.best.step, peft)
    found = validate()
    peft.eval()
    held = _most_held(peft, steps, trainer.add_up)
    checkpoint.gather_trained(peft)
    if launch.is_first():
        _save(peft, out, base)
        checkpoint.clear_checkpoints(session.checkpoints)
        with suppress(
            OSError
        ):  # transformers makes the folder of trackers whether any writes or not
            (out.parent / TRACKERS).rmdir()
    curve = progress.curve
    summary = {
        "steps": len(curve),
        "epochs": round(len(curve) / per_epoch, 3),
        "events": pace.events,
        "validation_losses": pace.validation,
        "tokens": progress.tokens,
        "row_tokens": progress.row_tokens,
        "labelled_tokens": progress.labelled,
        "tokens_per_second": round(progress.tokens / seconds, 1),
        "row_tokens_per_second": round(progress.row_tokens / seconds, 1),
        "labelled_tokens_per_second": round(progress.labelled / seconds, 1),
        "mfu": round(
            cost.utilisation(progress.tokens, progress.labelled, seconds) / steps.processes, 4
        ),
        "products_per_second": round(cost.per_second),
        "train_seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory(device),
        "loss_first": curve[0]["loss"],
        "loss_last": curve[-1]["loss"],
        "validation_loss": found.loss,
        "loss_by_part": found.loss_by_part,
        "accuracy_by_part": found.accuracy_by_part,
        "best_step": progress.best.step if progress.best else None,
        "resumed_at": progress.resumed_at,
        "processes": steps.processes,
        "weights_held": held,
        "packs_per_step": packs,
        "compiled": compiled,
        "activation_checkpointing": checkpointed,
        "dtype": dtype,
        "attention": loss_of.describe_attention(),
        "gates": loss_of.describe_gates(),
        **base_weights_summary(peft, dtype),
    }
    return Trained(peft, summary, curve)


def _most_held(peft: Any, steps: StepPlan, add_up: Callable[[Any], Any]) -> float:
    """The largest share of the model's weights that a process holds."""
    import torch

    shares = torch.zeros(steps.processes, dtype=torch.float64)
    shares[steps.rank] = checkpoint.share_held(peft)
    return round(float(add_up(shares).max()), 3)


def _resume(session: Session) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, its progress restored; None for a new training.

    Raises:
        ConfigError: there is one of another training.
    """
    folder = session.checkpoints
    if session.first:
        if not session.settings.resume:
            checkpoint.clear_checkpoints(folder)
        checkpoint.remove_unfinished(folder)
    launch.wait_for_everyone(session.loss_of.device)
    found = checkpoint.find_checkpoint(folder)
    if found is not None:
        checkpoint.refuse_other(found, session.origin)
        session.progress.restore(found.state(), found.step)
    return found


def _arguments(settings: TrainSection, out: Path, steps: int, device: str) -> dict[str, Any]:
    """What transformers' TrainingArguments are given."""
    return {
        "output_dir": str(out.parent / TRACKERS),
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "learning_rate": settings.lr,
        "max_grad_norm": settings.clip,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": list(settings.report_to),
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": device == "cpu",
        "ddp_backend": launch.backend(device) if launch.processes() > 1 else None,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "seed": settings.seed,
        "label_names": [],
    }


@contextmanager
def _precision(peft: Any, dtype: str) -> Iterator[None]:
    """Low-precision products while training runs, where the compute type is low."""
    import torch

    peft.train()
    before = torch.get_float32_matmul_precision()
    if dtype != "float32":
        leave_casting_to_autocast(peft)
        torch.set_float32_matmul_precision("medium")  # attention's float32 products of bf16 values
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _save(peft: Any, out: Path, base: Path | None) -> None:
    """Write the adapter's folder whole."""
    with whole_folder(out) as work:
        peft.save_pretrained(work, save_embedding_layers=False)
        identity = base_identity(base) if base is not None else ""
        marks = {"base": identity, "base_weights": "4bit" if four_bit_layers(peft) else "full"}
        (work / FILE).write_text(json.dumps(marks) + "\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)


def _compile_layers(decoder: Any) -> None:
    """Compile every decoder layer; all share one shape, so one compilation serves them."""
    import torch

    torch._dynamo.config.recompile_limit = 64
    for layer in decoder.layers:
        layer.compile(dynamic=False)
