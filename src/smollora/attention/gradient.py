"""Gradients of tree attention, written out in tiles of one size with the formulas of
FlashAttention-2 (Dao 2023, section 2.3).

PyTorch's own backward kernel for the CPU does not use the matrix units (50 GFLOP/s where products
reach 2,000). The surprise: tiles are filled up to few widths and computed in the same buffers
again and again. oneDNN compiles a kernel for every new shape (70 ms a step), and thousands of
small tensors of all sizes leave the heap in pieces, which cost a third more time after fifty steps
(docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from smollora.attention import kernel
from smollora.attention.kernel import tokens_first
from smollora.attention.segments import Group, hidden, read_groups

TILE = 192
"""Queries of a tile at most; at least segments.GROUP."""
STEP = 64
"""Queries and keys of a tile are filled up to a multiple of this."""

Span = tuple[int, int]
"""(first token, tokens)"""


class Tile(NamedTuple):
    """Queries that are computed together, and what they see."""

    start: int
    queries: int
    """At most TILE tokens."""
    height: int
    """Queries computed."""
    seen: tuple[Span, ...]
    width: int
    """Keys computed: those of `seen` and some that are hidden."""
    hidden: Tensor
    """[height * times, the last keys] bool: what of them must not be seen."""


@lru_cache(maxsize=4)
def plan_tiles(groups: tuple[Group, ...], times: int) -> tuple[Tile, ...]:
    """Tiles of these groups.

    Args:
        groups: of a table of segments.
        times: query heads that share a key-value head.
    """
    tiles = []
    for shared_start, shared, start, lengths in groups:
        total = sum(lengths)
        step = total if len(lengths) > 1 else TILE
        for first in range(0, total, step):
            count = min(step, total - first)
            own = first + count
            height, width = _fill_up(count), _fill_up(shared + own)
            mask = torch.ones((height, width - shared - first), dtype=torch.bool)
            mask[:count, :count] = hidden(lengths if len(lengths) > 1 else (count,))
            seen: tuple[Span, ...] = ((start, own),)
            if shared and shared_start + shared == start:
                seen = ((shared_start, shared + own),)
            elif shared:
                seen = ((shared_start, shared), *seen)
            folded = mask.repeat_interleave(times, dim=0)
            tiles.append(Tile(start + first, count, height, seen, width, folded))
    return tuple(tiles)


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
    """Gradients of `tree_attention`: of queries, keys and values; everything between is float32.

    Args:
        grad, out: [1, heads, length, head_dim], gradient and value of the output.
        query, key, value, segments, scale: what `tree_attention` was given.
        lse: [1, heads, length] float32, log-sum-exp of the scores.
    """
    if kernel.serves(query, scale):
        return kernel.differentiate(grad, query, key, value, out, lse, segments, scale)
    dtype, (heads, length, wide) = query.dtype, key.shape[1:]
    times = query.shape[1] // heads
    tiles = plan_tiles(read_groups(segments), times)
    queries, grads = fold(query, times).float(), fold(grad, times).float()
    sums = fold(lse[..., None], times).neg()
    delta = (grads * fold(out, times)).sum(dim=-1, keepdim=True)
    keys, values = (functional.pad(states[0].float(), (0, 0, 0, STEP)) for states in (key, value))
    d_queries = torch.zeros_like(queries)
    d_keys, d_values = (keys.new_zeros((heads, length, wide)) for _ in (keys, values))

    most, widest = TILE * times, max((tile.width for tile in tiles), default=0)
    by_query = (queries, grads, sums, delta)
    short = [states.new_zeros((heads, most, states.shape[-1])) for states in by_query]
    gathered = [keys.new_zeros((heads, widest, wide)) for _ in (keys, values)]
    space = [keys.new_empty(heads * most * widest) for _ in (keys, values)]
    for tile in tiles:
        used, rows = tile.queries * times, tile.height * times
        here = slice(tile.start * times, tile.start * times + used)
        if used == rows:
            q, g, s, d = (states[:, here] for states in by_query)
        else:
            q, g, s, d = (states[:, :rows] for states in short)
            for states, filled in zip(by_query, (q, g, s, d), strict=True):
                filled[:, :used] = states[:, here]
                filled[:, used:] = 0
        first = tile.seen[0][0]
        if len(tile.seen) == 1 and first + tile.width <= keys.shape[1]:
            k, v = (states[:, first : first + tile.width] for states in (keys, values))
        else:
            k, v = (states[:, : tile.width] for states in gathered)
            _gather(keys, tile.seen, k)
            _gather(values, tile.seen, v)
        shape = (heads, rows, tile.width)
        weights, d_scores = (one[: heads * rows * tile.width].view(shape) for one in space)
        torch.bmm(q, k.transpose(1, 2), out=weights)
        torch.add(s, weights, alpha=scale, out=weights).exp_()
        weights[:, :, -tile.hidden.shape[1] :].masked_fill_(tile.hidden, 0.0)
        torch.bmm(g, v.transpose(1, 2), out=d_scores).sub_(d).mul_(weights)
        d_queries[:, here] = torch.bmm(d_scores, k)[:, :used]
        _scatter(torch.bmm(d_scores.transpose(1, 2), q), tile.seen, d_keys)
        _scatter(torch.bmm(weights.transpose(1, 2), g), tile.seen, d_values)
    folded = (
        unfold(d_queries.mul_(scale), times),
        d_keys[None].mul_(scale),
        d_values[None],
    )
    d_query, d_key, d_value = (tokens_first(each, dtype).copy_(each) for each in folded)
    return d_query, d_key, d_value


@tree_attention_backward.register_fake  # type: ignore[untyped-decorator]
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    given = (query, key, value)
    return tuple(tokens_first(each) for each in given)


def fold(states: Tensor, times: int) -> Tensor:
    """[1, kv * times, length, width] -> [kv, length * times, width]: query heads that share a
    key-value head become rows beside each other, so that nothing of the keys is repeated.
    """
    _, heads, length, width = states.shape
    by_head = states[0].view(heads // times, times, length, width)
    return by_head.transpose(1, 2).reshape(heads // times, length * times, width)


def unfold(states: Tensor, times: int) -> Tensor:
    """The way back of `fold`."""
    heads, rows, width = states.shape
    by_row = states.view(heads, rows // times, times, width)
    return by_row.transpose(1, 2).reshape(1, heads * times, rows // times, width)


def _fill_up(count: int) -> int:
    return -(-count // STEP) * STEP


def _gather(states: Tensor, seen: Sequence[Span], into: Tensor) -> None:
    """Write those tokens [heads, tokens, width] one after the other."""
    at = 0
    for start, count in seen:
        into[:, at : at + count] = states[:, start : start + count]
        at += count


def _scatter(states: Tensor, seen: Sequence[Span], into: Tensor) -> None:
    """Add what stands one after the other to those tokens."""
    at = 0
    for start, count in seen:
        into[:, start : start + count] += states[:, at : at + count]
        at += count
