"""One run of a training: what its parts share, and when a checkpoint is due."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollora.config import Every, TrainSection
from smollora.train.decisions import Counts
from smollora.train.interrupt import Asked
from smollora.train.loss import Evaluation, TreeLoss
from smollora.train.progress import RECENT, Progress, StepReport, Totals
from smollora.train.speed import Cost
from smollora.train.steps import StepPlan


@dataclass
class Session:
    """One run of a training: what its parts share."""

    settings: TrainSection
    loss_of: TreeLoss
    steps: StepPlan
    progress: Progress
    planned: int
    """Steps of the planned epochs; `steps.total` may be more."""
    checkpoints: Path
    origin: dict[str, Any]
    """What the training was started with; a checkpoint of another one is refused."""
    cost: Cost
    asked: Asked
    validate: Callable[[], Evaluation] | None
    probe: Callable[[], Counts] | None
    on_step: Callable[[StepReport], None] | None
    saved_at: float = field(default_factory=time.monotonic)
    totals: Totals | None = None
    stop: bool = False
    """Somebody asked, in some process."""
    due: bool = False
    """It is time for a checkpoint, by the first process's clock."""
    recent: deque[tuple[int, int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """(tokens, labelled, seconds) of the latest steps of this run."""

    @property
    def first(self) -> bool:
        """True in the process that writes."""
        return self.steps.rank == 0

    def is_due(self, step: int) -> bool:
        """True if a checkpoint is to be written after `step`."""
        every = self.settings.checkpoint_every
        if isinstance(every, int):
            return step % every == 0
        found = Every.fullmatch(every)
        if found is None:  # off
            return False
        seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2][0]]
        return time.monotonic() - self.saved_at >= seconds

    def utilisation(self) -> float | None:
        """Share of the measured product speed over the latest steps."""
        if len(self.recent) < 2:
            return None
        later = list(self.recent)[1:]  # the first ends when compiling does
        seconds = sum(entry[2] for entry in later)
        return (
            self.cost.utilisation(
                sum(entry[0] for entry in later), sum(entry[1] for entry in later), seconds
            )
            / self.steps.processes
        )
