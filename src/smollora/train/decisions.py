"""Is the decision learned? Some validation prompts are answered in the middle of training: does a
call open where one is due, and only there?

In: validation rows (never the cases of the probe stage: what chooses an adapter must not judge it),
the live model. Out: two counts, the gate's verdict, and a score by which adapters are compared. The
loss does not say this: it is a mean in which the one token that decides is one of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollora.data.batch import Row
from smollora.errors import ConfigError
from smollora.generate import LocalGenerator
from smollora.train.loss import TreeLoss
from smollora.types import PARTS

OPEN = PARTS.index("open")


@dataclass(frozen=True, slots=True)
class Ends:
    """The ids that answers are read by."""

    opener_id: int | None
    """Of the opening delimiter; None for a format without one."""
    stop_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a row, up to its first trained token."""

    token_ids: tuple[int, ...]
    calls: bool
    """True if what follows opens a call."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a model did with the prompts."""

    emitted: int
    calling: int
    """Prompts that want a call; `emitted` of them got one."""
    wrong: int
    quiet: int
    """Prompts that want none; `wrong` of them got one."""

    @property
    def emission(self) -> float | None:
        """Share of due calls that were opened."""
        return self.emitted / self.calling if self.calling else None

    @property
    def false_call(self) -> float | None:
        """Share of other prompts where one was opened all the same."""
        return self.wrong / self.quiet if self.quiet else None

    def holds(self, gate: Mapping[str, float]) -> bool:
        """True if the gate names rates and all of them hold; a rate over no cases never does."""
        rates = {"emission": self.emission, "false_call": self.false_call}
        kept = []
        for name, limit in gate.items():
            rate = rates[name]
            at_most = name == "false_call"
            kept.append(rate is not None and (rate <= limit if at_most else rate >= limit))
        return bool(kept) and all(kept)

    def score(self, validation_loss: float | None) -> tuple[float, float]:
        """Higher is better: emission less false calls, then the validation loss."""
        loss = validation_loss if validation_loss is not None else float("inf")
        return (self.emission or 0.0) - (self.false_call or 0.0), -loss

    def as_dict(self) -> dict[str, dict[str, int]]:
        """For the curve and the summary."""
        return {
            "emission": {"k": self.emitted, "n": self.calling},
            "false_call": {"k": self.wrong, "n": self.quiet},
        }


def plan_prompts(rows: Sequence[Row], limit: int) -> tuple[Prompt, ...]:
    """The first rows of each kind, half of `limit` each.

    Raises:
        ConfigError: no row wants a call, so that nothing could be learned from asking.
    """
    kinds: dict[bool, list[Prompt]] = {True: [], False: []}
    for row in rows:
        first = next((i for i, part in enumerate(row.parts) if part >= 0), None)
        if first is None:
            continue
        end = next((i for i in range(first, len(row.parts)) if row.parts[i] < 0), len(row.parts))
        calls = OPEN in row.parts[first:end]
        if len(kinds[calls]) < limit // 2:
            kinds[calls].append(Prompt(tuple(row.token_ids[:first]), calls))
    if not kinds[True]:
        raise ConfigError(
            f"train.probe_every asks validation rows, and none of the {len(rows)} opens a call",
            "raise prepare.validation_share, or set train.probe_every=0",
        )
    return (*kinds[True], *kinds[False])


def ask_prompts(
    loss_of: TreeLoss, prompts: Sequence[Prompt], ends: Ends, *, new_tokens: int
) -> Counts:
    """Answer greedily with the model as it is now, and count."""
    with loss_of.as_before() as model:
        generator = LocalGenerator(
            model, stop_ids=ends.stop_ids, opener_id=None, pad_id=ends.pad_id
        )
        answers = generator.generate([p.token_ids for p in prompts], max_new_tokens=new_tokens)
    opened = [ends.opener_id in answer.token_ids for answer in answers]
    asked: list[tuple[Any, bool]] = list(zip(prompts, opened, strict=True))
    return Counts(
        sum(hit for prompt, hit in asked if prompt.calls),
        sum(prompt.calls for prompt, _ in asked),
        sum(hit for prompt, hit in asked if not prompt.calls),
        sum(not prompt.calls for prompt, _ in asked),
    )
