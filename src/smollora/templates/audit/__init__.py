"""What a chat template loses: one small check per thing that can get lost, with evidence.

In: a template's source and the tokenizer it belongs to. Out: a `Check` per question, named by its
function. Each check renders small made-up conversations and looks at what came out; nothing is
read off the source. A template that raises fails the check that made it raise, in its own words.

Two surprises. Some checks pass with a remark ("for information: ..."), where the template behaves
as its model was built, or where no template can do better, and the person should still know. And a
template that runs past the engine's limits once is not tried again: the checks after it fail as
"not tried", so that a program without end costs seconds and not minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from smollora.errors import TemplateError
from smollora.formats import FORMATS, ToolFormat, get_format
from smollora.formats.detect import detect_format
from smollora.formats.hermes import HERMES
from smollora.templates.audit.calls import (
    arguments_as_object,
    arguments_as_string,
    call_without_arguments,
    calls_in_format,
    calls_rendered,
    content_beside_call,
    reasoning_kept,
    several_calls,
)
from smollora.templates.audit.labels import (
    delimiter_injection,
    generation_markers_exact,
    generation_prompt_matches,
    stop_token_trained,
)
from smollora.templates.audit.results import results_rendered, results_unlike_user, several_results
from smollora.templates.audit.subject import Finding, Subject, Tokenizer
from smollora.templates.audit.text import list_content, text_survives
from smollora.templates.audit.tools import (
    tools_as_json,
    tools_despite_control_words,
    tools_reach_prompt,
)
from smollora.templates.audit.turns import (
    date_stable,
    history_stable,
    second_system_message,
    serving_prompt_same,
    system_closed_with_tools,
    system_closed_without_tools,
)
from smollora.templates.engine import ChatTemplate
from smollora.types import Check

__all__ = ["CHECKS", "Subject", "TemplateSource", "Tokenizer", "audit", "choose_template"]

TemplateSource = str | Mapping[str, str] | Sequence[Mapping[str, str]] | None
"""As tokenizers hold it: one template, or several by name."""
CheckFunction = Callable[[Subject], Finding]
MOST_SECONDS = 20.0
"""Of a whole audit; it takes well under one for templates as models have them."""

CHECKS: tuple[CheckFunction, ...] = (
    tools_reach_prompt,
    tools_as_json,
    tools_despite_control_words,
    calls_rendered,
    calls_in_format,
    arguments_as_object,
    arguments_as_string,
    several_calls,
    call_without_arguments,
    content_beside_call,
    reasoning_kept,
    results_rendered,
    results_unlike_user,
    several_results,
    system_closed_with_tools,
    system_closed_without_tools,
    second_system_message,
    list_content,
    text_survives,
    date_stable,
    history_stable,
    serving_prompt_same,
    generation_prompt_matches,
    stop_token_trained,
    generation_markers_exact,
    delimiter_injection,
)
"""Every check, in reading order; a check's name is its function's."""


def audit(source: TemplateSource, tokenizer: Tokenizer, *, fmt: ToolFormat = HERMES) -> list[Check]:
    """Every check on a template, in reading order.

    Args:
        source: the template, or named templates ("tool_use" is taken, else "default"), or None.
        tokenizer: the model's own.
        fmt: how the model is to write calls.
    """
    chosen = choose_template(source)
    if not chosen:
        return [Check("has_template", False, "the tokenizer has no chat template")]
    try:
        without_tools = _named(source).get("default") if not isinstance(source, str) else None
        other = ChatTemplate(without_tools) if without_tools not in (None, chosen) else None
        subject = Subject(ChatTemplate(chosen), tokenizer, fmt, other)
    except TemplateError as error:
        return [Check("has_template", False, error.message)]
    checks: list[Check] = []
    ends = monotonic() + MOST_SECONDS
    stopped = ""
    for check in CHECKS:
        if not stopped and monotonic() > ends:
            stopped = f"the checks before it took more than {MOST_SECONDS:g} seconds"
        if stopped:
            checks.append(Check(check.__name__, False, f"not tried: {stopped}"))
            continue
        checks.append(run_check(check, subject))
        if past_limits(checks[-1]):
            stopped = f"{check.__name__} ran past the limits"
    return checks


def run_check(check: CheckFunction, subject: Subject) -> Check:
    """One check; the template's own refusal is a failure with its words."""
    try:
        return Check(check.__name__, *check(subject))
    except TemplateError as error:
        return Check(check.__name__, False, error.message)


def past_limits(check: Check) -> bool:
    """True if the engine stopped the template: it did not end, or built too much."""
    return not check.ok and " was stopped: " in check.detail


def choose_template(source: TemplateSource) -> str | None:
    """The template that tool use goes through; None if there is none."""
    if source is None or isinstance(source, str):
        return source
    named = _named(source)
    return named.get("tool_use") or named.get("default")


def _named(source: TemplateSource) -> Mapping[str, str]:
    if source is None or isinstance(source, str):
        return {}
    if isinstance(source, Mapping):
        return source
    return {entry["name"]: entry["template"] for entry in source}


def choose_format(tokenizer: Any, name: str | None) -> ToolFormat:
    """The format of that name; without a name, the one that the chat template writes."""
    return get_format(name) if name else find_format(tokenizer.chat_template, tokenizer)


def find_format(source: TemplateSource, tokenizer: Tokenizer) -> ToolFormat:
    """The format that the template itself writes calls in; hermes if it writes none that we know.

    A family that opens calls with the same tag as another is told from it by reading a call back.
    """
    chosen = choose_template(source)
    if not chosen:
        return HERMES
    try:
        template = ChatTemplate(chosen)
    except TemplateError:
        return HERMES
    likely = detect_format(tokenizer.get_added_vocab(), chosen)
    first = FORMATS.get(likely, HERMES)
    for fmt in (first, *(each for each in FORMATS.values() if each.name != first.name)):
        found = run_check(calls_in_format, Subject(template, tokenizer, fmt))
        if found.ok:
            return fmt
        if past_limits(found):
            break
    return first
