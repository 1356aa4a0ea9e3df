"""Activation checkpointing: a layer's activations are forgotten and computed again on the way back,
where keeping those of a whole pack would not fit.

In: sizes of the model, tokens of a pack, the memory that is free. Out: whether to do so, and layers
that do. Losses and gradients are the same (a test holds them equal), dropout included, for torch
keeps the generator's state; a step takes longer. The estimate counts the tensors that autograd
keeps when layers are not compiled: a test holds it against what it does keep.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smollora.config import TrainSection
from smollora.errors import ConfigError
from smollora.train.four_bit import four_bit_layers
from smollora.train.gate import is_gated
from smollora.train.head import CHUNK

SAFE = 0.9
"""Share of the free memory that a pack may take."""
WIDE = 4
"""Bytes of a float32: norms and gradients."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the activations of a training depend on."""

    layers: int
    width: int
    """Of the hidden states."""
    inner: int
    """Of the feed-forward part."""
    queries: int
    """Query heads times their width."""
    keys: int
    """Key-value heads times their width."""
    heads: int
    rank: int
    targets: int
    """LoRA factors a layer."""
    vocabulary: int
    trained: int
    """Parameters that are trained."""
    dropout: bool
    item: int
    """Bytes of a value in the compute type."""
    gated: bool = False
    """Feed-forward layers are one function of ours (gate.py), which keeps less."""
    read_back: int = 0
    """Weights of the largest 4-bit layer, which is read back beside its second factor."""


def read_sizes(peft: Any, settings: TrainSection, dtype: str) -> Sizes:
    """The sizes of a model with adapters."""
    config = peft.get_base_model().config
    heads = config.num_attention_heads
    packed = [layer.weight for layer in four_bit_layers(peft)]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Sizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=getattr(config, "intermediate_size", 4 * config.hidden_size),
        queries=heads * head_dim,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        heads=heads,
        rank=settings.rank,
        targets=len(settings.targets),
        vocabulary=config.vocab_size,
        trained=sum(p.numel() for p in peft.parameters() if p.requires_grad),
        dropout=settings.dropout > 0,
        item=2 if dtype == "bfloat16" else 4,
        gated=any(is_gated(module) for module in peft.modules()),
        read_back=max((w.quant_state.shape.numel() for w in packed), default=0),
    )


def token_bytes(sizes: Sizes) -> int:
    """What autograd keeps of one token in one layer, bytes."""
    norms = 2 * sizes.width + sizes.heads + 2  # what they are given, and sums
    heads_normed = sizes.queries + sizes.keys + 2 * sizes.heads  # Qwen 3; elsewhere to be safe
    attention = 2 * sizes.queries + 2 * sizes.keys  # queries, keys, values, what comes out
    gates = (2 if sizes.gated else 3) * sizes.inner
    given = 2 * sizes.width + sizes.queries + (0 if sizes.gated else sizes.inner)  # to the factors
    if sizes.dropout:  # what is left of each one's, and its mask
        given = 2 * (5 * sizes.width + sizes.queries + sizes.inner)
    values = attention + gates + given + sizes.targets * sizes.rank
    copies = 4 * sizes.width + sizes.queries + sizes.keys if sizes.item < WIDE else 0  # of float32
    return WIDE * (norms + heads_normed) + sizes.item * (values + copies)


def pack_bytes(sizes: Sizes, tokens: int) -> int:
    """What training takes beside the weights while a pack is computed, bytes: activations, logits
    of one piece of the head, a 4-bit layer read back, gradients and moments of what is trained.
    """
    head = 3 * CHUNK * sizes.vocabulary * WIDE
    weights = 2 * sizes.read_back * sizes.item  # as it is read, and beside the factor
    return tokens * sizes.layers * token_bytes(sizes) + head + weights + 3 * WIDE * sizes.trained


def free_memory(device: str) -> int:
    """Bytes that this process may still take: of the GPU, or its share of the machine's memory."""
    if device == "cuda":
        import torch

        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + int(cached)
    import psutil

    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def fits(sizes: Sizes, tokens: int, free: int) -> bool:
    """Whether a pack of so many tokens fits into so many bytes, with all that autograd keeps."""
    return pack_bytes(sizes, tokens) <= SAFE * free


def can_checkpoint(base: Any) -> bool:
    """Whether transformers knows this model's layers well enough to compute them again."""
    return bool(getattr(base, "supports_gradient_checkpointing", False))


def wants_checkpointing(peft: Any, settings: TrainSection, dtype: str, device: str) -> bool:
    """What `train.activation_checkpointing` comes to here.

    Raises:
        ConfigError: it is on, and the model's code cannot do it.
    """
    base, setting = peft.get_base_model(), settings.activation_checkpointing
    if setting == "on" and not can_checkpoint(base):
        raise ConfigError(
            f"train.activation_checkpointing=on, which {type(base).__name__} does not support",
            "set train.activation_checkpointing=off and, if memory runs out, lower"
            " train.batch_tokens",
        )
    if setting != "auto":
        return setting == "on"
    sizes = read_sizes(peft, settings, dtype)
    return can_checkpoint(base) and not fits(sizes, settings.batch_tokens, free_memory(device))


def checkpoint_layers(peft: Any, separate: Callable[[], None]) -> None:
    """Let every decoder layer be computed again on the way back, in training mode alone.

    Args:
        peft: the model.
        separate: has layers that are computed together computed alone.
    """
    separate()
    base = peft.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": False})
    base.disable_input_require_grads()  # only the reentrant kind needs gradients of its inputs
