"""The same attention in C++ for bfloat16 (native/attention.cpp).

In: what `tree_attention` and its gradients are given. Out: the same, or a reason why this machine
or these tensors are served by PyTorch's operators instead (`describe`): that is no error, only
slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smollora import native

WIDTHS = (64, 128)
"""Sizes of a head that it computes."""


def why_not(dtype: torch.dtype, wide: int) -> str:
    """Why tensors of this type and size of a head are not computed by it; "" if they are."""
    if dtype == torch.bfloat16 and wide not in WIDTHS:
        return f"it computes heads of {' or '.join(map(str, WIDTHS))}, not {wide}"
    return native.why_not(dtype)


def serves(query: Tensor, scale: float) -> bool:
    """True if the kernel computes attention of such queries."""
    here = query.device.type == "cpu" and scale > 0
    return here and not why_not(query.dtype, query.shape[3])


def describe(dtype: torch.dtype, wide: int) -> str:
    """What computes attention over trees on this processor, in words for a summary."""
    return native.describe(why_not(dtype, wide))


def tokens_first(states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Empty, of the size of [1, heads, length, head_dim], laid out token by token: then the layer
    beside attention copies nothing.
    """
    return states.new_empty(states.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`tree_attention`, for queries that it `serves`."""
    out = tokens_first(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    _call("attend", (query, key, value, out), lse, segments, scale)
    return out, lse


def differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`tree_attention_backward`, for the same."""
    made = tokens_first(query), tokens_first(key), tokens_first(value)
    states = (grad, query, key, value, out, *made)
    _call("differentiate_attention", states, lse.contiguous(), segments, scale)
    return made


# ── from one product to the next ──────────────────────────────────────────────────────────────


class Heads(NamedTuple):
    """How a layer's queries, keys and values lie in a row, in this order."""

    queries: int
    keys: int
    """As many are of the values."""
    wide: int

    @property
    def out(self) -> int:
        """Values of a token's output."""
        return self.queries * self.wide

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[length, values of a token] -> views [1, heads, length, head_dim]."""
        heads = rows.unflatten(1, (-1, self.wide)).transpose(0, 1)[None]
        return tuple(heads.split((self.queries, self.keys, self.keys), dim=1))

    def read_out(self, joined: Tensor) -> Tensor:
        """[length, out + others] -> a view of the output [1, queries, length, head_dim]."""
        return joined[:, : self.out].unflatten(1, (self.queries, self.wide)).transpose(0, 1)[None]


Angles = tuple[Tensor | None, Tensor | None]
"""Cosines and sines of a rotary embedding [length, head_dim]; None: nothing is turned."""


def attend_rows(
    rows: Tensor, angles: Angles, segments: Tensor, first: Tensor, heads: Heads, scale: float
) -> tuple[Tensor, Tensor]:
    """`tree_attention` of what one product has made, rotated, and what the next product reads.

    Args:
        rows: [length, queries, keys and values] bfloat16, not rotated.
        first: [rank, out] bfloat16, the next product's first factor.

    Returns:
        [length, out + rank] bfloat16, the output and what `first` makes of it, and log-sum-exp
        [queries, length] float32.
    """
    rank = len(first)
    joined = rows.new_empty(len(rows), heads.out + rank)
    lse = rows.new_empty(heads.queries, len(rows), dtype=torch.float32)
    states = (*heads.split(rows), heads.read_out(joined), first[None, None])
    _call("attend", states, lse, segments, scale, angles, rank)
    return joined, lse


def differentiate_rows(
    grad: Tensor,
    rows: Tensor,
    joined: Tensor,
    lse: Tensor,
    angles: Angles,
    segments: Tensor,
    heads: Heads,
    scale: float,
) -> Tensor:
    """The gradient of `rows`, as they, from that of the output [length, out] bfloat16."""
    made = torch.empty_like(rows, memory_format=torch.contiguous_format)
    states = heads.read_out(grad), *heads.split(rows), heads.read_out(joined), *heads.split(made)
    _call("differentiate_attention", states, lse.contiguous(), segments, scale, angles)
    return made


def _call(
    name: str,
    states: Sequence[Tensor],
    lse: Tensor,
    segments: Tensor,
    scale: float,
    angles: Angles = (None, None),
    rank: int = 0,
) -> None:
    """Call the kernel; `states` [1, heads, length, head_dim] in the order of attention.cpp.

    Raises:
        ValueError: the table of segments speaks of tokens that are not there.
    """
    library = native.kernels().library
    backward = name == "differentiate_attention"
    query, key = states[1:3] if backward else states[:2]
    states = [each.to(query.dtype) for each in states]
    dense = [each if each.stride(3) == 1 else each.contiguous() for each in states]
    table = segments.to(torch.int64).contiguous()
    counts = len(table), torch.get_num_threads(), rank
    sizes = native.integers((query.shape[1], key.shape[1], *query.shape[2:], *counts))
    space = native.Space.of(library.count_attention_space(sizes, int(backward)))
    turned = [each.to(torch.float32).contiguous() for each in angles if each is not None]
    refused = getattr(library, name)(
        sizes,
        native.addresses(dense),
        native.integers([step for each in dense for step in each.stride()[1:3]]),
        native.addresses(turned) if turned else (ctypes.c_void_p * 2)(),
        ctypes.c_void_p(lse.data_ptr()),
        ctypes.c_void_p(table.data_ptr()),
        ctypes.c_float(scale),
        space.at,
    )
    if refused:
        raise ValueError(f"the table of segments goes past the {query.shape[2]} tokens")
