"""The same attention in C++ for bfloat16 (native/attention.cpp).

In: what `tree_attention` and its gradients are given. Out: the same, or a reason why this machine
or these tensors are served by PyTorch's operators instead (`describe`): that is no error, only
slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

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


def _call(name: str, states: Sequence[Tensor], lse: Tensor, segments: Tensor, scale: float) -> None:
    """Call the kernel; `states` [1, heads, length, head_dim] in the order of attention.cpp.

    Raises:
        ValueError: the table of segments speaks of tokens that are not there.
    """
    library = native.kernels().library
    backward = len(states) > 4
    query, key = states[1:3] if backward else states[:2]
    states = [each.to(query.dtype) for each in states]
    dense = [each if each.stride(3) == 1 else each.contiguous() for each in states]
    table = segments.to(torch.int64).contiguous()
    of = (query.shape[1], key.shape[1], *query.shape[2:], len(table), torch.get_num_threads())
    sizes = native.integers(of)
    space = native.Space.of(library.count_attention_space(sizes, int(backward)))
    refused = getattr(library, name)(
        sizes,
        native.addresses(dense),
        native.integers([step for each in dense for step in each.stride()[1:3]]),
        ctypes.c_void_p(lse.data_ptr()),
        ctypes.c_void_p(table.data_ptr()),
        ctypes.c_float(scale),
        space.at,
    )
    if refused:
        raise ValueError(f"the table of segments goes past the {query.shape[2]} tokens")
