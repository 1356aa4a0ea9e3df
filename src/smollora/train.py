"""One LoRA trainer: transformers' Trainer over accelerate, peft adapters, packed trees, loss by
part.

In: a model folder, rendered rows, the recipe's train section. Out: an adapter folder and a
`TrainSummary`. What is fast here: common prompts are computed once (data/batch.py), the head runs
on labelled positions only, adapter products run in the compute type with fp32 masters, and decoder
layers are compiled where a C++ compiler is there. The surprise: LoRA on `embed_tokens` of a tied
model trains the input side only, and a merge would change the head as well; so the head is untied
first (merge.py proves it).
"""

from __future__ import annotations

import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smollora.attention import NAME as TREE_ATTENTION
from smollora.attention import use_tree_attention
from smollora.config import TrainSection
from smollora.data.batch import Batch, BatchPlan, Row, build_batch, plan_batches
from smollora.errors import ConfigError, ModelError, SmolloraError
from smollora.memory import give_back_freed_memory, keep_freed_memory
from smollora.schedule import Pace
from smollora.types import PARTS

HEAD_CHUNK = 256
"""Labelled positions whose logits exist at one time."""
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


def compute_dtype(setting: str) -> str:
    """bfloat16 where the hardware multiplies it fast (CUDA, AMX, AVX512-BF16), else float32."""
    if setting != "auto":
        return setting
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def attach_adapter(model: Any, settings: TrainSection, token_ids: Sequence[int]) -> Any:
    """Wrap a model with the recipe's LoRA.

    Args:
        model: causal language model.
        settings: rank, targets and the `embeddings` mode.
        token_ids: rows that `embeddings: tool_tokens` trains.

    Raises:
        ConfigError: target names that match nothing.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    leaves = {
        name.rsplit(".", 1)[-1]
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    unknown = [target for target in settings.targets if target not in leaves]
    if unknown:
        raise ConfigError(
            f"train.targets: {', '.join(unknown)} match nothing in {type(model).__name__}",
            f"linear layers there: {', '.join(sorted(leaves))}",
        )
    targets = list(settings.targets)
    extra: dict[str, Any] = {}
    embedding = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
    if settings.embeddings == "lora":
        untie_head(model)
        targets.append(embedding.rsplit(".", 1)[-1])
    elif settings.embeddings == "tool_tokens" and token_ids:
        extra["trainable_token_indices"] = {embedding.rsplit(".", 1)[-1]: list(token_ids)}
    peft = get_peft_model(
        model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
            **extra,
        ),
    )
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft


def untie_head(model: Any) -> None:
    """Give a tied model a head of its own, so that a change of the embedding does not change it."""
    import torch

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def compute_rows_apart(peft: Any) -> None:
    """Let peft's trainable token rows be looked up and multiplied apart from the embedding matrix.

    peft (0.21.2) copies the whole matrix at every forward pass to put a few rows into it, and its
    gradient is as large; this gives the same values (a test holds them equal) from the rows alone,
    which stay in float32.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    for module in peft.modules():
        if isinstance(module, TrainableTokensLayer):
            module.forward = partial(_forward_rows, module)


def _forward_rows(layer: Any, inputs: Any) -> Any:
    """What a `TrainableTokensLayer` around an embedding or a tied head computes."""
    import torch
    from torch.nn import functional

    name = layer.active_adapters[0]
    rows, ids = layer.trainable_tokens_delta[name], layer.token_indices[name]
    out = layer.base_layer(inputs)
    if isinstance(layer.base_layer, torch.nn.Embedding):
        scale = layer._get_embed_scale()
        values = rows if scale is None else rows * scale
        for place, token in enumerate(ids):
            out = torch.where((inputs == token)[..., None], values[place].to(out.dtype), out)
        return out
    index = torch.tensor(ids, device=out.device)
    return out.index_copy(-1, index, functional.linear(inputs, rows.to(inputs.dtype)).to(out.dtype))


def can_compile() -> bool:
    """True if torch.compile finds a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def sliding_window(config: Any) -> int | None:
    """Tokens that a model's windowed layers look back; None where every layer sees all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return None
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return int(window)


def refuse_scaled_logits(model: Any) -> None:
    """The loss is computed from head times hidden state: refuse a model whose logits are not that.

    Granite divides its logits, Cohere multiplies them, Gemma caps them.

    Raises:
        ModelError: the logits of a few tokens are others.
    """
    import torch

    if model.config._attn_implementation == TREE_ATTENTION:  # looked at before
        return
    device = model.get_input_embeddings().weight.device
    token_ids = torch.arange(1, 9, device=device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        plain = model.get_output_embeddings()(hidden).float()
        logits = model(input_ids=token_ids, use_cache=False).logits.float()
    if (plain - logits).abs().max() > 0.02 * logits.abs().max():
        raise ModelError(
            f"{type(model).__name__} scales or caps its logits, which this trainer does not do",
            "train it with another trainer; inspect, prepare, verify and probe serve it as well",
        )


class TreeLoss:
    """Weighted cross entropy of packed trees, with sums by part.

    Source of the head-on-labelled-positions idea: TRL's and Liger's chunked losses; of shared
    prompts: tree attention.
    """

    def __init__(self, model: Any, dtype: str, device: str = "cpu") -> None:
        import torch

        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = base.base_model
        self.head = base.get_output_embeddings()
        self.dtype = getattr(torch, dtype)
        self.device = device
        self.window = sliding_window(base.config)
        refuse_scaled_logits(base)
        self.tree_attention = device == "cpu"
        if self.tree_attention:
            use_tree_attention(base)

    def __call__(self, batch: Batch) -> tuple[Any, Any, Any, Any]:
        """(sum of weighted losses, sum of weights, unweighted losses by part [5],
        counts by part [5]).
        """
        import torch
        from torch.nn import functional
        from torch.utils.checkpoint import checkpoint

        longest = int(batch.position_ids.max()) + 1
        if self.window is not None and longest > self.window:
            raise ModelError(
                f"a row of {longest} tokens is longer than the sliding window of {self.window}",
                f"set prepare.max_length={self.window}",
            )
        low = self.dtype != torch.float32
        where: dict[str, Any] = (
            {"segments": batch.segments}
            if self.tree_attention
            else {"attention_mask": batch.mask().to(self.device)}
        )
        context: Any = torch.autocast(self.device, dtype=self.dtype) if low else nullcontext()
        with context:
            hidden = self.decoder(
                input_ids=batch.token_ids.to(self.device),
                position_ids=batch.position_ids.to(self.device),
                use_cache=False,
                **where,
            ).last_hidden_state
            flat = hidden.reshape(-1, hidden.shape[-1])[batch.select.to(self.device)]

            def losses(states: Any, targets: Any) -> Any:
                return functional.cross_entropy(
                    self.head(states).float(), targets, reduction="none"
                )

            pieces = []
            targets = batch.targets.to(self.device)
            many = flat.shape[0] > HEAD_CHUNK
            for start in range(0, flat.shape[0], HEAD_CHUNK):
                part = flat[start : start + HEAD_CHUNK], targets[start : start + HEAD_CHUNK]
                pieces.append(
                    checkpoint(losses, *part, use_reentrant=False) if many else losses(*part)
                )
            each = torch.cat(pieces) if pieces else flat.sum() * 0
        weights = batch.weights.to(self.device)
        plain = each.detach()
        parts = batch.parts.to(self.device)
        by_part = torch.zeros(len(PARTS), device=self.device).index_add_(0, parts, plain)
        counts = torch.zeros(len(PARTS), device=self.device).index_add_(
            0, parts, torch.ones_like(plain)
        )
        return (each * weights).sum(), weights.sum(), by_part, counts


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
        _leave_casting_to_autocast(peft)
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


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mean_by_part(sums: Any, counts: Any) -> dict[str, float | None]:
    """Mean loss of each part; None where the batch holds none."""
    return {
        part: round(float(sums[i] / counts[i]), 4) if counts[i] else None
        for i, part in enumerate(PARTS)
    }


def evaluate_loss(
    loss_of: TreeLoss, rows: Sequence[Row], settings: TrainSection, pad_id: int
) -> tuple[float | None, dict[str, float | None]]:
    """Mean unweighted loss over rows, whole and by part (None over no rows)."""
    import torch

    sums = counts = torch.zeros(len(PARTS))
    trains = loss_of.model.training
    loss_of.model.eval()  # without dropout
    for batch in _batches(rows, settings, pad_id):
        with torch.no_grad():
            _, _, by_part, count = loss_of(batch)
        sums, counts = sums + by_part.cpu(), counts + count.cpu()
    loss_of.model.train(trains)
    total = float(counts.sum())
    return (round(float(sums.sum()) / total, 4) if total else None), mean_by_part(sums, counts)


def _batches(rows: Sequence[Row], settings: TrainSection, pad_id: int) -> Iterator[Batch]:
    if not rows:
        return
    plan = plan_batches(rows, length=settings.batch_tokens, seed=0)
    for pack in plan.packs:
        yield build_batch(pack, plan.length, pad_id)


def _leave_casting_to_autocast(peft: Any) -> None:
    """Stop peft from casting every activation to the adapters' fp32 (14% of the time); autocast
    casts the small weights instead.

    What `peft.helpers.disable_input_dtype_casting` does, which fails on trainable token layers
    (peft 0.21.2).
    """
    for module in peft.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def _compile_layers(decoder: Any) -> None:
    """Compile every decoder layer; all share one shape, so one compilation serves them."""
    import torch

    torch._dynamo.config.recompile_limit = 64
    for layer in decoder.layers:
        layer.compile(dynamic=False)
