"""The steps between the columns of a probe, measured: who answered otherwise, and by which margin.

In: every column's answers, how to load each column once more. Out: `Step`s with margins. Nothing is
loaded where no ids differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from smollora.probe import Asked
from smollora.probe.locate import Step, locate
from smollora.probe.margins import measure_margins
from smollora.probe.target import Make
from smollora.progress import meter
from smollora.render import Renderer
from smollora.types import EvalCase

if TYPE_CHECKING:
    from smollora.generate import Generator


def steps_between(
    asked: Mapping[str, Sequence[Asked]],
    cases: Sequence[EvalCase],
    renderer: Renderer,
    loaders: Mapping[str, Callable[[], Make]],
    console: Console,
) -> list[Step]:
    """The steps, with the margins where answers part.

    Args:
        asked: column -> its greedy answers, a case each.
        cases: what was asked.
        renderer: of the prompts.
        loaders: column -> its model, loaded when it is called.
        console: shows how far it is.
    """
    steps = locate(asked)

    @contextmanager
    def watch(name: str, cases: int) -> Iterator[Callable[[int], None]]:
        with meter(console, f"margins {name}", cases, "cases") as shown:
            yield shown.to

    parted = {parting.number for step in steps for parting in step.partings}
    return measure_margins(
        steps,
        {n: renderer.prompt_ids(cases[n].messages, cases[n].tools) for n in sorted(parted)},
        {name: [item.answer.token_ids for item in items] for name, items in asked.items()},
        {name: partial(_greedily, load) for name, load in loaders.items()},
        watch,
    )


def _greedily(load: Callable[[], Make]) -> Generator:
    return load()(None)
