"""ShareGPT with tools: `conversations` with from/value, calls and results in turns of their own.

Roles human, gpt, function_call, observation (LLaMA-Factory); `tools` as a JSON string, `system`
beside the turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import FromArrow, Notes
from smollora.data.sources.calls import join_call_turns
from smollora.data.sources.hermes import system_text
from smollora.data.sources.turns import (
    CALL_ROLES,
    read_offered,
    read_turns,
    without_tools_text,
)
from smollora.types import Message, ToolSpec

NAME = "sharegpt"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form: some turn is nothing but a call, or `system` is beside."""
    turns = record.get("conversations")
    return isinstance(turns, list) and (
        isinstance(record.get("system"), str)
        or any(isinstance(turn, Mapping) and turn.get("from") in CALL_ROLES for turn in turns)
    )


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    turns = record["conversations"]
    messages = join_call_turns(read_turns(turns, notes))
    system = record.get("system")
    system = system if isinstance(system, str) else ""
    if system and not system_text(turns):
        text = without_tools_text(system)
        messages = [*([Message("system", text)] if text else []), *messages]
    tools = read_offered(
        record, system or system_text(turns), notes, arrow=isinstance(record, FromArrow)
    )
    return messages, tools
