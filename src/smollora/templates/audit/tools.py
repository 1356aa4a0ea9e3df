"""Do the tools reach the prompt, whole and as JSON?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from smollora.templates.audit.samples import CLOCK, TOOLS, WEATHER, system, user
from smollora.templates.audit.subject import FOR_INFORMATION, Finding, Subject
from smollora.types import ToolSpec

WANTED = ("get_weather", "Weather of one city", "station", "get_time", "Time at one place")
CONTROL_WORD = re.compile(r"""["'](/[a-z][a-z_]{2,30})["']""")
"""A word by which a system message steers a template, as its source spells it: "/no_think"."""
OTHER_TOOLS = re.compile(r"\b(?!tools\b)[a-z]+_tools\b(?=\s*(?:%}|-%}|\[|\)|and\b|or\b|is\b))")
PYTHON_KEY = re.compile(r"[{,]\s*'\w+': ")


def tools_reach_prompt(subject: Subject) -> Finding:
    """Names, descriptions and parameters of every tool are in the prompt."""
    prompt = subject.render([system(), user()], TOOLS, add_generation_prompt=True)
    lost = [word for word in WANTED if word not in prompt]
    if not lost:
        return subject.shown(True, "", prompt, prompt.find("get_weather"))
    words = f"not in the prompt: {', '.join(lost)}"
    others = sorted(set(OTHER_TOOLS.findall(subject.template.source)))
    if others and len(lost) == len(WANTED):
        words += f"; the template reads {' and '.join(others)} instead of tools"
    return subject.shown(False, words + "; it reads", prompt, len(prompt))


def tools_as_json(subject: Subject) -> Finding:
    """Every tool is written as JSON, not as Python prints it."""
    prompt = subject.render([user()], TOOLS, add_generation_prompt=True)
    shown = [value.get("function", value) for value in _json_objects(prompt)]
    for tool in (WEATHER, CLOCK):
        place = prompt.find(tool.name)
        if place < 0:
            return subject.shown(False, f"{tool.name} is not in the prompt", prompt)
        if any(_is_tool(value, tool.name, tool.parameters) for value in shown):
            continue
        around = prompt[max(0, place - 200) : place + 400]
        if PYTHON_KEY.search(around) or any(word not in prompt for word in WANTED):
            return subject.shown(False, "not JSON", prompt, place)
        if _as_a_call(prompt, tool):
            words = f"{FOR_INFORMATION}as the call that is to be made"
            return subject.shown(True, words, prompt, place)
        if '"name":' in around:
            return subject.shown(False, "JSON without the tool's own parameters", prompt, place)
        words = f"{FOR_INFORMATION}in a grammar of this family's own"
        return subject.shown(True, words, prompt, place)
    return subject.shown(True, "", prompt, prompt.find(WEATHER.name))


def _is_tool(value: Any, name: str, parameters: Mapping[str, Any]) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("name") == name
        and value.get("parameters") == parameters
    )


def _as_a_call(prompt: str, tool: ToolSpec) -> bool:
    """Whether one line calls the tool with every argument of its schema, nested ones too."""
    start = f'{{"name": "{tool.name}", "arguments": {{'
    names = _argument_names(tool.parameters)
    lines = [line for line in prompt.splitlines() if line.startswith(start)]
    return any(all(f'"{name}"' in line for name in names) for line in lines)


def _argument_names(schema: Any) -> list[str]:
    if not isinstance(schema, Mapping):
        return []
    inner = schema.get("properties") or {}
    nested = [*inner.values(), schema.get("items")]
    return [*inner, *(name for each in nested for name in _argument_names(each))]


def tools_despite_control_words(subject: Subject) -> Finding:
    """No word by which the system message steers the template takes the tools away."""
    words = list(dict.fromkeys(CONTROL_WORD.findall(subject.template.source)))
    for word in words:
        messages = [system(f"{system()['content']} {word}"), user()]
        prompt = subject.render(messages, TOOLS, add_generation_prompt=True)
        plain = subject.render([system(), user()], TOOLS, add_generation_prompt=True)
        if any(wanted in plain and wanted not in prompt for wanted in WANTED):
            return subject.shown(False, f"with {word} the tools are left out", prompt)
    prompt = subject.render([system(), user()], TOOLS, add_generation_prompt=True)
    said = f"tried {', '.join(words)}" if words else "the template knows no control words"
    return subject.shown(True, said, prompt, max(prompt.find("get_weather"), 0))


def _json_objects(text: str) -> list[dict[str, Any]]:
    decoder, found, position = json.JSONDecoder(), [], text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            found.append(value)
        except (ValueError, RecursionError):
            end = position + 1
        position = text.find("{", end)
    return found
