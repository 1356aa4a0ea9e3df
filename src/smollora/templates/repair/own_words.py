"""The shipped ChatML template with the wording of the stock one, read off its renderings."""

from __future__ import annotations

import json
import re
from typing import Any

from smollora.errors import TemplateError
from smollora.templates.audit.samples import ONE_CALL, RESULT, TOOLS, result, system, user
from smollora.templates.audit.subject import Subject


def in_its_own_words(shipped: str, subject: Subject) -> str:
    """The shipped template with the default system message, the tools block and the role of
    results that the stock template renders.

    Raises:
        TemplateError: the stock template's default system message says the day.
    """
    wording = {
        "default_system": _default_system(subject),
        **_tools_wording(subject),
        "results_role": _results_role(subject),
    }
    for name, value in wording.items():
        shipped = set_value(shipped, name, value)
    return shipped


def set_value(source: str, name: str, value: str | bool | None) -> str:
    """Replaces the value of one `{%- set name = ... -%}` line at the top of a template of ours."""
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
