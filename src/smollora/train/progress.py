"""What a training has behind it: curve, pace, best adapter, time. A checkpoint keeps all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smollora.train.schedule import Pace

RECENT = 20
"""Steps that the utilisation on the terminal is taken over."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    step: int
    steps: int
    loss: float
    lr: float
    tokens: int
    row_tokens: int
    labelled: int
    seconds: float
    """Since the training began, time of earlier runs of it included."""
    loss_by_part: dict[str, float | None]
    accuracy_by_part: dict[str, float | None]
    tokens_so_far: int
    row_tokens_so_far: int
    labelled_so_far: int
    memory: int
    """Peak memory, bytes: resident, or the GPU's."""
    utilisation: float | None
    """Share of the measured product speed, over the latest steps; None in the first one."""
    resumed_at: int
    """Step that this run of the training went on from; 0: it began here."""
    found: Mapping[str, Any]
    """Validation loss and probe, where this step had them."""


@dataclass(frozen=True, slots=True)
class Totals:
    """One optimiser step, over all processes."""

    tokens: int
    row_tokens: int
    labelled: int
    loss_by_part: dict[str, float | None]
    accuracy_by_part: dict[str, float | None]


@dataclass
class Best:
    """The adapter that the probe liked best."""

    step: int
    score: tuple[float, float]


@dataclass
class Progress:
    """Goes on where a checkpoint left it."""

    pace: Pace
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    ended: bool = False
    """True once validation or gate has decided that this was the last step."""
    resumed_at: int = 0
    found: dict[str, Any] = field(default_factory=dict)
    """What validation and probe found at the step that runs."""
    tokens: int = 0
    row_tokens: int = 0
    labelled: int = 0
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time that training took so far."""
        return self.seconds_before + time.perf_counter() - self.started

    def add(self, entry: dict[str, Any]) -> None:
        """A step was taken."""
        self.curve.append(entry)
        self.tokens += entry["tokens"]
        self.row_tokens += entry["row_tokens"]
        self.labelled += entry["labelled"]

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "pace": self.pace.state(),
            "curve": self.curve,
            "best": {"step": self.best.step, "score": self.best.score} if self.best else None,
            "ended": self.ended,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from what `state` returned after `step`."""
        self.pace.restore(state["pace"])
        for entry in state["curve"]:
            self.add(entry)
        best = state["best"]
        self.best = Best(best["step"], tuple(best["score"])) if best else None
        self.ended = state["ended"]
        self.seconds_before = state["seconds"]
        self.resumed_at = step
