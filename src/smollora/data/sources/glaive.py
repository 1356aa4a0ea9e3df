"""Glaive's text: `system` ("SYSTEM: ... functions ...") and `chat` ("USER: ... ASSISTANT: ...").

Calls are `<functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>`: the arguments are
JSON inside single quotes. The older version has both texts in one field, `sample`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.data.sources.calls import decode_object, read_call
from smollora.data.sources.tools import read_tools
from smollora.types import Message, ToolCall, ToolSpec

NAME = "glaive"
MARKERS = ("SYSTEM:", "USER:", "ASSISTANT:", "FUNCTION RESPONSE:")
CALL = "<functioncall>"
END = "<|endoftext|>"
QUOTED = '"arguments": \''


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    chat = record.get("chat", record.get("sample"))
    return isinstance(chat, str) and ("USER:" in chat or "ASSISTANT:" in chat)


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    system = record.get("system") or ""
    chat = record.get("chat") or record.get("sample") or ""
    if not isinstance(system, str) or not isinstance(chat, str):
        raise Refused("bad_turn", "system and chat are not both text")
    if system and not system.startswith("SYSTEM:"):
        system = f"SYSTEM: {system}"
    messages: list[Message] = []
    tools: list[ToolSpec] = []
    for marker, text in _turns(f"{system}\n\n{chat}"):
        if marker == "SYSTEM:":
            tools = _read_functions(text, notes)
            if not tools and text:
                messages.append(Message("system", text))
        elif marker == "USER:":
            messages.append(Message("user", text))
        elif marker == "ASSISTANT:":
            messages.append(_read_answer(text.replace(END, "").strip(), notes))
        else:
            messages.append(Message("tool", text))
    return messages, tools


def _turns(text: str) -> Iterator[tuple[str, str]]:
    """(marker, text) of each turn. A marker opens a line that follows a blank one."""
    lines: list[str] = []
    marker, blank = "", True
    for line in text.split("\n"):
        found = next((m for m in MARKERS if line.startswith(m)), None) if blank else None
        if found:
            if marker:
                yield marker, "\n".join(lines).strip()
            marker, lines = found, [line[len(found) :]]
        elif marker:
            lines.append(line)
        elif line.strip():
            raise Refused("bad_turn", f"text before the first turn: {line[:80]!r}")
        blank = not line.strip()
    if marker:
        yield marker, "\n".join(lines).strip()


def _read_functions(text: str, notes: Notes) -> list[ToolSpec]:
    """The JSON objects that stand one after the other in the system text."""
    found: list[Any] = []
    decoder = json.JSONDecoder()
    place = text.find("{")
    if place < 0 or "function" not in text[:place]:
        return []
    while place >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise Refused("bad_tools", f"the functions are not JSON: {error}") from None
        found.append(value)
        place = text.find("{", place)
    return read_tools(found, notes)


def _read_answer(text: str, notes: Notes) -> Message:
    before, called, body = text.partition(CALL)
    if not called:
        return Message("assistant", text)
    calls = tuple(_read_call(part.strip(), notes) for part in body.split(CALL))
    return Message("assistant", before.strip(), calls)


def _read_call(body: str, notes: Notes) -> ToolCall:
    start, end = body.find(QUOTED), body.rfind("'")
    if 0 <= start < end - len(QUOTED) + 1:
        inside = body[start + len(QUOTED) : end].replace("\\'", "'")
        around = body[:start] + '"arguments": {}' + body[end + 1 :]
        value, text = _leading_object(around)
        if text:
            raise Refused("text_after_call", f"after the call: {text[:80]!r}")
        return read_call({**value, "arguments": decode_object(inside, notes)}, notes)
    value, text = _leading_object(body)
    if text:
        raise Refused("text_after_call", f"after the call: {text[:80]!r}")
    return read_call(value, notes)


def _leading_object(body: str) -> tuple[dict[str, Any], str]:
    try:
        value, end = json.JSONDecoder().raw_decode(body)
    except (ValueError, RecursionError):
        raise Refused("bad_call", f"not JSON: {body[:80]!r}") from None
    if not isinstance(value, dict):
        raise Refused("bad_call", f"not an object: {body[:80]!r}")
    return value, body[end:].strip()
