"""Packs -> optimiser steps, shared among the processes of a training.

In: the plan of an epoch (data/batch.py). Out: for each step the batches that this process computes.
A global step is `packs_per_step` packs whoever computes them, so that two processes train what one
does that takes both packs after each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from smollora.data.batch import Batch, BatchPlan, build_batch


@dataclass(frozen=True, slots=True)
class Step:
    """What one process computes of one optimiser step."""

    index: int
    """Counted from 0 over all epochs."""
    batches: tuple[Batch, ...]
    idle: int
    """How many of the last batches weigh nothing: processes exchange gradients in step, and weights
    as well where these are spread over them."""

    @property
    def held(self) -> tuple[Batch, ...]:
        """The batches that count."""
        return self.batches[: len(self.batches) - self.idle]


@dataclass(frozen=True)
class StepPlan:
    """The steps of a training, as one process sees them: a dataset of `Step`."""

    plan: BatchPlan
    total: int
    """Steps that may be taken."""
    pad_id: int
    packs_per_step: int = 1
    rank: int = 0
    processes: int = 1
    in_step: bool = False
    """Whether all processes must compute equally many batches."""

    @property
    def per_epoch(self) -> int:
        """Optimiser steps per epoch; the last one may hold fewer packs."""
        return -(-self.plan.steps // self.packs_per_step)

    def packs(self, index: int) -> list[int]:
        """Indices into `plan.packs` of all packs of a step."""
        epoch, place = divmod(index, self.per_epoch)
        first = place * self.packs_per_step
        return self.plan.order(epoch)[first : first + self.packs_per_step]

    def row_ids(self, index: int) -> list[str]:
        """The rows of a step, whoever computes them."""
        packs = (self.plan.packs[pack] for pack in self.packs(index))
        return [row.conversation_id for pack in packs for tree in pack for row in tree.rows]

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Step:
        packs = self.packs(index)
        mine = packs[self.rank :: self.processes]
        wanted = -(-len(packs) // self.processes) if self.in_step else 1
        made = [build_batch(self.plan.packs[pack], self.plan.length, self.pad_id) for pack in mine]
        if idle := max(0, wanted - len(mine)):
            other = build_batch(self.plan.packs[packs[0]], self.plan.length, self.pad_id)
            made += [other.weighing_nothing()] * idle
        return Step(index, tuple(made), idle)
