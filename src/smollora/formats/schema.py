"""The JSON of a call as one JSON Schema: what a grammar may let a model write after the opening
delimiter.

In: a format, the tools on offer. Out: a schema whose properties stand in the order that the format
writes them in (name first), or None where the format's body is not JSON alone. The surprise: a
tool's schema moves to another place in the whole, so references inside it must move as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smollora.types import ToolSpec

if TYPE_CHECKING:
    from smollora.formats import ToolFormat

BODIES = {"hermes": "object", "mistral": "list", "granite": "list"}
"""Formats whose delimiters are tokens with nothing but JSON between them."""


def can_be_constrained(fmt: ToolFormat) -> bool:
    """True if a schema says all that may stand in the body of a call."""
    return fmt.name in BODIES


def call_schema(fmt: ToolFormat, tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The body of a call to one of `tools` (a list of calls where the format writes lists).

    Arguments that a tool does not declare are not allowed where it declares any and does not say
    otherwise: a model that may write on writes on.
    """
    listed = BODIES[fmt.name] == "list"
    place = "#/items/anyOf" if listed else "#/anyOf"
    calls = {"anyOf": [_call(tool, f"{place}/{number}") for number, tool in enumerate(tools)]}
    return {"type": "array", "items": calls, "minItems": 1} if listed else calls


def _call(tool: ToolSpec, place: str) -> dict[str, Any]:
    moved = _move(dict(tool.parameters), f"{place}/properties/arguments")
    arguments: dict[str, Any] = {"type": "object", **moved}
    if arguments.get("properties"):
        arguments.setdefault("additionalProperties", False)
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _move(schema: Any, place: str) -> Any:
    """The schema with its references to itself as they read from the root of the whole."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _move(value, place)
            for key, value in schema.items()
        }
    return [_move(item, place) for item in schema] if isinstance(schema, list) else schema
