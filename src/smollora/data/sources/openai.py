"""OpenAI messages: `messages` with role/content, `tool_calls` and `tool_call_id`, `tools`.

Content is text, null or a list of parts; arguments are an object or a JSON string. Calls written
into the text between <tool_call> tags are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smollora.data.notes import FromArrow, Notes, Refused
from smollora.data.sources.calls import (
    read_content,
    read_openai_call,
    read_results,
    read_tagged_answer,
)
from smollora.data.sources.turns import read_offered, read_role, without_tools_text
from smollora.types import Message, ToolCall, ToolSpec

NAME = "openai"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form: messages that call, answer a call, or offer tools."""
    turns = record.get("messages")
    return isinstance(turns, list) and (
        bool(record.get("tools"))
        or any(
            isinstance(turn, Mapping)
            and (turn.get("tool_calls") or turn.get("role") in ("tool", "function"))
            for turn in turns
        )
    )


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    messages: list[Message] = []
    system = ""
    for turn in record["messages"]:
        if not isinstance(turn, Mapping):
            raise Refused("bad_turn", "a turn must be an object")
        role = read_role(turn.get("role"))
        text, thoughts, calls = read_content(turn.get("content"), notes)
        thoughts = thoughts or _text(turn.get("reasoning_content")) or _text(turn.get("reasoning"))
        calls += _read_calls(turn, notes)
        if calls and role != "assistant":
            raise Refused("bad_turn", f'a "{turn.get("role")}" turn that calls')
        if role == "system":
            system = system or text
            text = without_tools_text(text) if "<tools>" in text else text
            if text:
                messages.append(Message(role, text))
        elif role == "tool":
            messages += _read_result(turn, text)
        elif role == "assistant" and not calls:
            messages.append(replace(_answer(text, notes), reasoning=thoughts))
        else:
            messages.append(Message(role, text, calls, reasoning=thoughts))
    return messages, read_offered(record, system, notes, arrow=isinstance(record, FromArrow))


def _answer(text: str, notes: Notes) -> Message:
    """An answer whose calls, if any, are written into the text."""
    tagged = "<tool_call>" in text and "</tool_call>" in text
    return read_tagged_answer(text, notes) if tagged else Message("assistant", text)


def _read_calls(turn: Mapping[str, Any], notes: Notes) -> tuple[ToolCall, ...]:
    listed = turn.get("tool_calls") or ()
    if not isinstance(listed, (list, tuple)):
        raise Refused("bad_call", f"tool_calls is no list: {str(listed)[:80]}")
    older = turn.get("function_call")  # before there were several
    if isinstance(older, Mapping) and older.get("name"):
        listed = [*listed, {"function": older}]
    return tuple(read_openai_call(call, notes) for call in listed)


def _read_result(turn: Mapping[str, Any], text: str) -> list[Message]:
    identity, name = turn.get("tool_call_id"), turn.get("name")
    if identity is None and name is None:
        return read_results(text)
    return [
        Message(
            "tool",
            text,
            call_id=None if identity is None else str(identity),
            name=None if name is None else str(name),
        )
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
