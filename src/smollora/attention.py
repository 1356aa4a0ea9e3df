"""Attention over packed trees on a CPU: each row sees its shared prompt and itself, and nothing
else is computed.

In: queries, keys and values of one flat sequence that holds many trees (data/batch.py), and a table
of segments. Out: what a boolean mask [length, length] would give (a test holds them equal), without
the masked work: with a mask, attention took half of the time at 1,024 tokens and grew with the
square (docs/log.md). The table has a fixed number of lines, so that compiled layers meet one shape.

A segment is a line (shared_start, shared_length, start, length): `length` tokens from `start`
attend causally to themselves and fully to `shared_length` tokens from `shared_start`. Forward, each
segment is one call of PyTorch's own CPU flash attention; its backward kernel does not use the
matrix units (50 GFLOP/s where products reach 2,000), so the backward pass is written out in blocks
of queries here, with the formulas of FlashAttention-2 (Dao 2023, section 2.3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from smollora.errors import ModelError

NAME = "smollora_tree"
"""What a model's attention implementation is set to."""

BLOCK = 128
"""Queries of one long row that the backward pass takes at one time."""
GROUP = 128
"""Tokens of short neighbouring rows that are computed together."""

_aten = torch.ops.aten


def _repeat(states: Tensor, times: int) -> Tensor:
    return states if times == 1 else states.repeat_interleave(times, dim=1)


@lru_cache(maxsize=128)
def _hidden(lengths: tuple[int, ...]) -> Tensor:
    """[n, n] bool, True where a token of these neighbouring rows must not see another."""
    total = sum(lengths)
    hidden = torch.ones((total, total), dtype=torch.bool).triu_(1)
    at = 0
    for length in lengths:
        hidden[at : at + length, :at] = True
        at += length
    return hidden


@lru_cache(maxsize=128)
def _hidden_folded(lengths: tuple[int, ...], times: int) -> Tensor:
    """The same for folded queries, [n * times, n]."""
    return _hidden(lengths).repeat_interleave(times, dim=0)


def _fold(states: Tensor, times: int) -> Tensor:
    """[1, kv * times, length, width] -> [kv, length * times, width]: query heads that share a
    key-value head become rows beside each other, so that nothing of the keys is repeated.
    """
    _, heads, length, width = states.shape
    by_head = states[0].view(heads // times, times, length, width)
    return by_head.transpose(1, 2).reshape(heads // times, length * times, width)


def _unfold(states: Tensor, times: int) -> Tensor:
    """The way back of `_fold`."""
    heads, rows, width = states.shape
    by_row = states.view(heads, rows // times, times, width)
    return by_row.transpose(1, 2).reshape(1, heads * times, rows // times, width)


@lru_cache(maxsize=128)
def _additive(lengths: tuple[int, ...], shared: int, dtype: torch.dtype) -> Tensor:
    """The same as an additive mask [1, 1, n, shared + n]; the shared tokens are seen by all."""
    total = sum(lengths)
    mask = torch.zeros((total, shared + total), dtype=dtype)
    mask[:, shared:].masked_fill_(_hidden(lengths), float("-inf"))
    return mask[None, None]


def _groups(segments: Tensor) -> list[tuple[int, int, int, tuple[int, ...]]]:
    """Neighbouring segments with the same prompt, gathered to at most GROUP tokens:
    (shared_start, shared, start, lengths).
    """
    groups: list[tuple[int, int, int, tuple[int, ...]]] = []
    for shared_start, shared, start, own in segments.tolist():
        if own == 0:
            continue
        if groups and shared:
            before_start, before, first, lengths = groups[-1]
            size = sum(lengths)
            near = (before_start, before, first + size) == (shared_start, shared, start)
            if near and size + own <= GROUP:
                groups[-1] = (shared_start, shared, first, (*lengths, own))
                continue
        groups.append((shared_start, shared, start, (own,)))
    return groups


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
    times = query.shape[1] // key.shape[1]
    keys, values = _repeat(key, times), _repeat(value, times)
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    lse = query.new_zeros(query.shape[:3], dtype=torch.float32)
    for shared_start, shared, start, lengths in _groups(segments):
        here = slice(start, start + sum(lengths))
        k, v = keys[:, :, here], values[:, :, here]
        mask: Tensor | None = None
        if shared:
            there = slice(shared_start, shared_start + shared)
            k = torch.cat([keys[:, :, there], k], dim=2)
            v = torch.cat([values[:, :, there], v], dim=2)
            mask = _additive(lengths, shared, query.dtype)
        out[:, :, here], lse[:, :, here] = _aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, here], k, v, 0.0, mask is None, attn_mask=mask, scale=scale
        )
    return out, lse


@tree_attention.register_fake  # type: ignore[untyped-decorator]
def _(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float) -> Any:
    return (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        query.new_empty(query.shape[:3], dtype=torch.float32),
    )


@torch.library.custom_op(  # type: ignore[untyped-decorator]
    "smollora::tree_attention_backward", mutates_args=()
)
def tree_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `tree_attention`; scores and the sums over rows of a shared prompt are
    float32.
    """
    dtype = query.dtype
    times = query.shape[1] // key.shape[1]
    queries, grads, sums = (_fold(states, times) for states in (query, grad, lse[..., None]))
    high_queries, high_grads = queries.float(), grads.float()
    delta = (high_grads * _fold(out, times)).sum(dim=-1, keepdim=True)
    keys, values = key[0], value[0]
    d_queries = torch.zeros_like(queries)
    d_keys = keys.new_zeros(keys.shape, dtype=torch.float32)
    d_values = torch.zeros_like(d_keys)
    for shared_start, shared, start, lengths in _groups(segments):
        total = sum(lengths)
        step = total if len(lengths) > 1 else BLOCK
        for first in range(0, total, step):
            count = min(step, total - first)
            rows = slice((start + first) * times, (start + first + count) * times)
            seen = [slice(start, start + first + count)]
            if shared:
                seen.insert(0, slice(shared_start, shared_start + shared))
            k = torch.cat([keys[:, part] for part in seen], dim=1)
            v = torch.cat([values[:, part] for part in seen], dim=1)
            weights = torch.bmm(high_queries[:, rows], k.float().transpose(1, 2))
            weights.mul_(scale).sub_(sums[:, rows]).exp_()
            hidden = _hidden_folded(lengths if len(lengths) > 1 else (count,), times)
            weights[:, :, -count:].masked_fill_(hidden, 0.0)
            d_scores = torch.bmm(high_grads[:, rows], v.float().transpose(1, 2))
            d_scores.sub_(delta[:, rows]).mul_(weights)
            low, low_weights = d_scores.to(dtype), weights.to(dtype)
            d_queries[:, rows] = torch.bmm(low, k)
            sizes = [part.stop - part.start for part in seen]
            d_k = torch.bmm(low.transpose(1, 2), queries[:, rows]).split(sizes, dim=1)
            d_v = torch.bmm(low_weights.transpose(1, 2), grads[:, rows]).split(sizes, dim=1)
            for part, more_k, more_v in zip(seen, d_k, d_v, strict=True):
                d_keys[:, part] += more_k
                d_values[:, part] += more_v
    d_query = _unfold(d_queries, times).mul_(scale)
    return d_query, d_keys.mul_(scale).to(dtype)[None], d_values.to(dtype)[None]


@tree_attention_backward.register_fake  # type: ignore[untyped-decorator]
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    scale: float,
) -> Any:
    return (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        torch.empty_like(key, memory_format=torch.contiguous_format),
        torch.empty_like(value, memory_format=torch.contiguous_format),
    )


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, segments, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, segments)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
    query, key, value, out, lse, segments = ctx.saved_tensors
    grads = tree_attention_backward(
        grad.contiguous(), query, key, value, out, lse, segments, ctx.scale
    )
    return (*grads, None, None)


tree_attention.register_autograd(_backward, setup_context=_setup)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    Raises:
        ModelError: the layer wants what a tree does not compute.
    """
    if softcap is not None or s_aux is not None:
        raise ModelError(
            "this model's attention has soft caps or sinks, which packed trees do not compute",
            "train it with another trainer; inspect, prepare, verify and probe serve it as well",
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key = (
        query.to(value.dtype),
        key.to(value.dtype),
    )  # rotation leaves float32 under autocast
    out, _sums = tree_attention(query, key, value, segments, scale)
    return out.transpose(1, 2).contiguous(), None


def use_tree_attention(model: Any) -> None:
    """Set a transformers model to tree attention; its forward then needs `segments=`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)
