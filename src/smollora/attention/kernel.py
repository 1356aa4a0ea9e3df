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
    states = _as_queries(query, key, value)
    heads = Heads(query.shape[1], key.shape[1], query.shape[3])
    _call("attend", heads, [*map(Place.of, states), Place.of(out)], lse, segments, scale)
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
    grad, *states, out = _as_queries(grad, query, key, value, out)
    places = [Place.of(each) for each in (grad, *states, out, *made)]
    heads = Heads(query.shape[1], key.shape[1], query.shape[3])
    _call("differentiate_attention", heads, places, lse.contiguous(), segments, scale)
    return made


def _as_queries(*states: Tensor) -> list[Tensor]:
    """In the type of the queries (bfloat16), their last dimension dense."""
    return [native.dense(each.to(torch.bfloat16)) for each in states]


# ── from one product to the next ──────────────────────────────────────────────────────────────


class Place(NamedTuple):
    """Where [heads, length, head_dim] values lie, the last dimension dense."""

    at: int
    """Address."""
    head: int
    """Values from a head to the next."""
    token: int

    @classmethod
    def of(cls, states: Tensor) -> Place:
        """Of [1, heads, length, head_dim]."""
        return cls(states.data_ptr(), states.stride(1), states.stride(2))


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

    def places(self, rows: Tensor) -> list[Place]:
        """Queries, keys and values in rows [length, values of a token]."""
        at, size = rows.data_ptr(), rows.element_size() * self.wide
        before = 0, self.queries, self.queries + self.keys
        return [Place(at + size * heads, self.wide, rows.stride(0)) for heads in before]

    def place_out(self, rows: Tensor) -> Place:
        """The output, which is first in rows [length, out + others]."""
        return Place(rows.data_ptr(), self.wide, rows.stride(0))


Angles = tuple[Tensor | None, Tensor | None]
"""Cosines and sines of a rotary embedding [length, head_dim] bfloat16; None: nothing is turned."""


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
    rows, first = native.dense(rows), native.dense(first)
    joined = rows.new_empty(len(rows), heads.out + len(first))
    lse = rows.new_empty(heads.queries, len(rows), dtype=torch.float32)
    factor = Place(first.data_ptr(), 0, first.stride(0))
    places = [*heads.places(rows), heads.place_out(joined), factor]
    _call("attend", heads, places, lse, segments, scale, angles, len(first))
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
    grad, rows, joined = map(native.dense, (grad, rows, joined))
    made = torch.empty_like(rows, memory_format=torch.contiguous_format)
    given = heads.place_out(grad), *heads.places(rows), heads.place_out(joined)
    places = [*given, *heads.places(made)]
    _call("differentiate_attention", heads, places, lse.contiguous(), segments, scale, angles)
    return made


def _call(
    name: str,
    heads: Heads,
    places: Sequence[Place],
    lse: Tensor,
    segments: Tensor,
    scale: float,
    angles: Angles = (None, None),
    rank: int = 0,
) -> None:
    """Call the kernel; `places` of bfloat16 values in the order of attention.cpp.

    Raises:
        ValueError: the table of segments speaks of tokens that are not there.
    """
    library = native.kernels().library
    length = lse.shape[-1]
    table = segments.to(torch.int64).contiguous()
    counts = len(table), torch.get_num_threads(), rank
    sizes = native.integers((heads.queries, heads.keys, length, heads.wide, *counts))
    backward = int(name == "differentiate_attention")
    space = native.Space.of(library.count_attention_space(sizes, backward))
    turned = [each.to(torch.bfloat16).contiguous() for each in angles if each is not None]
    refused = getattr(library, name)(
        sizes,
        (ctypes.c_void_p * len(places))(*(place.at for place in places)),
        native.integers([step for place in places for step in place[1:]]),
        native.addresses(turned) if turned else (ctypes.c_void_p * 2)(),
        ctypes.c_void_p(lse.data_ptr()),
        ctypes.c_void_p(table.data_ptr()),
        ctypes.c_float(scale),
        space.at,
    )
    if refused:
        raise ValueError(f"the table of segments goes past the {length} tokens")
