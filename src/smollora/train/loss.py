"""Loss of packed trees: the head runs on labelled positions only (head.py).

In: a `Batch` (data/batch.py). Out: the weighted sum that is trained, and plain sums by part of the
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from smollora.attention import NAME as TREES
from smollora.attention import blocks, kernel, use_tree_attention
from smollora.config import TrainSection
from smollora.data.batch import Batch, Row, build_batch, plan_batches
from smollora.errors import ModelError
from smollora.train.fused_lora import FusedLora, restore_forward
from smollora.train.gate import describe as describe_gates
from smollora.train.gate import fuse_gates
from smollora.train.head import Targets, head_loss
from smollora.train.self_attention import fuse_attention
from smollora.types import PARTS

OWN_ATTENTION = {"trees": TREES, "blocks": blocks.NAME}
"""Ways to attend to packed trees -> what transformers calls them."""


class PackLoss(NamedTuple):
    """What a pack gave; all are tensors."""

    total: Any
    """Sum of weighted losses: what is trained."""
    weight: Any
    """Sum of weights."""
    by_part: Any
    """Unweighted losses by part [5]."""
    counts: Any
    """Labelled tokens by part [5]."""
    hits: Any
    """Those of them that the model thought most likely [5]."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model makes of rows, without weights; None over no tokens."""

    loss: float | None
    loss_by_part: dict[str, float | None]
    accuracy_by_part: dict[str, float | None]
    """Share of the labelled tokens that were the most likely ones."""


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

    if model.config._attn_implementation in OWN_ATTENTION.values():  # looked at before
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


def choose_attention(device: str) -> str:
    """How packs are attended to: "trees" on a CPU, "blocks" on a GPU with Triton, else under a
    boolean "mask".
    """
    if device == "cpu":
        return "trees"
    return "blocks" if blocks.can_use_blocks() else "mask"


class TreeLoss:
    """Weighted cross entropy of packed trees, with sums by part.

    Source of the head-on-labelled-positions idea: TRL's and Liger's chunked losses; of shared
    prompts: tree attention.
    """

    def __init__(
        self,
        model: Any,
        dtype: str,
        device: str = "cpu",
        attention: str | None = None,
        *,
        spread: bool = False,
    ) -> None:
        """Args: the model; compute type; device; a way of `choose_attention` (None: that one);
        whether the model's weights will be spread over processes.
        """
        import torch

        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = base.base_model
        self.head = base.get_output_embeddings()
        self.dtype = getattr(torch, dtype)
        self.device = device
        self.window = sliding_window(base.config)
        refuse_scaled_logits(base)
        self.adapters = FusedLora(model, self.dtype, spread=spread)
        self.gates = fuse_gates(model, self.adapters.sets, self.dtype)
        self.attention = attention or choose_attention(device)
        trees = self.attention == "trees"
        self.joined = fuse_attention(model, self.adapters.sets, self.dtype) if trees else []
        own = base.config._attn_implementation
        self._own_attention = "sdpa" if own in OWN_ATTENTION.values() else own
        self._attend_to_trees(base)

    def _attend_to_trees(self, base: Any) -> None:
        if self.attention == "trees":
            use_tree_attention(base)
        elif self.attention == "blocks":
            blocks.use_block_attention(base)

    def describe_attention(self) -> str:
        """What attends to the packs, and why it is not the kernel, in words for a summary."""
        if self.attention != "trees":
            return self.attention
        config = self.decoder.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found = f"trees, {kernel.describe(self.dtype, size)}"
        return f"{found}, {len(self.joined)} layers as one function" if self.joined else found

    def describe_gates(self) -> str:
        """What computes the gates of the feed-forward layers, in words for a summary."""
        return describe_gates(self.dtype, self.gates) if self.device == "cpu" else "PyTorch"

    def separate(self) -> None:
        """Compute every layer alone from now on, as `FusedLora.separate` says."""
        restore_forward([*self.gates, *self.joined])
        self.gates, self.joined = [], []
        self.adapters.separate()

    def _what_is_seen(self, batch: Batch) -> dict[str, Any]:
        """The argument that tells the layers which tokens see which."""
        if self.attention == "trees":
            return {"seen": batch.segments}
        if self.attention == "blocks":
            length = batch.token_ids.shape[1]
            return {"seen": blocks.block_mask(batch.segments, length, self.device)}
        return {"attention_mask": batch.mask().to(self.device)}

    def __call__(self, batch: Batch) -> PackLoss:
        """Compute one pack."""
        import torch

        self.adapters.refresh()
        longest = int(batch.position_ids.max()) + 1
        if self.window is not None and longest > self.window:
            raise ModelError(
                f"a row of {longest} tokens is longer than the sliding window of {self.window}",
                f"set prepare.max_length={self.window}",
            )
        low = self.dtype != torch.float32
        where = self._what_is_seen(batch)
        context: Any = torch.autocast(self.device, dtype=self.dtype) if low else nullcontext()
        with context:
            hidden = self.decoder(
                input_ids=batch.token_ids.to(self.device),
                position_ids=batch.position_ids.to(self.device),
                use_cache=False,
                **where,
            ).last_hidden_state
            states = hidden.reshape(-1, hidden.shape[-1])[batch.select.to(self.device)]
            given = (batch.targets, batch.weights, batch.refused, batch.words)
            targets = Targets(*(each.to(self.device) for each in given))
            found = head_loss(self.head, states, targets)
        parts = batch.parts.to(self.device)

        def by_part(values: Any) -> Any:
            return torch.zeros(len(PARTS), device=self.device).index_add_(0, parts, values)

        return PackLoss(
            found.total,
            targets.weights.sum(),
            by_part(found.each),
            by_part(torch.ones_like(found.each)),
            by_part(found.hits.to(found.each.dtype)),
        )

    @contextmanager
    def as_before(self) -> Iterator[Any]:
        """The model as transformers' generate would see it: its own attention, layers not
        compiled (prompts have many lengths), in evaluation mode.
        """
        import torch

        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        trains = self.model.training
        low = self.dtype != torch.float32
        self.model.eval()
        self.adapters.refresh()
        base.set_attn_implementation(self._own_attention)
        context: Any = torch.autocast(self.device, dtype=self.dtype) if low else nullcontext()
        try:
            with torch.compiler.set_stance("force_eager"), torch.no_grad(), context:
                yield self.model
        finally:
            self._attend_to_trees(base)
            self.model.train(trains)


def mean_by_part(sums: Any, counts: Any) -> dict[str, float | None]:
    """Mean of each part; None where there is none of it."""
    return {
        part: round(float(sums[i] / counts[i]), 4) if counts[i] else None
        for i, part in enumerate(PARTS)
    }


def evaluate_loss(
    loss_of: TreeLoss,
    rows: Sequence[Row],
    settings: TrainSection,
    pad_id: int,
    *,
    rank: int = 0,
    processes: int = 1,
    look_at: Callable[[Batch], PackLoss] | None = None,
    add_up: Callable[[Any], Any] = lambda values: values,
) -> Evaluation:
    """Mean unweighted loss and accuracy over rows, whole and by part.

    Args:
        rank, processes: this process computes its share of the packs ...
        look_at: ... by this, `loss_of` where it is None ...
        add_up: ... and this adds a tensor [3, 5] up over the processes.
    """
    import torch

    found = torch.zeros(3, len(PARTS))
    trains = loss_of.model.training
    loss_of.model.eval()  # without dropout
    plan = plan_batches(rows, length=settings.batch_tokens, seed=0)
    packs = plan.packs
    for turn in range(0, len(packs), processes):
        number = turn + rank  # without a pack, one is computed in vain: processes exchange weights
        with torch.no_grad():
            batch = build_batch(packs[min(number, len(packs) - 1)], plan.length, pad_id)
            pack = (look_at or loss_of)(batch)
        if number < len(packs):
            found = found + torch.stack([pack.by_part, pack.counts, pack.hits]).cpu()
    loss_of.model.train(trains)
    sums, counts, hits = add_up(found)
    total = float(counts.sum())
    return Evaluation(
        round(float(sums.sum()) / total, 4) if total else None,
        mean_by_part(sums, counts),
        mean_by_part(hits, counts),
    )
