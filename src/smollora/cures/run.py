"""`smollora doctor MODEL --cures`: every cure asked the same cases, and the verdict over them.

In: a `Subject`, which cures, which cases, the gate. Out: the dict of cures.json, and records with
token ids. Lines that an earlier command measured on the same cases stand beside the new ones, so
that a slow machine can ask one cure at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from smollora.config import ProbeSection
from smollora.cures import CURES, Line, NotOffered, ask_line, same_line
from smollora.cures.examples import with_examples
from smollora.cures.subject import Subject
from smollora.cures.verdict import decide, gate_for, judge_line
from smollora.cures.ways import CONSTRAINED, Answering, Here, There
from smollora.doctor.conversations import choose_cases, require_askable
from smollora.endpoint import Endpoint
from smollora.errors import ConfigError, DataError, ModelError, SmolloraError, TemplateError
from smollora.formats.schema import can_be_constrained
from smollora.generate.call_grammar import require_llguidance
from smollora.probe.run import find_cases
from smollora.progress import meter
from smollora.render import Renderer
from smollora.runs import SCHEMA_VERSION, hash_of, read_json, read_jsonl, write_json, write_jsonl
from smollora.types import EvalCase

LIMIT = 60
"""Cases, half of which want a call, unless --limit says otherwise."""
SUMMARY, RECORDS = "cures.json", "cures_records.jsonl"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked, and what must come out."""

    cures: tuple[str, ...] = ()
    """Empty: all that can be had."""
    cases: str = "starter:probe"
    limit: int | None = LIMIT
    """Cases in all; None: every one."""
    gate: Mapping[str, float] | None = None
    """None: the run's, else the recipe's default."""
    most: int | None = None
    """New tokens of an answer; None: the run's, else the recipe's default."""
    batch_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is settled before a model is loaded."""

    subject: Subject
    cases: tuple[EvalCase, ...]
    cures: tuple[str, ...]
    gate: dict[str, float]
    notes: tuple[str, ...]
    most: int
    batch_tokens: int
    asked: str
    key: str
    """Lines with the same key can stand side by side."""
    endpoint: Endpoint | None = None
    kept: Mapping[str, Mapping[str, Any]] | None = None
    """Lines of an earlier command."""
    kept_records: tuple[dict[str, Any], ...] = ()


def plan_cures(
    subject: Subject, settings: Settings, *, endpoint: Endpoint | None, folder: Path | None
) -> Plan:
    """Settle cases, cures and gate.

    Args:
        folder: where the files go; lines that are there already are kept. None: nowhere.

    Raises:
        ConfigError: no such cure, a cure that cannot be had, or a gate that holds nothing.
        DataError: no cases, or a broken row.
        EndpointError: nobody answers.
    """
    section = subject.recipe.probe if subject.recipe else ProbeSection()
    cures, notes = _choose(subject, settings.cures, served=endpoint is not None)
    found, broken = find_cases(settings.cases, None)
    if broken:
        raise broken[0]
    require_askable(found, settings.cases)
    cases = tuple(choose_cases(found, settings.limit))
    usual = section.gate or ProbeSection().gate
    gate, more = gate_for(
        cases, usual if settings.gate is None else settings.gate, given=settings.gate is not None
    )
    served = endpoint.connect() if endpoint is not None else None
    most = settings.most or section.max_new_tokens
    asked = [[case.id, [(m.role, m.content) for m in case.messages]] for case in cases]
    key = hash_of(asked, str(subject.folder), served and [endpoint and endpoint.url, served], most)
    kept, records = _kept(folder, key, settings)
    return Plan(
        subject=subject,
        cases=cases,
        cures=cures,
        gate=gate,
        notes=(*notes, *more),
        most=most,
        batch_tokens=settings.batch_tokens or section.batch_tokens,
        asked=settings.cases,
        key=key,
        endpoint=endpoint,
        kept=kept,
        kept_records=records,
    )


def _choose(
    subject: Subject, named: Sequence[str], *, served: bool
) -> tuple[tuple[str, ...], list[str]]:
    unknown = [name for name in named if name not in CURES]
    if unknown:
        raise ConfigError(f"no cure is called {unknown[0]}", f"cures: {', '.join(CURES)}")
    if "trained" in named and subject.trained is None:
        raise ConfigError("there is no trained model to ask", "name it: --adapter FOLDER")
    wanted = [name for name in CURES if name in (named or CURES)]
    if subject.trained is None:
        wanted = [name for name in wanted if name != "trained"]
    constrained = [name for name in wanted if name in CONSTRAINED]
    if constrained and not can_be_constrained(subject.fmt):
        said = f"no grammar of calls in the form {subject.fmt.name} is known"
        if named:
            raise ConfigError(said, "ask for the other cures: --cure repaired --cure examples")
        return tuple(wanted), [said]
    if constrained and not served:
        require_llguidance()
    return tuple(wanted), []


def _kept(
    folder: Path | None, key: str, settings: Settings
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    if folder is None or not settings.cures or not (folder / SUMMARY).is_file():
        return {}, ()
    before = read_json(folder / SUMMARY)
    if before.get("key") != key:
        raise ConfigError(
            f"{folder} holds cures of other cases, or of another model",
            "choose another --out, or leave --cure out to ask all of them again",
        )
    lines = {n: line for n, line in before["lines"].items() if n not in settings.cures}
    records = [each for each in read_jsonl(folder / RECORDS) if each["model"] in lines]
    return lines, tuple(records)


# ── asking ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    problems: tuple[SmolloraError, ...] = ()
    """Prompts that a server did not answer."""


def measure_cures(plan: Plan, console: Console) -> Measured:
    """Ask every cure of a plan.

    Raises:
        ModelError: no weights, or none that fit.
        EndpointError: the server cannot be asked at all.
    """
    lines: dict[str, Line] = {}
    problems: list[SmolloraError] = []
    own = [cure for cure in plan.cures if cure != "trained"]
    answering: Answering | None = None
    for cure in own:
        answering = answering or _base(plan)
        lines[cure] = _ask(plan, cure, answering, lines, console)
        problems += _unanswered(lines[cure])
    if "trained" in plan.cures:
        answering = None  # one model in memory at a time
        answering = _after_training(plan)
        lines["trained"] = _ask(plan, "trained", answering, lines, console)
        problems += _unanswered(lines["trained"])
    found = {**(plan.kept or {}), **{cure: line.as_dict() for cure, line in lines.items()}}
    records = [*plan.kept_records]
    records += [item.record for line in lines.values() for item in line.asked]
    return Measured(summarise_cures(plan, found, records), records, tuple(problems))


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
    return subject.trained.renderer if cure == "trained" and subject.trained else subject.repaired


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
