"""Every key of a recipe with its type, default and meaning, read off the models of config.py.

In: nothing. Out: `RecipeKey`s in the order of the models. What completes keys on the command line,
what `smollora init` writes beside them and the recipe page of the documentation all come from here,
so that a key is described once, where it is declared.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from smollora.config import Recipe

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True, slots=True)
class RecipeKey:
    """One key."""

    path: str
    """ "train.weights.open"; an entry of a list of sections as "prepare.sources[].path"."""
    section: str
    """The path without its last name; "" at the top."""
    name: str
    takes: str
    """What it takes, in words: "a whole number, at least 1"."""
    default: Any
    required: bool
    description: str

    @property
    def in_list(self) -> bool:
        """True for a key of an entry of a list, which no `key=value` can name."""
        return "[]" in self.path


@dataclass(frozen=True, slots=True)
class RecipeSection:
    """A part of the recipe."""

    path: str
    """ "" for the recipe itself."""
    about: str


def recipe_keys(model: type[BaseModel] = Recipe, path: str = "") -> Iterator[RecipeKey]:
    """Every key that holds a value, sections resolved; the keys of a list's entries follow it."""
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        inner, listed = _section_of(field.annotation)
        if inner is not None and not listed:
            yield from recipe_keys(inner, place)
            continue
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        yield RecipeKey(
            place,
            path,
            name,
            "a list of sections" if listed else _takes(field),
            default,
            required,
            " ".join((field.description or "").split()),
        )
        if inner is not None:
            yield from recipe_keys(inner, f"{place}[]")


def recipe_sections(model: type[BaseModel] = Recipe, path: str = "") -> Iterator[RecipeSection]:
    """The sections in the order of their first key, the recipe itself first."""
    yield RecipeSection(path, " ".join((model.__doc__ or "").split()))
    for name, field in model.model_fields.items():
        inner, listed = _section_of(field.annotation)
        if inner is not None:
            place = f"{path}.{name}" if path else name
            yield from recipe_sections(inner, place + ("[]" if listed else ""))


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(the section that an annotation holds, whether as a list of them)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    inner = get_args(annotation)[:1]
    if get_origin(annotation) is tuple and inner and _section_of(inner[0])[0] is not None:
        return _section_of(inner[0])[0], True
    return None, False


def _takes(field: FieldInfo) -> str:
    words = _in_words(field.annotation)
    for bound in field.metadata:
        for name, said in _BOUNDS.items():
            value = getattr(bound, name, None)
            if value is not None:
                words += f", {said} {value:g}"
    return words


def _in_words(annotation: Any) -> str:
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _in_words(inner[0])
    if kind is Literal:
        return " | ".join(str(value) for value in inner)
    if kind in (Union, types.UnionType):
        return " or ".join(_in_words(each) for each in inner)
    if kind is tuple:
        return f"a list of {_plural(inner[0])}"
    if kind is dict:
        return f"a mapping to {_plural(inner[1])}"
    return {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true | false",
        type(None): "null",
    }.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _plural(annotation: Any) -> str:
    return {str: "texts", int: "whole numbers", float: "numbers"}.get(
        annotation, _in_words(annotation)
    )
