"""Attention over packed trees on a GPU: PyTorch's FlexAttention, which skips the blocks of the mask
that nothing sees.

In: the table of segments of a pack (as the package describes it). Out: what a boolean mask
[length, length] would give (a test holds them equal), in one kernel forward and two backward,
without the mask's memory. Source: FlexAttention (Dong et al. 2024), torch.nn.attention.
The surprise: outside of compiled code it computes every score in float32 and keeps them; so
where the layers are not compiled, it is compiled by itself.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from smollora.attention.interface import as_interface, set_attention

NAME = "smollora_tree_blocks"
"""What a model's attention implementation is set to."""


def can_use_blocks() -> bool:
    """True if Triton is there, which compiles FlexAttention for a GPU."""
    return importlib.util.find_spec("triton") is not None


def read_bounds(segments: Tensor, length: int) -> Tensor:
    """What each token of a flat sequence sees: the shared prompt, tokens [0] to [1], and itself and
    its row from [2] on; [3, length] int64. A token of no segment sees itself.

    Args:
        segments: [lines, 4] int64: shared_start, shared_length, start, length.
        length: tokens of the sequence.
    """
    bounds = torch.zeros((3, length), dtype=torch.int64)
    bounds[2] = torch.arange(length)
    for shared_start, shared, start, own in segments.tolist():
        bounds[0, start : start + own] = shared_start
        bounds[1, start : start + own] = shared_start + shared
        bounds[2, start : start + own] = start
    return bounds


def block_mask(segments: Tensor, length: int, device: str) -> BlockMask:
    """The mask of a pack, in blocks of 128 by 128 tokens."""
    low, high, own = read_bounds(segments, length).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shared = (key >= low[query]) & (key < high[query])
        return shared | ((key >= own[query]) & (key <= query))

    return create_block_mask(sees, None, None, length, length, device=device)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@as_interface
def _attention(query: Tensor, key: Tensor, value: Tensor, seen: BlockMask, scale: float) -> Tensor:
    alone = query.is_cuda and not torch.compiler.is_compiling()
    attend = _compiled() if alone else flex_attention
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = attend(query, key, value, block_mask=seen, scale=scale, enable_gqa=grouped)
    return out


def use_block_attention(model: Any) -> None:
    """Set a transformers model to FlexAttention; `seen=` is the `block_mask`."""
    set_attention(model, NAME, _attention)
