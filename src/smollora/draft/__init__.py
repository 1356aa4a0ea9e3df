"""`smollora init MODEL --data FILE`: a recipe for this model and these rows, every key with what it
means, and beside what was chosen, why.

In: a model (its weights are not needed) and sources of rows, of which a sample is read and
rendered. Out: a `Draft`: what was chosen, and why; `draft_text` writes it down.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollora.architecture import read_architecture
from smollora.config import SourceSection
from smollora.data.records import read_records
from smollora.data.sources import Accepted, read_row
from smollora.data.sources.files import LINES
from smollora.draft.text import Draft
from smollora.errors import ConfigError, DataError
from smollora.models import resolve_model
from smollora.team_checks import OpenedModel, open_model
from smollora.types import Conversation, Reject

SAMPLE = 500
"""Rows of each source that are read."""
LEAST_LENGTH = 512
USUAL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a sample of a source says."""

    name: str
    path: str
    kind: str
    """ "tool" if any row calls, else "general"."""
    sampled: int
    rows: str
    """How many rows there are, in words: "about 12,000"."""
    forms: dict[str, int]
    kinds: dict[str, int]
    rejected: dict[str, int]
    first_reject: str
    longest: int
    """Tokens of the longest sampled row; 0 where none could be rendered."""


def plan_draft(
    model: str,
    paths: Sequence[str],
    *,
    name: str | None = None,
    format_name: str | None = None,
) -> Draft:
    """Look at the model and a sample of each source, and choose.

    Args:
        model: a folder, a Hub id, or `pypi:NAME==VERSION`.
        paths: files, folders, `hub:OWNER/NAME`, `starter:tools` or `starter:general`.
        name: of the run; None: made of the model's name.
        format_name: how the model is to write calls; None: as its template does, else hermes.

    Raises:
        ModelError: no such model, or no tokenizer or config in it.
        DataError: a source that cannot be read, or without a single usable row.
    """
    if not paths:
        raise DataError("no data was named", "smollora init MODEL --data FILE")
    opened = open_model(model, format_name=format_name)
    architecture = read_architecture(resolve_model(model, weights=False))
    sources = name_sources([read_source(path, opened) for path in paths])
    values: dict[str, Any] = {"name": name or _slug(Path(model.rstrip("/")).name or model)}
    reasons: dict[str, tuple[str, ...]] = {}
    _choose_model(opened, model, values, reasons)
    _choose_rows(sources, architecture["context"], values, reasons)
    _choose_training(opened, model, values, reasons)
    return Draft((*_about_model(opened, architecture), *_about(sources)), values, reasons)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


def read_source(path: str, model: OpenedModel) -> SourceFacts:
    """A sample of one source, read and rendered.

    Raises:
        DataError: it cannot be read, or none of the sampled rows is a conversation.
    """
    section = SourceSection(name=_slug(Path(path).name.split(".")[0]), path=path, kind="tool")
    records = list(itertools.islice(read_records(section, 0), SAMPLE + 1))
    more, records = len(records) > SAMPLE, records[:SAMPLE]
    read = [read_row(record, section.name, number) for number, record in records]
    good = [item for item in read if isinstance(item, Accepted)]
    bad = [item for item in read if isinstance(item, Reject)]
    reasons = Counter(item.reason for item in bad)
    if not good:
        listed = (
            ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "it is empty"
        )
        first = f"; row {bad[0].row}: {bad[0].detail}" if bad else ""
        raise DataError(
            f"{path}: none of {len(records)} rows is a conversation: {listed}{first}",
            "docs/data.md lists the forms that are read",
        )
    kinds: Counter[str] = Counter(item.conversation.kind for item in good)
    return SourceFacts(
        section.name,
        path,
        "tool" if kinds["call"] else "general",
        len(records),
        _count_rows(path, len(records), more),
        dict(Counter(item.form for item in good)),
        dict(kinds),
        dict(reasons),
        f"row {bad[0].row}: {bad[0].detail}" if bad else "",
        _longest([item.conversation for item in good], model),
    )


def _longest(conversations: Sequence[Conversation], model: OpenedModel) -> int:
    if model.renderer is None:
        return 0
    made = model.renderer.rows(conversations)
    rows = (row for result in made if isinstance(result, tuple) for row in result)
    return max((len(row.token_ids) for row in rows), default=0)


def _count_rows(path: str, sampled: int, more: bool) -> str:
    """How many rows a source has, as exactly as a look at its beginning tells."""
    file = Path(path).expanduser()
    if not more:
        return f"{sampled:,} rows"
    if file.suffix == ".parquet" and file.is_file():
        import pyarrow.parquet as pq

        return f"{pq.read_metadata(file).num_rows:,} rows"
    if file.suffix in LINES and file.is_file():
        with file.open("rb") as lines:
            read = sum(len(line) for line in itertools.islice(lines, sampled))
        return f"about {round(file.stat().st_size / read * sampled / 100) * 100:,} rows"
    return f"more than {sampled:,} rows"


def name_sources(sources: Sequence[SourceFacts]) -> list[SourceFacts]:
    """The same with names that differ."""
    used: Counter[str] = Counter()
    named = []
    for source in sources:
        used[source.name] += 1
        number = used[source.name]
        named.append(source if number == 1 else replace(source, name=f"{source.name}-{number}"))
    return named


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────


def _choose_model(
    model: OpenedModel, source: str, values: dict[str, Any], reasons: dict[str, tuple[str, ...]]
) -> None:
    failed = [check for check in model.checks if not check.ok]
    missing = "delimiters_are_tokens" in {check.name for check in failed}
    values |= {"model.source": source, "model.format": model.format.name, "model.equip": missing}
    if missing:
        reasons["model.equip"] = (failed[0].detail + ": they are added",)
    elif model.format.delimited == "token":
        reasons["model.equip"] = ("the tokenizer has them",)
    else:
        reasons["model.equip"] = ("this format has no delimiter tokens",)
    if model.renderer is None:
        values["model.template"] = "shipped:chatml_tools"
        reasons["model.template"] = ("there is none; this one suits a model that knows ChatML",)
        return
    values["model.template"] = "auto"
    lost = [check.name for check in failed if check.name != "delimiters_are_tokens"]
    if not lost:
        reasons["model.template"] = ("the stock one passes the audit",)
        return
    mended = any("repaired" in note for note in model.notes)
    reasons["model.template"] = (
        f"the stock one loses: {', '.join(lost)}",
        "repaired, nothing is lost" if mended else f"smollora repair {source} says what is left",
    )


def _choose_rows(
    sources: Sequence[SourceFacts],
    context: int | None,
    values: dict[str, Any],
    reasons: dict[str, tuple[str, ...]],
) -> None:
    entries = [{"name": s.name, "path": s.path, "kind": s.kind} for s in sources]
    kinds = {source.kind for source in sources}
    if kinds == {"tool"}:
        entries.append({"name": "chat", "path": "starter:general", "kind": "general"})
        reasons["prepare.sources"] = (
            "chat is plain chat that comes with smollora: without it the model forgets to talk",
        )
    elif kinds == {"general"}:
        entries.append({"name": "calls", "path": "starter:tools", "kind": "tool"})
        reasons["prepare.sources"] = (
            "none of the sampled rows calls; calls are rows that do, which come with smollora",
        )
    values["prepare.sources"] = entries
    longest = max(source.longest for source in sources)
    length = LEAST_LENGTH
    while length < longest:
        length *= 2
    if context and length > context:
        length = context
    values["prepare.max_length"] = length
    reasons["prepare.max_length"] = (
        f"the longest of the sampled rows has {longest:,} tokens; the context is"
        f" {f'{context:,}' if context else 'not known'}",
    )
    values["mix.tool_share"] = 0.7


def _choose_training(
    model: OpenedModel, source: str, values: dict[str, Any], reasons: dict[str, tuple[str, ...]]
) -> None:
    by_token = model.format.delimited == "token"
    values["train.embeddings"] = "tool_tokens" if by_token else "frozen"
    reasons["train.embeddings"] = (
        "the rows of the delimiters are trained, and what is tied stays tied"
        if by_token
        else f"{model.format.name} has no delimiter tokens whose rows could be trained",
    )
    targets = find_targets(resolve_model(source, weights=False))
    values["train.targets"] = list(targets or USUAL_TARGETS)
    if targets:
        reasons["train.targets"] = ("read off the weights",)
    else:
        reasons["train.targets"] = ("the usual names; the weights are not here to read them off",)
    values["train.batch_tokens"] = max(4096, values["prepare.max_length"])
    values["train.lr"] = 2e-4
    values["train.epochs"] = 3


def find_targets(folder: Path) -> tuple[str, ...]:
    """Names of the projections in the weights' headers; empty where the weights are elsewhere."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as archive:
                names = list(archive.keys())
        except SafetensorError:
            return ()
        for name in names:
            inner = re.search(r"\.layers\.\d+\..*\.(\w+_proj|\w*fc\d?|dense\w*)\.weight$", name)
            if inner:
                found[inner[1]] = None
    usual = [name for name in USUAL_TARGETS if name in found]
    return (*usual, *sorted(set(found) - set(usual)))


# ── telling ──────────────────────────────────────────────────────────────────────────────────────


def _about_model(model: OpenedModel, architecture: Mapping[str, Any]) -> list[str]:
    known = architecture["parameters"]
    size = f"{known:,} parameters" if known else "parameters not known"
    failed = sum(not check.ok for check in model.checks)
    return [
        f"{model.source}: {architecture['model_type']}, {size}; its calls: {model.format.name}",
        f"{len(model.checks) - failed} of {len(model.checks)} checks hold"
        f" (smollora inspect {model.source})",
    ]


def _about(sources: Sequence[SourceFacts]) -> list[str]:
    lines = []
    for source in sources:
        forms = ", ".join(source.forms)
        kinds = ", ".join(f"{count} {kind}" for kind, count in source.kinds.items())
        lines.append(f"{source.path}: {source.rows}, form {forms}; of {source.sampled}: {kinds}")
        if source.rejected:
            listed = ", ".join(f"{count} {reason}" for reason, count in source.rejected.items())
            lines.append(f"  rejected: {listed}; {source.first_reject}")
    return lines


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "mine"


def refuse_to_overwrite(out: Path, force: bool) -> None:
    """A recipe that a person wrote is not replaced unasked.

    Raises:
        ConfigError: `out` is there.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", "choose another --out, or say --force")
