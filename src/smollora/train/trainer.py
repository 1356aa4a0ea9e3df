"""One LoRA trainer: transformers' Trainer over accelerate, peft adapters, packed trees, loss by
part.

In: a model folder, rendered rows, the recipe's train section. Out: an adapter folder and the
numbers of the train stage's summary. What is fast here: common prompts are computed once
(data/batch.py), the head runs on labelled positions only (loss.py), adapter products run in the
compute type with fp32 masters, and decoder layers are compiled where a C++ compiler is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.config import TrainSection
from smollora.data.batch import Batch, BatchPlan, Row, build_batch, plan_batches
from smollora.errors import SmolloraError
from smollora.memory import give_back_freed_memory, keep_freed_memory
from smollora.schedule import Pace
from smollora.train.adapter import attach_adapter, compute_rows_apart, leave_casting_to_autocast
from smollora.train.hardware import can_compile, compute_dtype, peak_memory
from smollora.train.loss import TreeLoss, evaluate_loss, mean_by_part

TRIM_EVERY = 16
"""Steps after which freed memory goes back to the system once."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    step: int
    steps: int
    loss: float
    lr: float
    tokens: int
    row_tokens: int
    labelled: int
    seconds: float
    loss_by_part: dict[str, float | None]
    row_tokens_so_far: int
    memory: int
    """Peak resident memory of the process, bytes."""


@dataclass(frozen=True)
class Trained:
    """What training made."""

    model: Any
    """The live adapter on its base."""
    summary: dict[str, Any]
    curve: list[dict[str, Any]]


class _Steps:
    """Iterable dataset of ready batches: one item = one optimiser step."""

    def __init__(self, plan: BatchPlan, total: int, pad_id: int) -> None:
        self.plan, self.total, self.pad_id = plan, total, pad_id

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, self.plan.steps)
        pack = self.plan.packs[self.plan.order(epoch)[place]]
        return build_batch(pack, self.plan.length, self.pad_id)


def train_adapter(
    model: Any,
    rows: Sequence[Row],
    validation: Sequence[Row],
    settings: TrainSection,
    *,
    token_ids: Sequence[int],
    pad_id: int,
    out: Path,
    on_step: Callable[[StepReport], None] | None = None,
) -> Trained:
    """Train and save an adapter.

    Returns:
        The model, the numbers of the train stage's summary, and the curve (one dict a step).

    Raises:
        SmolloraError: the loss is not a number.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    keep_freed_memory()
    set_seed(settings.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = compute_dtype(settings.dtype)
    peft = attach_adapter(model, settings, token_ids).to(device)
    compute_rows_apart(peft)
    plan = plan_batches(rows, length=settings.batch_tokens, seed=settings.seed)
    planned = max(1, round(plan.steps * settings.epochs))
    most = max(planned, round(plan.steps * (settings.max_epochs or settings.epochs)))
    pace = Pace(plan.steps, planned, most, round(settings.warmup * planned), settings.schedule)
    steps = _Steps(plan, most, pad_id)
    loss_of = TreeLoss(peft, dtype, device)
    compiled = settings.compile == "on" or (
        settings.compile == "auto" and can_compile() and len(steps) >= 40
    )
    if compiled:
        _compile_layers(loss_of.decoder)
    curve: list[dict[str, Any]] = []
    clock = {"start": time.perf_counter()}
    last: dict[str, Any] = {}

    class TreeTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            total, weight, by_part, counts = loss_of(inputs["batch"])
            last.update(batch=inputs["batch"], by_part=by_part, counts=counts)
            return total / weight.clamp(min=1e-6)

        def create_optimizer(self, model: Any = None) -> Any:
            named = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
            tokens = [p for n, p in named if "trainable_tokens" in n]
            others = [p for n, p in named if "trainable_tokens" not in n]
            groups = [{"params": others, "lr": settings.lr, "weight_decay": settings.weight_decay}]
            if tokens:
                rate = settings.token_lr or settings.lr
                groups.append({"params": tokens, "lr": rate, "weight_decay": 0.0})
            self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), eps=1e-8)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, pace.factor)
            return self.lr_scheduler

        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                steps, batch_size=1, shuffle=False, collate_fn=lambda items: {"batch": items[0]}
            )

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            batch: Batch = last["batch"]
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                names = ", ".join(batch.row_ids[:8])
                raise SmolloraError(
                    f"the loss is not a number at step {state.global_step}"
                    f" (lr {logs.get('learning_rate')}, rows {names})",
                    "lower train.lr, or set train.dtype=float32",
                )
            pace.note_loss(state.global_step, loss)
            report = StepReport(
                step=state.global_step,
                steps=planned if state.global_step <= planned else len(steps),
                loss=loss,
                lr=float(logs.get("learning_rate", settings.lr)),
                tokens=batch.real_tokens,
                row_tokens=batch.row_tokens,
                labelled=int(batch.targets.shape[0]),
                seconds=time.perf_counter() - clock["start"],
                loss_by_part=mean_by_part(last["by_part"], last["counts"]),
                row_tokens_so_far=sum(e["row_tokens"] for e in curve) + batch.row_tokens,
                memory=peak_memory(),
            )
            curve.append(
                {
                    "step": report.step,
                    "loss": report.loss,
                    "lr": report.lr,
                    "tokens": report.tokens,
                    "row_tokens": report.row_tokens,
                    "labelled": report.labelled,
                    "seconds": round(report.seconds, 2),
                    "loss_by_part": report.loss_by_part,
                }
            )
            if on_step:
                on_step(report)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step % TRIM_EVERY == 0:
                give_back_freed_memory()
            if most == planned or not validation:
                return
            if step % plan.steps == 0 or step == planned:
                loss, _parts = evaluate_loss(loss_of, validation, settings, pad_id)
                if pace.note_validation(step, loss):
                    control.should_training_stop = True

    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=len(steps) if validation else planned,
        per_device_train_batch_size=1,
        learning_rate=settings.lr,
        max_grad_norm=settings.clip,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        seed=settings.seed,
        label_names=[],
    )
    trainer = TreeTrainer(model=peft, args=arguments, train_dataset=steps, callbacks=[Watch()])
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    peft.train()
    precision = torch.get_float32_matmul_precision()
    if dtype != "float32":
        leave_casting_to_autocast(peft)
        torch.set_float32_matmul_precision("medium")  # attention's float32 products of bf16 values
    try:
        trainer.train()
    finally:
        torch.set_float32_matmul_precision(precision)
    seconds = time.perf_counter() - clock["start"]
    validation_loss, by_part = evaluate_loss(loss_of, validation, settings, pad_id)
    peft.eval()
    peft.save_pretrained(out, save_embedding_layers=False)
    tokens = sum(entry["tokens"] for entry in curve)
    row_tokens = sum(entry["row_tokens"] for entry in curve)
    summary = {
        "steps": len(curve),
        "epochs": round(len(curve) / plan.steps, 3),
        "events": pace.events,
        "validation_losses": pace.validation,
        "tokens": tokens,
        "row_tokens": row_tokens,
        "labelled_tokens": sum(entry["labelled"] for entry in curve),
        "tokens_per_second": round(tokens / seconds, 1),
        "row_tokens_per_second": round(row_tokens / seconds, 1),
        "train_seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "loss_first": curve[0]["loss"],
        "loss_last": curve[-1]["loss"],
        "validation_loss": validation_loss,
        "loss_by_part": by_part,
        "compiled": compiled,
        "dtype": dtype,
    }
    return Trained(peft, summary, curve)


def _compile_layers(decoder: Any) -> None:
    """Compile every decoder layer; all share one shape, so one compilation serves them."""
    import torch

    torch._dynamo.config.recompile_limit = 64
    for layer in decoder.layers:
        layer.compile(dynamic=False)
