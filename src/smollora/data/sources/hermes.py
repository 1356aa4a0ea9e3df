"""Hermes-Function-Calling-V1: `conversations` with from/value, `tools` as a JSON string.

Calls stand in the gpt text between <tool_call> tags, results between <tool_response> tags, and the
tools twice: in the system text and in `tools`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import FromArrow, Notes
from smollora.data.sources.turns import read_offered, read_turns
from smollora.types import Message, ToolSpec

NAME = "hermes"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    return isinstance(record.get("conversations"), list)


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    turns = record["conversations"]
    messages = read_turns(turns, notes)
    tools = read_offered(record, system_text(turns), notes, arrow=isinstance(record, FromArrow))
    return messages, tools


def system_text(turns: list[Any]) -> str:
    """The text of the first system turn, tools block and all."""
    for turn in turns:
        if isinstance(turn, Mapping) and "system" in (turn.get("from"), turn.get("role")):
            value = turn.get("value", turn.get("content"))
            return value if isinstance(value, str) else ""
    return ""
