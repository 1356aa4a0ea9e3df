"""Margins at the places where neighbouring columns part: each column is asked once more, for one
token.

In: steps with partings, how to get each column's generator. Out: the same steps with margins. A
local model reads prompt and answer so far and its head computes in float32; a server is asked for
the log-probabilities of the two tokens, where it gives them. The surprise: one model is in memory
at a time, so a column is loaded again for this, and only if something parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from smollora.endpoint import EndpointError, ServedGenerator
from smollora.generate import Generator, LocalGenerator
from smollora.generate.slot_run import Row
from smollora.likelihood import exact_head
from smollora.probe.locate import Step
from smollora.probe.parting import Parting, with_margins


@dataclass(frozen=True, slots=True)
class Tie:
    """Two tokens that may come next."""

    prefix: tuple[int, ...]
    """The prompt and what both columns answered before they part."""
    left: int
    right: int


class PairReader:
    """A `Constraint` that forbids nothing: it keeps how much likelier the left token of each prompt
    is than the right one.
    """

    def __init__(self, ties: Sequence[Tie]) -> None:
        self.ties = ties
        self.found: dict[int, float] = {}

    def restrict(self, logits: Any, rows: Sequence[Row]) -> Any:
        """Logits [rows, vocabulary], as they came."""
        for place, row in enumerate(rows):
            if row.index not in self.found:
                tie = self.ties[row.index]
                both = logits[place, [tie.left, tie.right]].tolist()
                self.found[row.index] = round(both[0] - both[1], 4)
        return logits


def differences(
    generator: Generator, ties: Sequence[Tie], on_done: Callable[[int], None] | None = None
) -> list[float | None]:
    """Log-probability of the left token less that of the right one; None where it cannot be had."""
    if isinstance(generator, ServedGenerator):
        with ThreadPoolExecutor(max_workers=generator.concurrency) as pool:
            return list(pool.map(lambda tie: _served(generator, tie), ties))
    if not isinstance(generator, LocalGenerator):
        return [None] * len(ties)
    reader = PairReader(ties)
    generator.constraint = reader
    try:
        with exact_head(generator.model):
            generator.generate([tie.prefix for tie in ties], max_new_tokens=1, on_done=on_done)
    finally:
        generator.constraint = None
    return [reader.found.get(place) for place in range(len(ties))]


def _served(generator: ServedGenerator, tie: Tie) -> float | None:
    wanted = [tie.left, tie.right]
    try:
        found = generator.endpoint.complete(tie.prefix, 1, watched=wanted).watched
    except EndpointError:
        return None  # the answers are there; a margin less is no harness error
    if any(token not in found for token in wanted):
        return None
    return round(found[tie.left] - found[tie.right], 4)


def measure_margins(
    steps: Sequence[Step],
    prompts: Mapping[int, Sequence[int]],
    answers: Mapping[str, Sequence[Sequence[int]]],
    generators: Mapping[str, Callable[[], Generator]],
    watch: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> list[Step]:
    """Fill in the margins of every parting.

    Args:
        steps: of neighbouring columns.
        prompts: number of a case -> token ids.
        answers: column -> token ids of each answer.
        generators: column -> its generator, loaded when it is called.
        watch: (column, cases) -> what is told how many of them are done.
    """
    asked: dict[str, dict[tuple[int, int], Tie]] = {}
    for number, step in enumerate(steps):
        for place, parting in enumerate(step.partings):
            tie = _tie(parting, prompts[parting.number], answers[step.left][parting.number])
            if tie is not None:
                for name in (step.left, step.right):
                    asked.setdefault(name, {})[number, place] = tie
    found: dict[str, dict[tuple[int, int], float | None]] = {}
    for name, ties in asked.items():
        with watch(name, len(ties)) as on_done:
            values = differences(generators[name](), list(ties.values()), on_done)
        found[name] = dict(zip(ties, values, strict=True))
    whole = []
    for number, step in enumerate(steps):
        partings = []
        for place, parting in enumerate(step.partings):
            left = found.get(step.left, {}).get((number, place))
            right = found.get(step.right, {}).get((number, place))
            partings.append(with_margins(parting, left, None if right is None else -right))
        whole.append(replace(step, partings=tuple(partings)))
    return whole


def _tie(parting: Parting, prompt: Sequence[int], answer: Sequence[int]) -> Tie | None:
    left, right = parting.left.token_id, parting.right.token_id
    if left is None or right is None:
        return None
    return Tie((*prompt, *answer[: parting.place]), left, right)
