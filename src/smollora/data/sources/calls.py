"""Calls, results and content as data sets write them; shared by the record forms.

The surprise: every reader here is linear in the length of its text. A lazy regular expression over
`<tool_call>` is quadratic, and a row may hold megabytes of opening tags.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.types import Message, ToolCall

LITERAL_LIMIT = 100_000
"""Longest Python literal that is read; Python's parser takes a hundred times its size in memory."""
TEXT_PARTS = ("text", "input_text", "output_text")
THINKING_PARTS = ("reasoning", "thinking")


def decode_object(text: str, notes: Notes) -> Any:
    """JSON, or a Python literal (as Hermes-V1 writes some calls); quotes are never replaced."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    bare = _without_literal_newlines(text)
    if bare != text:
        try:
            value = json.loads(bare)
        except (ValueError, RecursionError):
            pass
        else:
            notes.add("literal_newlines_removed", text[:40])
            return value
    if len(bare) <= LITERAL_LIMIT:
        try:
            value = ast.literal_eval(bare)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
        else:
            if isinstance(value, (dict, list, str)):
                notes.add("python_literal_read", text[:80])
                return value
    raise Refused("bad_call", f"neither JSON nor a Python literal: {text[:80]!r}")


def _without_literal_newlines(text: str) -> str:
    """Without backslash-n, written as two letters, around it."""
    bare = text.strip()
    while bare.startswith("\\n"):
        bare = bare[2:].lstrip()
    while bare.endswith("\\n"):
        bare = bare[:-2].rstrip()
    return bare


def read_call(value: Any, notes: Notes) -> ToolCall:
    """{"name": ..., "arguments": {...}}, in either order of the keys."""
    if not isinstance(value, Mapping):
        raise Refused("bad_call", f"not an object: {str(value)[:80]!r}")
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if not isinstance(name, str):
        raise _without_name(arguments, f"{str(value)[:80]!r}")
    if isinstance(arguments, str):
        notes.add("arguments_decoded", name)
        arguments = decode_object(arguments, notes)
    return ToolCall(name, _mapping(name, arguments))


def read_openai_call(call: Any, notes: Notes) -> ToolCall:
    """One entry of `tool_calls`; its arguments are a JSON string or, as templates want, an object.

    Encoded twice, they are decoded twice, and that is noted.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        found = function.get("arguments") if isinstance(function, Mapping) else None
        raise _without_name(found, f"{str(call)[:80]}")
    name, arguments = function["name"], function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if isinstance(arguments, str):
        arguments = decode_object(arguments, notes)
    if isinstance(arguments, str):
        notes.add("arguments_decoded", name)
        arguments = decode_object(arguments, notes)
    identity = call.get("id")
    return ToolCall(name, _mapping(name, arguments), None if identity is None else str(identity))


def _without_name(arguments: Any, shown: str) -> Refused:
    """What is said of a call without a name; in Hermes-V1 it may stand among the arguments."""
    if isinstance(arguments, Mapping) and isinstance(arguments.get("name"), str):
        return Refused(
            "name_inside_arguments", f'the name "{arguments["name"]}" is one of the arguments'
        )
    return Refused("call_without_name", shown)


def _mapping(name: str, arguments: Any) -> Mapping[str, Any]:
    if not isinstance(arguments, Mapping):
        raise Refused("bad_arguments", f"{name}: arguments are not an object")
    return dict(arguments)


def read_call_list(text: str, notes: Notes) -> tuple[ToolCall, ...]:
    """The value of a turn that is nothing but a call, or a list of calls."""
    value = decode_object(text, notes)
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise Refused("bad_call", "a call turn without a call")
    return tuple(read_call(item, notes) for item in listed)


def split_tagged(value: str, opened: str, closed: str) -> tuple[list[str], list[str]]:
    """The bodies between tags, and the texts around them (one more than bodies).

    Raises:
        Refused: a tag without its partner, or one inside the other.
    """
    bodies: list[str] = []
    around: list[str] = []
    place = 0
    while (start := value.find(opened, place)) >= 0:
        end = value.find(closed, start)
        inner = value.find(opened, start + len(opened))
        if end < 0 or 0 <= inner < end:
            raise Refused("unmatched_tag", f"{opened} without {closed}: {value[start:][:80]!r}")
        around.append(value[place:start])
        bodies.append(value[start + len(opened) : end].strip())
        place = end + len(closed)
    around.append(value[place:])
    if any(closed in text for text in around):
        raise Refused("unmatched_tag", f"{closed} without {opened}")
    return bodies, around


def read_tagged_answer(value: str, notes: Notes) -> Message:
    """An assistant turn with its calls in <tool_call> tags."""
    if "tool_call>" not in value:
        return Message("assistant", value.strip())
    bodies, around = split_tagged(value, "<tool_call>", "</tool_call>")
    if not bodies:
        return Message("assistant", value.strip())
    for text in around[1:]:
        bare = _without_literal_newlines(text)
        if bare:
            raise Refused("text_after_call", f"after the call: {bare[:80]!r}")
        if text.strip():
            notes.add("literal_newlines_removed", "after a call")
    calls = tuple(read_call(decode_object(body, notes), notes) for body in bodies)
    return Message("assistant", around[0].strip(), calls)


def read_results(value: str) -> list[Message]:
    """A tool turn: <tool_response> blocks, a JSON list of named results, or one plain result."""
    bodies = [value.strip()]
    if "<tool_response>" in value:
        bodies, around = split_tagged(value, "<tool_response>", "</tool_response>")
        outside = "".join(around).strip()
        if outside:
            raise Refused("text_outside_result", f"beside <tool_response>: {outside[:80]!r}")
    return [message for body in bodies for message in _read_result(body)]


def _read_result(body: str) -> list[Message]:
    try:
        decoded = json.loads(body) if body[:1] in "{[" else None
    except (ValueError, RecursionError):
        decoded = None
    listed: list[Any] = decoded if isinstance(decoded, list) else [decoded]
    if not listed or not all(_is_named_result(item) for item in listed):
        return [Message("tool", body)]
    return [
        Message(
            "tool",
            as_text(item["content"]),
            call_id=item["tool_call_id"] if isinstance(item.get("tool_call_id"), str) else None,
            name=item["name"],
        )
        for item in listed
    ]


def _is_named_result(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and {"name", "content"} <= set(item) <= {"name", "content", "tool_call_id", "role"}
        and isinstance(item["name"], str)
    )


def as_text(content: Any) -> str:
    """A result's content: text as it stands, else its JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def read_content(content: Any, notes: Notes) -> tuple[str, str, tuple[ToolCall, ...]]:
    """(text, reasoning, calls) of a message's content, which is text or a list of parts.

    Parts say their text under `text`, `value` or `content`.
    """
    if content is None:
        return "", "", ()
    if isinstance(content, str):
        return content, "", ()
    if not isinstance(content, list):
        raise Refused("bad_content", "content is neither text nor a list of parts")
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for part in content:
        if not isinstance(part, Mapping):
            raise Refused("bad_content", f"a part of the content is {type(part).__name__}")
        kind = part.get("type", "text")
        keys = ("text", "value", "content", "thinking", "reasoning")
        value = next((part[key] for key in keys if isinstance(part.get(key), str)), None)
        if kind == "tool_call":
            found = part.get("value", part.get("tool_call"))
            calls += read_call_list(found, notes) if isinstance(found, str) else ()
            calls += () if isinstance(found, str) else (read_call(found, notes),)
        elif value is None:
            raise Refused("bad_content", f'a part of type "{kind}" holds no text')
        elif kind in TEXT_PARTS:
            if calls and value.strip():
                raise Refused("text_after_call", f"after the call: {value[:80]!r}")
            text.append(value)
        elif kind in THINKING_PARTS:
            thoughts.append(value)
        else:
            raise Refused("bad_content", f'a part of type "{kind}" is no text')
    return "".join(text), "".join(thoughts), tuple(calls)


def join_call_turns(messages: Sequence[Message]) -> list[Message]:
    """Assistant text and the turns that only call after it, as the one turn that they were."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        only_calls = message.role == "assistant" and message.calls and not message.content
        if only_calls and before is not None and before.role == "assistant":
            joined[-1] = replace(before, calls=before.calls + message.calls)
        else:
            joined.append(message)
    return joined
