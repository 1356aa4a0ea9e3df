"""Small changes to a template's own text, each for the checks that it may mend.

Two kinds. A rewriting changes an expression where it stands: `tool | string` becomes
`tool | tojson`. A fold leaves the template alone and hands it other messages: lines in front of it
(`at_the_door.jinja`, as many as are needed) write calls, results, tools and lists of parts into the
contents that the template does keep. Either way everything that the stock template rendered right
stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources

NO_CALLS = (
    "calls_rendered",
    "calls_in_format",
    "arguments_as_object",
    "arguments_as_string",
    "several_calls",
    "call_without_arguments",
    "content_beside_call",
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A template on its way to be repaired."""

    body: str
    """The stock template, or what rewritings made of it."""
    folds: frozenset[str] = frozenset()
    """What is folded in front of it."""

    @property
    def source(self) -> str:
        return _lines_in_front(self.folds) + self.body if self.folds else self.body


@dataclass(frozen=True, slots=True)
class Edit:
    """One way to change a template."""

    does: str
    """What it changes, for the person who reads the diff."""
    checks: tuple[str, ...]
    """It is tried when one of these fails."""
    apply: Callable[[Draft], Draft]
    """Gives the draft back as it is where there is nothing to change."""
    only_if: tuple[str, ...] = ()
    """It is not tried unless these fail as well."""


def _rewrite(pattern: str, replacement: str) -> Callable[[Draft], Draft]:
    compiled = re.compile(pattern)
    return lambda draft: replace(draft, body=compiled.sub(replacement, draft.body))


def _fold(*names: str) -> Callable[[Draft], Draft]:
    return lambda draft: replace(draft, folds=draft.folds | set(names))


def _lines_in_front(folds: frozenset[str]) -> str:
    """The lines of `at_the_door.jinja` that these folds need.

    Its lines `{# when A or B without C #}` and `{# end #}` say which those are.
    """
    text = resources.files("smollora.templates").joinpath("at_the_door.jinja")
    kept, wanted = [], True
    for line in text.read_text(encoding="utf-8").splitlines(keepends=True):
        if asks := re.fullmatch(r"\{# when (.+?)(?: without (\w+))? #\}\n", line):
            wanted = bool(folds & set(asks[1].split(" or "))) and asks[2] not in folds
        elif line == "{# end #}\n":
            wanted = True
        elif wanted:
            kept.append(line)
    switches = {
        "door_takes_calls": "calls",
        "door_takes_reasoning": "reasoning",
        "door_holds_first": "system",
    }
    front = "".join(kept)
    for switch, fold in switches.items():
        front = front.replace(switch, "true" if fold in folds else "false")
    return front


EDITS = (
    Edit(
        "tools are written as JSON",
        ("tools_as_json",),
        _rewrite(r"\b(tool|function|t)\s*\|\s*string\b", r"\1 | tojson"),
    ),
    Edit(
        "arguments that are a string already are not encoded again",
        ("arguments_as_string",),
        _rewrite(
            r"\b((?:\w+\.)*arguments)\s*\|\s*tojson(?:\(\))?(?!\w)",
            r"(\1 if \1 is string else \1 | tojson)",
        ),
    ),
    Edit(
        "date_string, if given, says the day",
        ("date_stable",),
        _rewrite(r"(?<!or )\bstrftime_now\(([^()]*)\)", r"(date_string or strftime_now(\1))"),
    ),
    Edit(
        "generation markers that cover what the model never writes are taken out",
        ("generation_markers_exact", "stop_token_trained"),
        _rewrite(r"\{%([-+]?) *((?:end)?generation) *([-+]?)%\}", r"{#\1 \2 \3#}"),
    ),
    Edit(
        "contents are given as lists of parts, which this template wants",
        ("text_survives", "calls_rendered", "tools_reach_prompt"),
        _fold("lists"),
    ),
    Edit(
        "lists of text parts become their text",
        ("list_content", "serving_prompt_same"),
        _fold("parts"),
    ),
    Edit(
        "calls are written into the assistant's content",
        NO_CALLS,
        _fold("calls"),
        only_if=("calls_rendered",),
    ),
    Edit(
        "results are written into a turn of their own tags",
        ("results_rendered", "results_unlike_user", "several_results"),
        _fold("results"),
    ),
    Edit(
        "tools are written into the system message",
        ("tools_reach_prompt", "tools_as_json"),
        _fold("tools"),
        only_if=("tools_reach_prompt",),
    ),
    Edit(
        "later system messages go into the user's next turn",
        ("second_system_message",),
        _fold("later"),
    ),
    Edit(
        "system messages go into the user's next turn",
        ("system_closed_without_tools", "second_system_message", "tools_reach_prompt"),
        _fold("system"),
    ),
    Edit(
        "reasoning is written into the assistant's content",
        ("reasoning_kept",),
        _fold("reasoning"),
    ),
)
"""In the order in which they are tried."""
