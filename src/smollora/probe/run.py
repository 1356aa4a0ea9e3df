"""`smollora probe MODEL`: the probe's questions to any model, adapter, run or server, column by
column.

In: a `Target`, what to ask, what must come out. Out: rates, the steps between columns, the gate's
verdict; records with token ids. Every column gets the same prompt ids, rendered with the model's
own template and read with its own tokenizer, the server as well: a difference between columns is a
difference of models, not of prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console

from smollora.config import ProbeSection
from smollora.endpoint import Endpoint
from smollora.errors import DataError, ModelError, SmolloraError
from smollora.evaluate.cases import limit_per_category, probe_cases, sort_rows, starter_cases
from smollora.formats import ToolFormat
from smollora.probe import (
    Asked,
    ask,
    by_category,
    by_language,
    by_system,
    judge,
    reasons,
    summarise,
)
from smollora.probe.locate import Step
from smollora.probe.steps import steps_between
from smollora.probe.target import Target, load_column
from smollora.progress import meter
from smollora.render import Renderer
from smollora.types import EvalCase

if TYPE_CHECKING:
    from smollora.generate import Sampling

SAMPLED = "_sampled"
"""How the column of drawn answers is called: merged_sampled."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked, and what must come out."""

    cases: str | None = None
    """starter:probe, starter:heldout or a .jsonl; None: the run's, else starter:probe."""
    limit: int | None = None
    """Cases of each category."""
    sampled: int = 0
    """Answers drawn of each case, besides the greedy one."""
    seed: int = 7
    gate: Mapping[str, float] | None = None
    """None: the run's, else the recipe's default."""
    most: int | None = None
    """New tokens of an answer; None: the run's, else the recipe's default."""
    batch_tokens: int | None = None


def find_cases(name: str, limit: int | None) -> tuple[list[EvalCase], list[DataError]]:
    """The cases, and an error for each row of a file that is none.

    Raises:
        DataError: no such file, or no case in it.
    """
    broken: list[DataError] = []
    if name in ("starter:probe", "starter:heldout"):
        cases = starter_cases()
        cases += probe_cases() if name == "starter:probe" else []
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(
                f"the file of cases {path} is not there",
                "give a .jsonl, starter:probe or starter:heldout",
            )
        cases, broken = sort_rows(path)
    return limit_per_category(cases, limit), broken


def read_sampling(folder: Path, seed: int) -> tuple[Sampling, str]:
    """How the model's own generation config draws, and the same in words.

    Raises:
        ModelError: the file is not JSON.
    """
    from smollora.generate import Sampling

    path = folder / "generation_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from error
    named = {key: said[key] for key in ("temperature", "top_p", "top_k") if said.get(key)}
    words = ", ".join(f"{key} {value}" for key, value in named.items())
    sampling = Sampling(**{"temperature": 1.0, **named}, seed=seed)
    return sampling, words or "temperature 1.0: its generation config names none"


@dataclass(frozen=True, slots=True)
class Probed:
    """What came out."""

    summary: dict[str, Any]
    """The keys of the probe stage's summary, and more: docs/probe.md."""
    records: list[dict[str, Any]]
    problems: tuple[SmolloraError, ...] = ()
    """Rows of the cases file that are none, prompts that a server did not answer."""


def no_delimiters(target: Target, renderer: Renderer) -> str:
    """Why this model cannot emit a call; empty if it can."""
    if not renderer.facts.lacking:
        return ""
    one = renderer.facts.lacking[0]
    return (
        f"{target.name} cannot emit a call: {one.text} is {len(one.ids)} ordinary tokens of its"
        " vocabulary, and no id marks where a call begins"
    )


def probe_target(
    target: Target,
    settings: Settings,
    renderer: Renderer,
    fmt: ToolFormat,
    console: Console,
    *,
    endpoint: Endpoint | None = None,
) -> Probed:
    """Ask every column the same cases.

    Raises:
        SmolloraError: nothing could be asked at all.
    """
    section = target.recipe.probe if target.recipe else ProbeSection()
    named = settings.cases or (section.cases if target.recipe else "starter:probe")
    limit = settings.limit or (section.limit if target.recipe else None)
    cases, broken = find_cases(named, limit)
    problems: list[SmolloraError] = list(broken)
    notes = _notes(renderer, cases)
    asked: dict[str, list[Asked]] = {}
    batch_tokens = settings.batch_tokens or section.batch_tokens
    loaders = {
        column.name: partial(load_column, column, renderer.facts, batch_tokens, endpoint)
        for column in target.columns
    }
    for column in target.columns:
        make = loaders[column.name]()
        todo: list[tuple[str, list[EvalCase], Sampling | None]] = [(column.name, cases, None)]
        if settings.sampled:
            sampling, words = read_sampling(column.folder or target.tokenizer, settings.seed)
            often = [case for case in cases for _ in range(settings.sampled)]
            todo.append((column.name + SAMPLED, often, sampling))
            if column.folder is None:
                words = "what the server's own settings say"
            notes.append(f"{column.name}{SAMPLED} draws with {words}")
        for name, here, how in todo:
            generator = make(how)
            with meter(console, f"probe {name}", len(here), "prompts") as shown:
                asked[name] = ask(
                    name,
                    here,
                    generator,
                    renderer,
                    fmt,
                    max_new_tokens=column.most,
                    on_done=shown.to,
                )
            problems += _unanswered(name, asked[name], generator)
            del generator
        del make
    gate = section.gate if settings.gate is None else settings.gate
    steps = steps_between(_greedy(asked), cases, renderer, loaders, console)
    summary = {"cases": len(cases), "asked": named, **summarise_columns(asked, gate, steps)}
    summary["notes"] = notes
    summary["broken_rows"] = [error.message for error in broken]
    records = [item.record for items in asked.values() for item in items]
    return Probed(summary, records, tuple(problems))


def _greedy(asked: Mapping[str, Sequence[Asked]]) -> dict[str, Sequence[Asked]]:
    return {name: items for name, items in asked.items() if not name.endswith(SAMPLED)}


def summarise_columns(
    asked: Mapping[str, Sequence[Asked]], gate: Mapping[str, float], steps: Sequence[Step]
) -> dict[str, Any]:
    """Rates of every column, the steps between them, and the gate's verdict over the last greedy
    one.
    """
    judged = list(_greedy(asked))[-1]
    verdicts = judge(summarise(asked[judged]), gate)
    short = reasons(verdicts)
    return {
        **{name: summarise(items) for name, items in asked.items()},
        "columns": list(asked),
        "by_category": {name: by_category(items) for name, items in asked.items()},
        "by_language": {name: by_language(items) for name, items in asked.items()},
        "by_system": {name: by_system(items) for name, items in asked.items()},
        "harness_errors": {
            name: sum(item.failed for item in items) for name, items in asked.items()
        },
        "opener_logprob": {name: _opener(items) for name, items in asked.items()},
        "steps": [step.as_dict() for step in steps],
        "judged": judged,
        "gate": verdicts,
        "reasons": short,
        "passed": not short,
    }


def _opener(asked: Sequence[Asked]) -> dict[str, float | None]:
    """Median log-probability of the opening delimiter as the first token, where a call is wanted
    and where none is: how near the decisions were. None where it cannot be had.
    """
    found: dict[str, float | None] = {}
    for name, wanted in (("calling", True), ("quiet", False)):
        values = [
            item.answer.opener_logprob
            for item in asked
            if bool(item.case.expected) is wanted and item.answer.opener_logprob is not None
        ]
        found[name] = round(median(values), 4) if values else None
    return found


def _unanswered(name: str, asked: Sequence[Asked], generator: Any) -> list[SmolloraError]:
    failed = sum(item.failed for item in asked)
    if not failed:
        return []
    first = next(iter(getattr(generator, "failures", {}).values()), None)
    why = f"; the first: {first.message}" if first else ""
    return [
        ModelError(
            f"{failed} of {len(asked)} prompts got no answer from {name}{why}",
            "the rates are over the others; look into the server's log and ask again",
        )
    ]


def _notes(renderer: Renderer, cases: Sequence[EvalCase]) -> list[str]:
    """What a reader of the rates must know about the prompts."""
    offered = [case for case in cases if case.tools][:20]
    hidden = sum(
        case.tools[0].name not in renderer.prompt_text(case.messages, case.tools)
        for case in offered
    )
    if offered and hidden == len(offered):
        return [
            "its chat template shows no tools to the model: these rates are of the prompt, not of"
            " the model; `smollora repair` mends the template"
        ]
    return []
