"""The nearest chat template that loses nothing.

In: a template's source and its tokenizer. Out: a source that passes the whole audit, with what was
wrong before. A template that passes is returned as it is, so repairing twice changes nothing.

Templates are not patched line by line: one of the shipped templates takes the place of the stock
one, and for ChatML it keeps that template's own wording (default system message, tools block, the
role that results come under), read off its renderings. A template of another family is refused, for
a guess at its turns would teach the model a prompt that it never saw.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any

from smollora.errors import TemplateError
from smollora.formats import ToolFormat
from smollora.formats.hermes import HERMES
from smollora.templates.audit import (
    ONE_CALL,
    RESULT,
    TOOLS,
    Subject,
    TemplateSource,
    Tokenizer,
    audit,
    choose_template,
    result,
    system,
    user,
)
from smollora.templates.engine import ChatTemplate, load_shipped
from smollora.types import Check


@dataclass(frozen=True, slots=True)
class Change:
    """A fault that the repair removed."""

    check: str
    reason: str
    """What the template did before, with evidence."""


@dataclass(frozen=True, slots=True)
class RepairResult:
    """A template that passes the audit."""

    source: str
    changes: tuple[Change, ...]
    """Empty if nothing had to be repaired."""
    checks: tuple[Check, ...]
    """The audit of `source`."""
    shipped: str = ""
    """Which shipped template it was made from; empty if the template is as it was."""


def repair(
    source: TemplateSource, tokenizer: Tokenizer, *, fmt: ToolFormat = HERMES
) -> RepairResult:
    """The nearest template that passes the audit; the same one if it passes.

    Args:
        source: the template as the tokenizer holds it.
        tokenizer: the model's own.
        fmt: how the model is to write calls.

    Raises:
        TemplateError: no shipped template is near, or even the nearest fails with this tokenizer.
    """
    chosen = choose_template(source) or ""
    before = audit(source, tokenizer, fmt=fmt)
    faults = [check for check in before if not check.ok]
    if not faults:
        return RepairResult(chosen, (), tuple(before))
    shipped = nearest_shipped(chosen) if fmt.name == HERMES.name else None
    if not chosen:
        raise TemplateError(
            "there is no chat template to repair",
            "take the template of the model's instruct version, or a shipped one: chatml_tools",
        )
    if shipped is None:
        named = "\n".join(f"  {check.name}: {check.detail}" for check in faults)
        raise TemplateError(
            f"no shipped template is near this one, which fails {len(faults)} checks:\n{named}",
            "write a template that keeps these, or take one from a model of the same family",
        )
    repaired = load_shipped(shipped)
    if shipped == "chatml_tools":
        repaired = _in_its_own_words(repaired, Subject(ChatTemplate(chosen), tokenizer, fmt))
    after = audit(repaired, tokenizer, fmt=fmt)
    if left := [check for check in after if not check.ok]:
        named = "\n".join(f"  {check.name}: {check.detail}" for check in left)
        raise TemplateError(
            f'the shipped template "{shipped}" does not suit this tokenizer:\n{named}',
            "set the tokenizer's eos_token to the token that ends a turn",
        )
    changes = tuple(Change(check.name, check.detail) for check in faults)
    return RepairResult(repaired, changes, tuple(after), shipped)


def nearest_shipped(source: str) -> str | None:
    """The name of the shipped template of the same family; None if there is none."""
    if "<|im_start|>" not in source:
        return None
    if "## Metadata" in source and "Reasoning Mode" in source:
        return "smollm3"
    return None if "enable_thinking" in source else "chatml_tools"


def show_diff(before: str, after: str, name: str = "chat_template.jinja") -> str:
    """A unified diff of two templates; empty if they are equal."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
    )
    return "".join(f"{line}\n" for line in lines)


# ── keeping a ChatML template's own wording ───────────────────────────────────────────────────


def _in_its_own_words(shipped: str, subject: Subject) -> str:
    """The shipped ChatML template with the wording that the stock template renders."""
    wording = {
        "default_system": _default_system(subject),
        **_tools_wording(subject),
        "results_role": _results_role(subject),
    }
    for name, value in wording.items():
        shipped = _set_value(shipped, name, value)
    return shipped


def _set_value(source: str, name: str, value: str | bool | None) -> str:
    """Replaces the value of one `{%- set name = ... -%}` line at the top of a shipped template."""
    words: dict[Any, str] = {None: "none", True: "true", False: "false"}
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else words[value]
    line = re.compile(rf"^\{{%- set {name} = .* -%\}}$", re.MULTILINE)
    return line.sub(lambda _: f"{{%- set {name} = {shown} -%}}", source, count=1)


def _default_system(subject: Subject) -> str | None:
    """The system text when no system message is given; None if there is no system turn then."""
    days = ("2025-01-02", "2031-12-30")
    texts = {subject.render([user()], date=day) for day in days}
    if len(texts) > 1:
        raise TemplateError(
            "this chat template's default system message says the day, which a repair would freeze",
            "write the system message into the conversations",
        )
    head = texts.pop().partition("<|im_start|>user\n")[0]
    _, opened, text = head.partition("<|im_start|>system\n")
    return text.rstrip().removesuffix("<|im_end|>") if opened else None


def _tools_wording(subject: Subject) -> dict[str, str | bool]:
    """The text around the tools, where the stock template writes them one a line; else nothing."""
    try:
        prompt = subject.render([system(), user()], TOOLS)
    except TemplateError:
        return {}
    for as_given in (True, False):
        shown = [tool if as_given else tool["function"] for tool in TOOLS]
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in shown)
        before, found, after = prompt.partition(lines)
        before = before.partition(system()["content"] + "\n\n")[2]
        after = after.partition("<|im_end|>")[0]
        if found and before:
            return {"tools_before": before, "tools_after": after, "tools_as_given": as_given}
    return {}


def _results_role(subject: Subject) -> str:
    """The role that a tool's answer comes under, if it is told from a user's by its tags."""
    try:
        text = subject.render([user(), ONE_CALL, result()], TOOLS)
    except TemplateError:
        return "tool"
    return "user" if f"<|im_start|>user\n<tool_response>\n{RESULT}\n" in text else "tool"
