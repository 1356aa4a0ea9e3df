"""The nearest chat template that loses nothing.

In: a template's source and its tokenizer. Out: a source that passes the whole audit, with what was
wrong before and what mended it. A template that passes is returned as it is, so repairing twice
changes nothing.

Three ways, the first that passes is taken. SmolLM3's template, and ChatML templates that know no
tools at all, give way to the shipped one of their family, which keeps the stock wording (default
system message, tools block, the role that results come under). Any other template keeps its text
and gets small edits (`edits.py`), each accepted only if it mends a check, breaks none, and renders
plain conversations as before. What still fails then is named and nothing is written: a guess at a
family's turns would teach the model a prompt that it never saw.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from smollora.errors import TemplateError
from smollora.formats import ToolFormat
from smollora.formats.hermes import HERMES
from smollora.templates.audit import (
    CHECKS,
    Subject,
    TemplateSource,
    Tokenizer,
    audit,
    choose_template,
    past_limits,
    run_check,
)
from smollora.templates.audit.samples import assistant, system, user
from smollora.templates.engine import ChatTemplate, load_shipped
from smollora.templates.repair.edits import EDITS, Draft, Edit
from smollora.templates.repair.own_words import in_its_own_words
from smollora.types import Check

__all__ = ["Change", "NotRepairable", "RepairResult", "nearest_shipped", "repair", "show_diff"]


@dataclass(frozen=True, slots=True)
class Change:
    """A fault that the repair removed."""

    check: str
    reason: str
    """What the template did before, with evidence."""
    mended_by: str = ""
    """What was changed for it."""


@dataclass(frozen=True, slots=True)
class RepairResult:
    """A template that passes the audit."""

    source: str
    changes: tuple[Change, ...]
    """Empty if nothing had to be repaired."""
    checks: tuple[Check, ...]
    """The audit of `source`."""
    shipped: str = ""
    """Which shipped template it was made from; empty if the stock template's text was kept."""


class NotRepairable(TemplateError):
    """No template near this one passes the audit; `checks` are those that would still fail."""

    def __init__(self, message: str, hint: str, checks: Iterable[Check]) -> None:
        super().__init__(message, hint)
        self.checks = tuple(checks)


def repair(
    source: TemplateSource, tokenizer: Tokenizer, *, fmt: ToolFormat = HERMES
) -> RepairResult:
    """The nearest template that passes the audit; the same one if it passes.

    Args:
        source: the template as the tokenizer holds it.
        tokenizer: the model's own.
        fmt: how the model is to write calls.

    Raises:
        NotRepairable: neither a shipped template nor edits make one that passes.
        TemplateError: there is no template, or one whose default message says the day.
    """
    chosen = choose_template(source) or ""
    before = audit(source, tokenizer, fmt=fmt)
    faults = [check for check in before if not check.ok]
    if not faults:
        return RepairResult(chosen, (), tuple(before))
    if not chosen:
        raise TemplateError(
            "there is no chat template to repair",
            "take the template of the model's instruct version, or a shipped one: chatml_tools",
        )
    if faults[0].name == "has_template" or any(map(past_limits, faults)):
        raise NotRepairable(faults[0].detail, "write a template that renders, and ends", faults)
    failed = {check.name for check in faults}
    knows_tools = not {"tools_reach_prompt", "calls_rendered"} <= failed
    other_format = "calls_in_format" in failed and "calls_rendered" not in failed
    shipped = nearest_shipped(chosen) if fmt.name == HERMES.name and not other_format else None
    if shipped and (shipped != "chatml_tools" or not knows_tools):
        return _from_shipped(shipped, chosen, faults, tokenizer, fmt)
    edited = _edited(chosen, faults, tokenizer, fmt)
    if isinstance(edited, RepairResult):
        return edited
    if shipped:
        return _from_shipped(shipped, chosen, faults, tokenizer, fmt)
    raise NotRepairable(
        f"no shipped template is near this one, which fails {len(faults)} checks, and"
        f" {len(edited)} of them cannot be repaired automatically:\n{_named(edited)}",
        "the template writes calls in another format than this one: choose its own (model.format)"
        if other_format
        else "write a template that keeps these, or take one from a model of the same family",
        edited,
    )


def nearest_shipped(source: str) -> str | None:
    """The name of the shipped template of the same family; None if there is none."""
    if "<|im_start|>" not in source or "<|im_end|>" not in source:
        return None
    if "## Metadata" in source and "Reasoning Mode" in source:
        return "smollm3"
    return None if "enable_thinking" in source or "image" in source else "chatml_tools"


def show_diff(before: str, after: str, name: str = "chat_template.jinja") -> str:
    """A unified diff of two templates; empty if they are equal."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", lineterm=""
    )
    return "".join(f"{line}\n" for line in lines)


def _from_shipped(
    shipped: str, chosen: str, faults: list[Check], tokenizer: Tokenizer, fmt: ToolFormat
) -> RepairResult:
    repaired = load_shipped(shipped)
    if shipped == "chatml_tools":
        repaired = in_its_own_words(repaired, Subject(ChatTemplate(chosen), tokenizer, fmt))
    after = audit(repaired, tokenizer, fmt=fmt)
    if left := [check for check in after if not check.ok]:
        raise NotRepairable(
            f'the shipped template "{shipped}" does not suit this tokenizer:\n{_named(left)}',
            "set the tokenizer's eos_token to the token that ends a turn",
            left,
        )
    by = f'the shipped template "{shipped}" takes its place'
    changes = tuple(Change(check.name, check.detail, by) for check in faults)
    return RepairResult(repaired, changes, tuple(after), shipped)


def _named(checks: Iterable[Check]) -> str:
    return "\n".join(f"  {check.name}: {check.detail}" for check in checks)


# ── edits of the stock template's own text ────────────────────────────────────────────────────


def _edited(
    chosen: str, faults: list[Check], tokenizer: Tokenizer, fmt: ToolFormat
) -> RepairResult | list[Check]:
    """The template with every edit that helps, or the checks that none of them mends."""
    draft, failing = Draft(chosen), {check.name: check for check in faults}
    mended: dict[str, str] = {}
    helped = True
    while failing and helped:
        helped = False
        for edit in EDITS:
            tried = _try(edit, draft, failing, tokenizer, fmt)
            if tried is None or not _as_before(chosen, tried[0].source, tokenizer, fmt):
                continue
            for name in failing.keys() - tried[1].keys():
                mended[name] = edit.does
            (draft, failing), helped = tried, True
    if failing:
        return list(failing.values())
    after = audit(draft.source, tokenizer, fmt=fmt)
    changes = tuple(Change(check.name, check.detail, mended[check.name]) for check in faults)
    return RepairResult(draft.source, changes, tuple(after))


def _try(
    edit: Edit, draft: Draft, failing: dict[str, Check], tokenizer: Tokenizer, fmt: ToolFormat
) -> tuple[Draft, dict[str, Check]] | None:
    """(edited draft, what still fails), if the edit mends a check and breaks none."""
    wanted = failing.keys() & set(edit.checks)
    if not wanted or not set(edit.only_if) <= failing.keys():
        return None
    edited = edit.apply(draft)
    if edited == draft:
        return None
    try:
        subject = Subject(ChatTemplate(edited.source), tokenizer, fmt)
    except TemplateError:
        return None
    first = [check for check in CHECKS if check.__name__ in failing]
    if all(not run_check(check, subject).ok for check in first):
        return None
    left = {check.name: check for check in audit(edited.source, tokenizer, fmt=fmt) if not check.ok}
    return (edited, left) if left.keys() < failing.keys() else None


def _as_before(stock: str, edited: str, tokenizer: Tokenizer, fmt: ToolFormat) -> bool:
    """True if plain conversations render as they did, wherever they did and kept their words."""
    old, new = (Subject(ChatTemplate(each), tokenizer, fmt) for each in (stock, edited))
    talk = [user(), assistant(), user("And Porto?")]
    for chat in (talk[:1], talk, [system(), *talk]):
        for prompt in (False, True):
            try:
                wanted = old.render(chat, add_generation_prompt=prompt)
            except TemplateError:
                continue
            if any(message["content"] not in wanted for message in chat):
                continue
            try:
                if new.render(chat, add_generation_prompt=prompt) != wanted:
                    return False
            except TemplateError:
                return False
    return True
