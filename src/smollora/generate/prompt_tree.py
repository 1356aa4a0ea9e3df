"""Prompts that begin alike laid out as a tree, so that what they share is computed once.

In: prompts as token ids. Out: one flat sequence that holds every shared stretch once, and for each
prompt the stretches that it is made of. Probes put many requests under the same system text and
tools, which are most of a prompt. Standard library only; `slots` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SHARED = 16
"""Shorter stretches are not worth a stretch of their own."""

Stretch = tuple[int, int]
"""[start, end) in the flat sequence."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch, and what stands before it in the prompts that go through it."""

    before: tuple[Stretch, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PromptTree:
    """Prompts as one flat sequence."""

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Position of each token in its prompts."""
    segments: tuple[Segment, ...]
    """In the order of the flat sequence; parents come before their children."""
    paths: tuple[tuple[Stretch, ...], ...]
    """For each prompt, in the order given: its stretches. The last one's end is the prompt's."""


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    most = min(len(left), len(right))
    if tuple(left[:most]) == tuple(right[:most]):
        return most
    low, high = 0, most  # bisection: slices compare faster than a loop
    while high - low > 1:
        middle = (low + high) // 2
        if tuple(left[low:middle]) == tuple(right[low:middle]):
            low = middle
        else:
            high = middle
    return low


def lay_out(prompts: Sequence[Sequence[int]]) -> PromptTree:
    """The tree of `prompts`; none of them may be empty."""
    rows = [tuple(prompt) for prompt in prompts]
    token_ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    paths: list[tuple[Stretch, ...]] = [()] * len(rows)

    def grow(members: list[int], depth: int, before: tuple[Stretch, ...]) -> None:
        at = 0
        while at < len(members):
            first = rows[members[at]]
            shared, end = len(first), at + 1
            while end < len(members):
                common = shared_length(first, rows[members[end]])
                if common < min(depth + LEAST_SHARED, len(first)):
                    break
                shared, end = min(shared, common), end + 1
            start = len(token_ids)
            token_ids.extend(first[depth:shared])
            positions.extend(range(depth, shared))
            segments.append(Segment(before, start, len(token_ids)))
            path = (*before, (start, len(token_ids)))
            longer = [index for index in members[at:end] if len(rows[index]) > shared]
            for index in members[at:end]:
                paths[index] = path
            grow(longer, shared, path)
            at = end

    grow(sorted(range(len(rows)), key=rows.__getitem__), 0, ())
    return PromptTree(tuple(token_ids), tuple(positions), tuple(segments), tuple(paths))


def order_for_sharing(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Indices of `prompts`: those that share half of their tokens stand together, the groups by
    length, longest first (what takes most memory is met at once).
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: tuple(prompts[index])):
        here = prompts[index]
        if groups:
            last = prompts[groups[-1][-1]]
            if 2 * shared_length(last, here) >= min(len(last), len(here)):
                groups[-1].append(index)
                continue
        groups.append([index])
    groups.sort(key=lambda group: -max(len(prompts[index]) for index in group))
    return [index for group in groups for index in group]
