"""Values that JSON and UTF-8 can hold, and no others, go into a conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from smollora.data.notes import Refused
from smollora.data.schemas import MAX_DEPTH
from smollora.types import Message, ToolSpec


def check_plain(messages: Sequence[Message]) -> None:
    """Refuse values that JSON and UTF-8 cannot hold.

    Raises:
        Refused: sets, bytes, NaN, keys that are no text, deep nesting, half of a surrogate pair.
    """
    for message in messages:
        for text in (message.content, message.reasoning):
            _check_encodes(text)
        for call in message.calls:
            _check_json(dict(call.arguments), call.name)


def check_plain_tool(tool: ToolSpec) -> None:
    """The same for a tool."""
    _check_encodes(tool.name + tool.description)
    _check_json(dict(tool.parameters), tool.name)


def _check_encodes(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused("bad_unicode", f"half of a surrogate pair at {error.start}") from None


def _check_json(value: Any, where: str, depth: int = 0) -> None:
    kind = type(value)  # exact types first: this walks over every value of every row
    if kind is str:
        _check_encodes(value)
    elif value is None or kind is bool or kind is int:
        return
    elif depth > MAX_DEPTH:
        raise Refused("too_deep", f"{where}: nested more than {MAX_DEPTH} deep")
    elif kind is dict or isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused("not_json", f"{where}: the key {key!r} is no text")
            _check_encodes(key)
            _check_json(item, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, where, depth + 1)
    elif kind is not float:
        raise Refused("not_json", f"{where}: a {kind.__name__} is nothing that JSON has")
    elif not math.isfinite(value):
        raise Refused("not_json", f"{where}: {value} is no JSON number")
