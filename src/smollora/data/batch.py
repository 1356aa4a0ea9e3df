"""Rendered rows -> tensors of bounded size, common prompts computed once.

In: rows as (token ids, labels' weights, parts). Out: `Batch` of tensors. Rows that begin with the
same prompt (system text and tools) become a *tree*: the prompt once, then each row's own tokens,
which see the prompt and themselves but not their siblings, with positions that go on from the
prompt. That is exactly what training the rows one by one computes (a test holds the losses equal),
at a fraction of the tokens: the starter rows shrink to about a quarter. Trees are packed into
sequences of one length, so that compiled layers meet one shape.

The surprise: a row's first trained token is predicted by the token before it, so the shared prompt
must end before that one.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

MIN_SHARED = 24
"""A shorter common prompt is not worth a tree."""
LEAST_TREE = 4
"""A tree may fill 1/LEAST_TREE of a step whatever its prompt ..."""
PROMPT_ONE_IN = 5
"""... and more until the prompt is one in so many of its tokens: long prompts are worth sharing
among many rows, short ones leave room for other lists in the same step.
"""
AHEAD = 32
"""Trees that a step may choose from to fill up. With more, the short ones are used up early and the
last steps stay empty (docs/log.md).
"""
SEGMENT_LINES = 256
"""The segment table is padded to a multiple of this, so that its shape seldom changes."""


class Refusal(NamedTuple):
    """A token that is no call though it could have been one."""

    at: int
    """Index of the token in its row."""
    refused: int
    """The token that would have opened a call."""
    word: float
    """Weight of which token it is instead; the row's weight there is that of refusing."""


@dataclass(frozen=True, slots=True)
class Row:
    """What training needs of a rendered row."""

    conversation_id: str
    token_ids: tuple[int, ...] | array[int]
    weights: tuple[float, ...] | array[float]
    """Weight of each token in the loss; 0 = not trained."""
    parts: tuple[int, ...] | array[int]
    """Index into `types.PARTS`, -1 where not trained."""
    refusals: tuple[Refusal, ...] = ()

    @property
    def first_trained(self) -> int:
        """Index of the first trained token; the length of the row if all weigh nothing."""
        trained = (i for i, weight in enumerate(self.weights) if weight > 0)
        return next(trained, len(self.token_ids))

    def compact(self) -> Row:
        """The same row in 9 bytes a token (int32, float32, int8) instead of some 50."""
        return Row(
            self.conversation_id,
            array("i", self.token_ids),
            array("f", self.weights),
            array("b", self.parts),
            self.refusals,
        )


@dataclass(frozen=True, slots=True)
class Tree:
    """Rows that share their first `shared` tokens."""

    rows: tuple[Row, ...]
    shared: int

    @property
    def length(self) -> int:
        """Tokens that are computed."""
        return self.shared + sum(len(row.token_ids) - self.shared for row in self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one optimiser step: one flat sequence of trees.

    Shapes: `token_ids`, `position_ids` [1, length]; `segments` [lines, 4] as attention.py reads
    them; `select` [n] positions whose next token is trained; `targets`, `parts` [n]; `weights` [n]
    float32; `refused` [n] int64 and `words` [n] float32 as train/head.py takes them.
    """

    token_ids: Any
    position_ids: Any
    segments: Any
    select: Any
    targets: Any
    weights: Any
    refused: Any
    words: Any
    parts: Any
    row_ids: tuple[str, ...]
    real_tokens: int
    """Tokens that are not padding, shared prompts counted once."""
    row_tokens: int
    """Tokens of the rows as they stand, shared prompts counted in each."""

    def weighing_nothing(self) -> Batch:
        """The same tokens with a loss of zero."""
        return replace(self, weights=self.weights * 0, words=self.words * 0)

    def mask(self) -> Any:
        """The same as a boolean mask [1, 1, length, length], True = may attend: for hardware
        without tree attention, and for tests.
        """
        import torch

        width = self.token_ids.shape[1]
        mask = torch.eye(width, dtype=torch.bool)
        causal = torch.ones((width, width), dtype=torch.bool).tril_()
        for shared_start, shared, start, own in self.segments.tolist():
            here = slice(start, start + own)
            mask[here, shared_start : shared_start + shared] = True
            mask[here, here] = causal[:own, :own]
        return mask[None, None]


def plan_trees(rows: Sequence[Row], length: int) -> list[Tree]:
    """Group rows by common prompt so that no tree is longer than `length` (single longer rows
    excepted).
    """
    trees: list[Tree] = []
    current: list[Row] = []
    shared = 0
    total = 0
    for row in sorted(rows, key=lambda item: item.token_ids):
        limit = row.first_trained - 1
        if current:
            common = _common(current[-1].token_ids, row.token_ids, min(shared, limit))
            grown = total + (len(current) - 1) * (shared - common) + len(row.token_ids) - common
            saved = total + len(row.token_ids) - grown
            room = min(length, max(length // LEAST_TREE, PROMPT_ONE_IN * common))
            if common >= MIN_SHARED and saved > common // 2 and grown <= room:
                current.append(row)
                shared, total = common, grown
                continue
            trees.append(Tree(tuple(current), shared if len(current) > 1 else 0))
        current, shared, total = [row], max(limit, 0), len(row.token_ids)
    if current:
        trees.append(Tree(tuple(current), shared if len(current) > 1 else 0))
    return trees


def _common(left: Sequence[int], right: Sequence[int], limit: int) -> int:
    count = 0
    for a, b in zip(left[:limit], right[:limit], strict=False):
        if a != b:
            break
        count += 1
    return count


def plan_packs(trees: Sequence[Tree], length: int) -> list[tuple[Tree, ...]]:
    """Pack trees into sequences of at most `length` tokens; a longer one gets its own.

    A sequence takes the first tree that is left and fills up with those of the next `AHEAD` that
    leave the least room together. So what shares a step stays as random as the order of the trees.
    """
    packs: list[tuple[Tree, ...]] = []
    waiting = deque(trees)
    near: list[Tree] = []
    while waiting or near:
        while waiting and len(near) <= AHEAD:
            near.append(waiting.popleft())
        first, *others = near
        chosen = _fill([tree.length for tree in others], length - first.length)
        packs.append((first, *(others[i] for i in sorted(chosen))))
        near = [tree for i, tree in enumerate(others) if i not in chosen]
    return packs


def _fill(lengths: Sequence[int], room: int) -> set[int]:
    """Indices of the lengths that fill `room` best together, the longest of several ways: subset
    sum (Kellerer, Pferschy and Pisinger 2004, chapter 4), bit s of `sums` = some add up to s.
    """
    if room < 1:
        return set()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    sums, all_sums = [1], (2 << room) - 1
    for i in reversed(order):
        sums.append((sums[-1] | sums[-1] << lengths[i]) & all_sums)
    left = sums.pop().bit_length() - 1
    chosen = set()
    for i in order:
        rest = sums.pop()  # of what comes after i
        if lengths[i] <= left and rest >> (left - lengths[i]) & 1:
            chosen.add(i)
            left -= lengths[i]
    return chosen


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Packs of one epoch; a pack is one optimiser step."""

    packs: tuple[tuple[Tree, ...], ...]
    length: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.packs)

    def order(self, epoch: int) -> list[int]:
        """Indices of the packs in the order of that epoch."""
        indices = list(range(len(self.packs)))
        random.Random(f"{self.seed}-{epoch}").shuffle(indices)
        return indices


def plan_batches(rows: Sequence[Row], *, length: int, seed: int) -> BatchPlan:
    """Plan an epoch: trees shuffled, then packed into sequences of `length` tokens.

    A row longer than `length` gets a step of its own.
    """
    trees = plan_trees(rows, length)
    random.Random(seed).shuffle(trees)
    return BatchPlan(tuple(plan_packs(trees, length)), length, seed)


def pack_tokens(pack: Sequence[Tree]) -> int:
    """Tokens that a pack computes, padding excluded."""
    return sum(tree.length for tree in pack)


def build_batch(pack: Sequence[Tree], length: int, pad_id: int) -> Batch:
    """Tensors for one pack, padded to a multiple of `length`."""
    import torch

    width = -(-pack_tokens(pack) // length) * length
    token_ids = [pad_id] * width
    position_ids = [0] * width
    segments: list[tuple[int, int, int, int]] = []
    select: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    refused: list[int] = []
    words: list[float] = []
    parts: list[int] = []
    row_ids: list[str] = []
    at = whole = 0
    for tree in pack:
        start, shared = at, tree.shared
        if shared:
            token_ids[at : at + shared] = tree.rows[0].token_ids[:shared]
            position_ids[at : at + shared] = range(shared)
            segments.append((0, 0, at, shared))
            at += shared
        for row in tree.rows:
            own = len(row.token_ids) - shared
            token_ids[at : at + own] = row.token_ids[shared:]
            position_ids[at : at + own] = range(shared, shared + own)
            segments.append((start, shared, at, own))
            refusals = {each.at: each for each in row.refusals}
            for index in range(shared + 1, len(row.token_ids)):
                if row.weights[index] > 0:
                    select.append(at + index - shared - 1)
                    targets.append(row.token_ids[index])
                    weights.append(row.weights[index])
                    refusal = refusals.get(index)
                    refused.append(refusal.refused if refusal else 0)
                    words.append(refusal.word if refusal else row.weights[index])
                    parts.append(row.parts[index])
            at += own
            whole += len(row.token_ids)
            row_ids.append(row.conversation_id)
    lines = -(-len(segments) // SEGMENT_LINES) * SEGMENT_LINES
    segments.extend([(0, 0, 0, 0)] * (lines - len(segments)))
    return Batch(
        torch.tensor([token_ids]),
        torch.tensor([position_ids]),
        torch.tensor(segments),
        torch.tensor(select, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(refused, dtype=torch.long),
        torch.tensor(words, dtype=torch.float32),
        torch.tensor(parts, dtype=torch.long),
        tuple(row_ids),
        at,
        whole,
    )
