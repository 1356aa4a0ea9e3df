"""The pace of training: learning-rate factor, halving on a spike, further epochs while it pays,
an end where it diverges.

In: step numbers, losses, validation losses. Out: factors and decisions, each kept as an event that
the summary shows. Pure Python, so that it can be tested without training. The plan behind it: three
epochs, up to five while the validation loss still falls, half the learning rate on a spike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

SPIKE = 3.0
"""A spike is a loss of at least this many times the median of those before ..."""
IN_A_ROW = 3
"""... so many steps in a row. A single step that holds words alone, or one request that nothing
prepared for, costs three to four times what a step of calls does, and is none (docs/log.md).
"""
RECENT = 50
"""Steps that the median is taken over; after a spike as many pass before the next one counts."""
SETTLED = 20
"""Steps before which nothing is called a spike."""
START = 5
"""First steps whose median loss is where a run began."""
DIVERGED = 20
"""Latest steps whose median is held against it ..."""
RISEN = 2.0
"""... and has diverged where it is this many times as high ..."""
RISEN_BY = 1.0
"""... and by this many nats: a loss that began near 0 may double."""
FLOOR = 0.1
"""Smallest factor where epochs may be added, so that they still teach something."""


@dataclass
class Pace:
    """Learning rate and length of one run."""

    planned: int
    """Steps of the planned epochs."""
    most: int
    """Steps that may be taken at most; `planned` where no epochs may be added."""
    warmup: int
    shape: Literal["linear", "cosine", "constant"]
    events: list[dict[str, Any]] = field(default_factory=list)
    halvings: int = 0
    validation: list[float] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT + IN_A_ROW))
    _quiet_until: int = SETTLED
    _first: list[float] = field(default_factory=list)

    def factor(self, step: int) -> float:
        """Factor on the learning rate at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup * 0.5**self.halvings
        done = min(1.0, (step - self.warmup) / max(1, self.planned - self.warmup))
        value = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        }[self.shape]
        if self.most > self.planned:
            value = max(value, FLOOR)
        return float(value * 0.5**self.halvings)

    def note_loss(self, step: int, loss: float) -> bool:
        """Tell a step's loss (steps from 1); True if it was a spike and the rate was halved."""
        self._recent.append(loss)
        if len(self._first) < START:
            self._first.append(loss)
        seen = list(self._recent)
        before, latest = seen[:-IN_A_ROW], seen[-IN_A_ROW:]
        usual = median(before) if before else loss
        if step <= self._quiet_until or min(latest) <= SPIKE * usual:
            return False
        self.halvings += 1
        self._quiet_until = step + RECENT
        self.events.append(
            {"step": step, "event": "spike: learning rate halved", "loss": loss, "usual": usual}
        )
        return True

    @property
    def diverged(self) -> tuple[float, float] | None:
        """(median loss at the start, median of the latest steps) where the latter has risen far
        above the former; else None.
        """
        if len(self._recent) < DIVERGED or len(self._first) < START:
            return None
        first, latest = median(self._first), median(list(self._recent)[-DIVERGED:])
        return (first, latest) if latest > max(RISEN * first, first + RISEN_BY) else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the pace, as JSON values."""
        return {
            "events": self.events,
            "halvings": self.halvings,
            "validation": self.validation,
            "recent": list(self._recent),
            "quiet_until": self._quiet_until,
            "first": self._first,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.events = list(state["events"])
        self.halvings = state["halvings"]
        self.validation = list(state["validation"])
        self._recent.extend(state["recent"])
        self._quiet_until = state["quiet_until"]
        self._first = list(state["first"])

    def note_validation(self, step: int, loss: float | None) -> bool:
        """Tell the validation loss after an epoch; True if training is to stop here.

        The planned epochs are always taken; a further one only if the loss fell in the last.
        """
        falls = loss is not None and (not self.validation or loss < self.validation[-1])
        if loss is not None:
            self.validation.append(loss)
        if step < self.planned:
            return False
        stop = not falls or step >= self.most
        if not stop:
            self.events.append(
                {"step": step, "event": "validation loss falls: one more epoch", "loss": loss}
            )
        return stop
