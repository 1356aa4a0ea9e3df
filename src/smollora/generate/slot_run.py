"""Generation in slots: a finished row gives its slot to the next prompt at once.

In: a model for which `slots.can_use_slots`, prompts as token ids, how to choose a token. Out: rows
of token ids, as generating one by one gives them. A chunk of prompts is computed as a tree; its
keys and values wait until slots are free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollora.generate.prompt_attention import Chunk, attending_in_slots
from smollora.generate.prompt_tree import Stretch, order_for_sharing, shared_length
from smollora.generate.slots import Slots

CHUNK = 4096
"""Tokens that a chunk of prompts may come to, counted as far as they are not shared."""
COMPACT_AT = 0.75
"""Slots are closed up when at most this share of them is in use and nothing waits."""


@dataclass(slots=True)
class Row:
    """One prompt on its way."""

    index: int
    """Place among the prompts."""
    produced: list[int] = field(default_factory=list)
    opener_logprob: float | None = None
    stopped: bool = False
    ended: bool = False
    """Stopped, or as long as it may be."""


Choose = Callable[[Any, Sequence[Row]], list[int]]
"""Logits [rows, vocabulary] and their rows -> the next token of each."""
Waiting = tuple[Row, Chunk, tuple[Stretch, ...]]


@dataclass(frozen=True)
class SlotRun:
    """Everything that continuing prompts depends on."""

    model: Any
    choose: Choose
    stop_ids: frozenset[int]
    opener_id: int | None
    max_new_tokens: int
    batch_tokens: int
    batch_rows: int

    def run(
        self, prompts: Sequence[Sequence[int]], on_done: Callable[[int], None] | None = None
    ) -> list[Row]:
        """Continue every prompt; rows in the order of `prompts`."""
        import torch

        rows = [Row(index) for index in range(len(prompts))]
        queue = deque(order_for_sharing(prompts))
        waiting: deque[Waiting] = deque()
        holds: list[Row | None] = []
        finished = 0
        lengths = [len(prompt) for prompt in prompts]
        usual = sum(lengths) // len(lengths) + self.max_new_tokens // 2
        most = max(1, min(self.batch_rows, len(prompts), self.batch_tokens // max(usual, 1)))
        with torch.no_grad(), attending_in_slots(self.model):
            slots = Slots(self.model, most, max(lengths) + self.max_new_tokens)
            while queue or waiting or any(holds):
                before = finished
                while queue or waiting:
                    if not waiting:
                        waiting.extend(self._compute(prompts, queue, rows))
                        finished = sum(row.ended for row in rows)
                    elif self._may_enter(waiting[0][0], holds, lengths, most):
                        _enter(slots, holds, *waiting.popleft())
                    else:
                        break
                if sum(held is not None for held in holds) <= COMPACT_AT * len(holds):
                    _close_up(slots, holds)
                finished += self._step(slots, holds)
                if on_done and finished > before:
                    on_done(finished)
        return rows

    def _take(self, row: Row, token: int) -> None:
        row.produced.append(token)
        row.stopped = token in self.stop_ids
        row.ended = row.stopped or len(row.produced) >= self.max_new_tokens

    def _compute(
        self, prompts: Sequence[Sequence[int]], queue: deque[int], rows: Sequence[Row]
    ) -> list[Waiting]:
        """The next chunk's rows that go on after their first token."""
        import torch

        part = chunk_of(prompts, queue, most=2 * self.batch_rows)
        chunk = Chunk.compute(self.model, [prompts[index] for index in part])
        chosen = [rows[index] for index in part]
        if self.opener_id is not None:
            scores = torch.log_softmax(chunk.logits, dim=-1)[:, self.opener_id]
            for row, score in zip(chosen, scores.tolist(), strict=True):
                row.opener_logprob = round(score, 4)
        for row, token in zip(chosen, self.choose(chunk.logits, chosen), strict=True):
            self._take(row, token)
        pairs = zip(chosen, chunk.tree.paths, strict=True)
        return [(row, chunk, path) for row, path in pairs if not row.ended]

    def _may_enter(
        self, row: Row, holds: Sequence[Row | None], lengths: Sequence[int], most: int
    ) -> bool:
        inside = [held for held in holds if held is not None]
        longest = max(lengths[each.index] for each in (row, *inside)) + self.max_new_tokens // 2
        count = len(inside) + 1
        return not inside or (count <= most and count * longest <= self.batch_tokens)

    def _step(self, slots: Slots, holds: list[Row | None]) -> int:
        """One token more for every row; how many ended."""
        import torch

        slots.used = len(holds)
        if not holds:
            return 0
        logits = slots.step([held.produced[-1] if held else 0 for held in holds])
        places = [slot for slot, held in enumerate(holds) if held is not None]
        here = [held for held in holds if held is not None]
        if len(here) < len(holds):
            logits = logits[torch.tensor(places, device=logits.device)]
        for slot, row, token in zip(places, here, self.choose(logits, here), strict=True):
            self._take(row, token)
            if row.ended:
                holds[slot] = None
                slots.lengths[slot] = 0
        return sum(row.ended for row in here)


def chunk_of(prompts: Sequence[Sequence[int]], queue: deque[int], *, most: int) -> list[int]:
    """Take the prompts of the next chunk from the queue: at most so many, and CHUNK tokens as far
    as they are not shared.
    """
    part = [queue.popleft()]
    tokens = len(prompts[part[0]])
    while queue and len(part) < most:
        here = prompts[queue[0]]
        tokens += len(here) - max(shared_length(here, prompts[other]) for other in part)
        if tokens > CHUNK:
            break
        part.append(queue.popleft())
    return part


def _enter(
    slots: Slots, holds: list[Row | None], row: Row, chunk: Chunk, path: Sequence[Stretch]
) -> None:
    free = next((slot for slot, held in enumerate(holds) if held is None), len(holds))
    if free == len(holds):
        holds.append(None)
    slots.place(free, chunk, path)
    holds[free] = row


def _close_up(slots: Slots, holds: list[Row | None]) -> None:
    """Move the last rows into free slots, and drop the free ones at the end."""
    for slot in range(len(holds)):
        while holds and holds[-1] is None:
            holds.pop()
        if slot >= len(holds):
            return
        if holds[slot] is None:
            slots.move(len(holds) - 1, slot)
            holds[slot] = holds.pop()
