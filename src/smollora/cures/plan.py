"""What `doctor --cures` will ask, settled before a model is loaded.

In: a `Subject`, what a person asked for, the folder of an earlier command. Out: a `Plan`: cases,
cures, the gate as these cases can be held to it, and the lines that are there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.config import ProbeSection
from smollora.cures import CONSTRAINED, CURES, TRAINED
from smollora.cures.subject import Subject
from smollora.cures.verdict import gate_for
from smollora.doctor.conversations import choose_cases, require_askable
from smollora.endpoint import Endpoint
from smollora.errors import ConfigError
from smollora.formats.schema import can_be_constrained
from smollora.generate.call_grammar import require_llguidance
from smollora.probe.run import find_cases
from smollora.runs import hash_of, read_json, read_jsonl
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
    templates = [each.template.sha256 for each in (subject.stock, subject.repaired) if each]
    where = served and [endpoint and endpoint.url, served]
    key = hash_of(asked, str(subject.folder.resolve()), where, most, templates)
    kept, records = _kept(folder, key, settings, subject)
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
    if {*TRAINED} & {*named} and subject.trained is None:
        raise ConfigError("there is no trained model to ask", "name it: --adapter FOLDER")
    wanted = [name for name in CURES if name in (named or CURES)]
    if subject.trained is None:
        wanted = [name for name in wanted if name not in TRAINED]
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
    folder: Path | None, key: str, settings: Settings, subject: Subject
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    if folder is None or not settings.cures or not (folder / SUMMARY).is_file():
        return {}, ()
    before = read_json(folder / SUMMARY)
    if before.get("key") != key:
        raise ConfigError(
            f"{folder} holds cures of other cases, or of another model",
            "choose another --out, or leave --cure out to ask all of them again",
        )
    again = {*settings.cures}
    if before["trained"] != (subject.trained and subject.trained.name):
        again.update(TRAINED)
    lines = {name: line for name, line in before["lines"].items() if name not in again}
    records = [each for each in read_jsonl(folder / RECORDS) if each["model"] in lines]
    return lines, tuple(records)
