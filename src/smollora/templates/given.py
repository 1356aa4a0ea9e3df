"""What a chat template is given: plain JSON values, as transformers hands them over.

In: messages and tools as a caller has them. Out: copies made of dict, list, str, int, float, bool
and None only, for an object with methods would let a template leave the sandbox. Messages lose the
keys whose value is None, and find their reasoning under its standard name as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smollora.types import Message

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_ATOMS = frozenset({str, int, float, bool, type(None)})


def as_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form that chat templates take (arguments as objects)."""
    return [_message_as_openai(message) for message in messages]


def _message_as_openai(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                **({"id": call.id} if call.id else {}),
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.calls
        ]
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.name:
        turn["name"] = message.name
    return turn


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it over.

    Plain values, no None, and the reasoning under its standard name as well.
    """
    made = {key: plain(value) for key, value in message.items() if value is not None}
    for key in _REASONING_KEYS:
        if key in made:
            return {"thinking": made[key], **made, "reasoning_content": made[key]}
    return made


def plain(value: Any) -> Any:
    """A copy of JSON types only: objects with methods would let a template leave the sandbox."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return _plain_dict(value.items())
    if kind is list:
        return [item if type(item) in _ATOMS else plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return _plain_dict(value.items())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if callable(getattr(value, "model_dump", None)):
        return plain(value.model_dump())
    return f"<{kind.__name__}>"


def _plain_dict(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    return {
        key if type(key) is str else plain(key): item if type(item) in _ATOMS else plain(item)
        for key, item in items
    }
