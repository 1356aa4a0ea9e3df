"""The cheapest cure of a model that does not call: the same cases, asked in ways that cost more and
more.

In: cases, a `Generator`, a `Renderer`. Out: a `Line` for each cure: the probe's rates, and what it
costs in prompt tokens, generated tokens and seconds. Which line is enough is `verdict`'s matter.
The surprise: seconds are of the whole line, answered side by side with shared beginnings computed
once, so they compare lines (a share of it for each case) and are not what one request takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollora.errors import SmolloraError
from smollora.evaluate.match import Rate
from smollora.formats import ToolFormat
from smollora.generate import Generator
from smollora.probe import Asked, ask, by_category, summarise
from smollora.render import Renderer
from smollora.types import EvalCase, Generation

CURES = {
    "stock": "stock prompt",
    "repaired": "repaired template",
    "examples": "+ two worked examples",
    "grammar": "+ grammar of calls",
    "required": "+ grammar, call required",
    "trained": "trained",
    "trained_grammar": "trained, under a grammar",
}
"""Every cure and what tables call it, the cheapest first. Those with a plus stand on the repaired
template, not on each other.
"""
CONSTRAINED = ("grammar", "required", "trained_grammar")
"""Cures in which a grammar holds calls to the tools' schemas."""
TRAINED = ("trained", "trained_grammar")
"""Cures that ask the trained model."""


class NotOffered(SmolloraError):
    """A cure that cannot be had here; the others can."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a line took."""

    prompts: int
    prompt_tokens: int
    """Of all prompts together."""
    generated_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """One cure, measured or not."""

    cure: str
    asked: tuple[Asked, ...] = ()
    cost: Cost | None = None
    refused: int = 0
    """Conversations that the template refuses to render: no server could answer them."""
    same_as: str = ""
    """The line whose prompts are the very same ids: it was not asked again."""
    unavailable: str = ""
    """Why it cannot be had."""

    def as_dict(self) -> dict[str, Any]:
        """For cures.json; the gate's words are added when everything is there."""
        found: dict[str, Any] = {"cure": self.cure, "unavailable": self.unavailable}
        if self.unavailable:
            return found
        assert self.cost is not None
        rates: dict[str, Rate] = summarise(self.asked)
        return {
            **found,
            "rates": rates,
            "by_category": by_category(self.asked),
            "prompts": self.cost.prompts,
            "prompt_tokens": self.cost.prompt_tokens,
            "generated_tokens": self.cost.generated_tokens,
            "seconds": self.cost.seconds,
            "seconds_per_case": round(self.cost.seconds / max(self.cost.prompts, 1), 3),
            "refused": self.refused,
            "harness_errors": sum(item.failed for item in self.asked),
            "same_as": self.same_as,
        }


class Clocked:
    """A `Generator` that keeps what asking it took."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.cost = Cost(0, 0, 0, 0.0)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Generator`."""
        start = time.monotonic()
        answers = self.generator.generate(prompts, max_new_tokens=max_new_tokens, on_done=on_done)
        self.cost = Cost(
            len(prompts),
            sum(len(prompt) for prompt in prompts),
            sum(len(answer.token_ids) for answer in answers),
            round(time.monotonic() - start, 2),
        )
        return answers


def ask_line(
    cure: str,
    cases: Sequence[EvalCase],
    generator: Generator,
    renderer: Renderer,
    fmt: ToolFormat,
    *,
    max_new_tokens: int,
    on_done: Callable[[int], None] | None = None,
) -> Line:
    """Ask every case in one way."""
    clocked = Clocked(generator)
    asked = ask(cure, cases, clocked, renderer, fmt, max_new_tokens=max_new_tokens, on_done=on_done)
    return Line(cure, tuple(asked), clocked.cost)


def same_line(line: Line, cure: str) -> Line:
    """A line whose prompts are those of another one: the same answers under its own name."""
    asked = tuple(replace(item, record={**item.record, "model": cure}) for item in line.asked)
    return replace(line, cure=cure, asked=asked, same_as=line.cure)
