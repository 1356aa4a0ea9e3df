"""`smollora doctor MODEL --cures`: every cure of a plan is asked, and the verdict found.

In: a `Plan`. Out: the dict of cures.json, and records with token ids. Lines that an earlier command
measured on the same cases stand beside the new ones, so that a slow machine can ask one cure at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from smollora.cures import CONSTRAINED, CURES, TRAINED, Line, NotOffered, ask_line, same_line
from smollora.cures.examples import with_examples
from smollora.cures.plan import RECORDS, SUMMARY, Plan
from smollora.cures.subject import Subject
from smollora.cures.verdict import decide, judge_line
from smollora.cures.ways import Answering, Here, There
from smollora.endpoint import Endpoint
from smollora.errors import DataError, ModelError, SmolloraError, TemplateError
from smollora.formats.schema import can_be_constrained
from smollora.progress import meter
from smollora.render import Renderer
from smollora.runs import SCHEMA_VERSION, write_json, write_jsonl
from smollora.types import EvalCase


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    problems: tuple[SmolloraError, ...] = ()
    """Prompts that a server did not answer."""


def measure_cures(
    plan: Plan, console: Console, on_line: Callable[[Measured], None] | None = None
) -> Measured:
    """Ask every cure of a plan.

    Args:
        on_line: is handed what is there so far after each line, so that an interruption loses one.

    Raises:
        ModelError: no weights, or none that fit.
        EndpointError: the server cannot be asked at all.
    """
    lines: dict[str, Line] = {}
    answering: Answering | None = None
    is_trained = False
    for cure in plan.cures:
        if (cure in TRAINED) is not is_trained:
            answering = None  # one model in memory at a time
            is_trained = not is_trained
        if answering is None:
            answering = _after_training(plan) if is_trained else _base(plan)
        lines[cure] = _ask(plan, cure, answering, lines, console)
        measured = _gather(plan, lines)
        if on_line is not None:
            on_line(measured)
    return measured


def _gather(plan: Plan, lines: Mapping[str, Line]) -> Measured:
    found = {**(plan.kept or {}), **{cure: line.as_dict() for cure, line in lines.items()}}
    records = [*plan.kept_records]
    records += [item.record for line in lines.values() for item in line.asked]
    problems = tuple(error for line in lines.values() for error in _unanswered(line))
    return Measured(summarise_cures(plan, found, records), records, problems)


def summarise_cures(
    plan: Plan, found: Mapping[str, Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The dict of cures.json: lines in the order of their cost, judged, and the verdict."""
    lines = {
        cure: {**found[cure], **judge_line(found[cure], plan.gate)}
        for cure in CURES
        if cure in found
    }
    decision = decide(lines, records, plan.subject.name)
    wanting = sum(bool(case.expected) for case in plan.cases)
    trained = plan.subject.trained
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": "cures",
        "model": plan.subject.name,
        "endpoint": plan.endpoint.url if plan.endpoint else None,
        "trained": trained.name if trained else None,
        "format": plan.subject.fmt.name,
        "verdict": decision.verdict,
        "enough": decision.enough,
        "says": decision.says,
        "fix": decision.fix,
        "asked": plan.asked,
        "cases": len(plan.cases),
        "wanting": wanting,
        "max_new_tokens": plan.most,
        "gate": plan.gate,
        "template_faults": list(plan.subject.faults),
        "notes": list(plan.notes),
        "lines": lines,
        "key": plan.key,
    }


def save_cures(measured: Measured, folder: Path) -> None:
    """cures_records.jsonl and, last, cures.json."""
    write_jsonl(folder / RECORDS, measured.records)
    write_json(folder / SUMMARY, measured.summary)


def _base(plan: Plan) -> Answering:
    if plan.endpoint is not None:
        return There(plan.endpoint)
    return Here(plan.subject.folder, None, plan.batch_tokens)


def _after_training(plan: Plan) -> Answering:
    trained = plan.subject.trained
    assert trained is not None, "a plan without a trained model does not ask it"
    if plan.endpoint is not None:
        served = Endpoint(plan.endpoint.url, trained.name, timeout=plan.endpoint.timeout)
        served.connect()
        return There(served)
    assert trained.folder is not None
    return Here(trained.folder, trained.adapter, plan.batch_tokens)


def _ask(
    plan: Plan, cure: str, answering: Answering, lines: Mapping[str, Line], console: Console
) -> Line:
    subject = plan.subject
    renderer = _renderer(subject, cure)
    if renderer is None:
        return Line(cure, unavailable=f"no template loses nothing: {subject.not_repaired}")
    if cure in CONSTRAINED and not can_be_constrained(subject.fmt):
        return Line(cure, unavailable=f"no grammar of the form {subject.fmt.name} is known")
    cases = [with_examples(case) for case in plan.cases] if cure == "examples" else [*plan.cases]
    askable = [case for case in cases if _renders(renderer, case)]
    if not askable:
        return Line(cure, unavailable="the template refuses every conversation")
    stock = lines.get("stock")
    if cure == "repaired" and stock is not None and stock.asked and not stock.refused:
        same = all(_ids(subject.stock, case) == _ids(renderer, case) for case in cases)
        if same:
            return same_line(stock, cure)
    try:
        generator = answering.generator(cure, askable, renderer, subject.fmt)
    except NotOffered as error:
        return Line(cure, unavailable=error.message)
    with meter(console, f"cures: {CURES[cure]}", len(askable), "prompts") as shown:
        on_done: Callable[[int], None] = shown.to
        line = ask_line(
            cure,
            askable,
            generator,
            renderer,
            subject.fmt,
            max_new_tokens=plan.most,
            on_done=on_done,
        )
    failed = sum(item.failed for item in line.asked)
    if failed == len(askable):
        first = next(iter(getattr(generator, "failures", {}).values()), None)
        raise first or ModelError(f"{CURES[cure]} answered nothing", "look into the server's log")
    return replace(line, refused=len(cases) - len(askable))


def _renderer(subject: Subject, cure: str) -> Renderer | None:
    if cure == "stock":
        return subject.stock
    return subject.trained.renderer if cure in TRAINED and subject.trained else subject.repaired


def _renders(renderer: Renderer, case: EvalCase) -> bool:
    try:
        renderer.prompt_text(case.messages, case.tools)
    except TemplateError:
        return False
    return True


def _ids(renderer: Renderer, case: EvalCase) -> tuple[int, ...]:
    return renderer.prompt_ids(case.messages, case.tools)


def _unanswered(line: Line) -> list[SmolloraError]:
    failed = sum(item.failed for item in line.asked)
    if not failed:
        return []
    return [
        DataError(
            f"{failed} of {len(line.asked)} prompts of the line {CURES[line.cure]} got no answer",
            "the rates are over the others; look into the server's log and ask again",
        )
    ]
