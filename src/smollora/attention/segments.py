"""What the table of segments says: which rows are computed together, and what they must not see."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 192
"""Tokens of short neighbouring rows that are computed together."""


class Group(NamedTuple):
    """Neighbouring rows after one prompt, or one row without."""

    shared_start: int
    shared: int
    """Tokens of the prompt; 0 where there is none."""
    start: int
    lengths: tuple[int, ...]
    """Tokens of each row; the rows follow each other from `start`."""


def read_groups(segments: Tensor) -> tuple[Group, ...]:
    """Neighbouring segments with the same prompt, gathered to at most GROUP tokens.

    Args:
        segments: [lines, 4] int64, as the package describes it.
    """
    groups: list[Group] = []
    for shared_start, shared, start, own in segments.tolist():
        if own == 0:
            continue
        if groups and shared:
            before = groups[-1]
            size = sum(before.lengths)
            follows = before[:2] == (shared_start, shared) and before.start + size == start
            if follows and size + own <= GROUP:
                groups[-1] = before._replace(lengths=(*before.lengths, own))
                continue
        groups.append(Group(shared_start, shared, start, (own,)))
    return tuple(groups)


@lru_cache(maxsize=64)
def hidden(lengths: tuple[int, ...]) -> Tensor:
    """[n, n] bool, True where a token of these neighbouring rows must not see another."""
    total = sum(lengths)
    mask = torch.ones((total, total), dtype=torch.bool).triu_(1)
    at = 0
    for length in lengths:
        mask[at : at + length, :at] = True
        at += length
    return mask


@lru_cache(maxsize=64)
def additive(lengths: tuple[int, ...], shared: int, dtype: torch.dtype) -> Tensor:
    """The same as a mask [1, 1, n, shared + n] that is added; all see the shared tokens."""
    total = sum(lengths)
    mask = torch.zeros((total, shared + total), dtype=dtype)
    mask[:, shared:].masked_fill_(hidden(lengths), float("-inf"))
    return mask[None, None]
