"""Attention over packed trees on a CPU: each row sees its shared prompt and itself, and nothing
else is computed.

In: queries, keys and values of one flat sequence that holds many trees (data/batch.py), and a table
of segments. Out: what a boolean mask [length, length] would give (a test holds them equal), without
the masked work: with a mask, attention took half of the time at 1,024 tokens and grew with the
square (docs/log.md). The table has a fixed number of lines, so that compiled layers meet one shape.

A segment is a line (shared_start, shared_length, start, length): `length` tokens from `start`
attend causally to themselves and fully to `shared_length` tokens from `shared_start`. In bfloat16 a
kernel of our own computes both ways where the machine can compile it (kernel.py). Elsewhere, each
group of segments (segments.py) is one call of PyTorch's own CPU flash attention forward, and the
backward pass is written out (gradient.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smollora.attention import kernel
from smollora.attention.gradient import tree_attention_backward
from smollora.attention.interface import as_interface, set_attention
from smollora.attention.kernel import tokens_first
from smollora.attention.segments import additive, read_groups

NAME = "smollora_tree"
"""What a model's attention implementation is set to."""

_aten = torch.ops.aten


def _repeat(states: Tensor, times: int) -> Tensor:
    return states if times == 1 else states.repeat_interleave(times, dim=1)


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    "smollora::tree_attention", mutates_args=()
)
def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of one flat sequence of trees.

    Args:
        query: [1, heads, length, head_dim].
        key, value: [1, key-value heads, length, head_dim].
        segments: [lines, 4] int64 on the CPU; lines of length 0 are skipped.
        scale: factor on the scores.

    Returns:
        Output [1, heads, length, head_dim] (0 at positions of no segment) and
        log-sum-exp [1, heads, length] float32.
    """
    if kernel.serves(query, scale):
        return kernel.attend(query, key, value, segments, scale)
    times = query.shape[1] // key.shape[1]
    keys, values = _repeat(key, times), _repeat(value, times)
    out = tokens_first(query).zero_()
    lse = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for shared_start, shared, start, lengths in read_groups(segments):
        here = slice(start, start + sum(lengths))
        k, v = keys[:, :, here], values[:, :, here]
        mask: Tensor | None = None
        if shared:
            there = slice(shared_start, shared_start + shared)
            k = torch.cat([keys[:, :, there], k], dim=2)
            v = torch.cat([values[:, :, there], v], dim=2)
            mask = additive(lengths, shared, query.dtype)
        out[:, :, here], lse[:, :, here] = _aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, here], k, v, 0.0, mask is None, attn_mask=mask, scale=scale
        )
    return out, lse


@tree_attention.register_fake  # type: ignore[untyped-decorator]
def _(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float) -> Any:
    return (
        tokens_first(query),
        query.new_empty(query.shape[:3], dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, segments, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, segments)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
    query, key, value, out, lse, segments = ctx.saved_tensors
    grads = tree_attention_backward(grad, query, key, value, out, lse, segments, ctx.scale)
    return (*grads, None, None)


tree_attention.register_autograd(_backward, setup_context=_setup)


@as_interface
def _attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    out, _sums = tree_attention(query, key, value, seen, scale)
    return out


def use_tree_attention(model: Any) -> None:
    """Set a transformers model to tree attention; `seen=` is the table of segments."""
    set_attention(model, NAME, _attention)
