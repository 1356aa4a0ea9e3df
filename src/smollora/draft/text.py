"""A drafted recipe as YAML: every key with what it means, and beside what was chosen, why.

In: a `Draft`. Out: text that `load_recipe` reads. Chosen keys stand as they are; all others stand
commented out with their defaults, so that the file is also the reference.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from smollora.recipe_keys import RecipeKey, recipe_keys, recipe_sections

WIDTH = 96


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe and why it is as it is."""

    head: tuple[str, ...]
    """Lines of comment at the top: what the model and the sources are."""
    values: Mapping[str, Any]
    """Chosen values by key ("prepare.max_length")."""
    reasons: Mapping[str, tuple[str, ...]]
    """Lines of comment under a key's meaning: why this value."""


def show_draft(draft: Draft) -> str:
    """The recipe as YAML with comments."""
    lines = [f"# {line}" for text in draft.head for line in _wrapped(text, 0)]
    lines += ["#", "# Keys that are commented out have the value that stands there."]
    about = {section.path: section.about for section in recipe_sections()}
    inside: tuple[str, ...] = ()
    for key in recipe_keys():
        if key.in_list:
            continue
        parts = tuple(key.section.split(".")) if key.section else ()
        for depth in range(len(parts)):
            if parts[: depth + 1] != inside[: depth + 1]:
                lines += _section_lines(parts[: depth + 1], about, draft)
        inside = parts
        lines += _key_lines(key, len(parts), draft)
    return "\n".join(lines) + "\n"


def _section_lines(parts: tuple[str, ...], about: Mapping[str, str], draft: Draft) -> Iterator[str]:
    """The line that opens a section; commented out where nothing in it is chosen."""
    path, indent = ".".join(parts), "  " * (len(parts) - 1)
    chosen = any(key.startswith(f"{path}.") for key in draft.values)
    if len(parts) == 1:
        yield ""
    yield f"{indent}# {about[path]}"
    yield f"{indent}{'' if chosen else '# '}{parts[-1]}:"


def _key_lines(key: RecipeKey, depth: int, draft: Draft) -> Iterator[str]:
    indent = "  " * depth
    takes = "" if key.takes in ("text", "a list of sections") else f" ({key.takes})"
    for line in _wrapped(f"{key.description.removesuffix('.')}{takes}.", depth):
        yield f"{indent}# {line}"
    for reason in draft.reasons.get(key.path, ()):
        yield from (f"{indent}# -> {line}" for line in _wrapped(reason, depth + 2))
    chosen = key.path in draft.values
    mark = "" if chosen else "# "
    value = draft.values[key.path] if chosen else key.default
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield f"{indent}{mark}{key.name}:"
        yield from (f"{indent}{mark}  - {as_yaml(item)}" for item in value)
    elif isinstance(value, dict) and len(as_yaml(value)) > WIDTH - 20:
        yield f"{indent}{mark}{key.name}:"
        yield from (f"{indent}{mark}  {name}: {as_yaml(item)}" for name, item in value.items())
    else:
        yield f"{indent}{mark}{key.name}: {as_yaml(value)}"


def as_yaml(value: Any) -> str:
    """A value on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(
        plain, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str, depth: int) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2 * depth, break_long_words=False) or [""]
