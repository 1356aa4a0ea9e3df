"""ms-swift: `messages` with roles tool_call and tool_response, or `query`/`response`/`history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import FromArrow, Notes, Refused
from smollora.data.sources.calls import join_call_turns, read_tagged_answer
from smollora.data.sources.turns import read_offered, read_turns, without_tools_text
from smollora.types import Message, ToolSpec

NAME = "swift"
OWN_ROLES = frozenset(("tool_call", "tool_response"))


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    turns = record.get("messages")
    if isinstance(turns, list):
        return any(isinstance(turn, Mapping) and turn.get("role") in OWN_ROLES for turn in turns)
    return isinstance(record.get("query"), str) and isinstance(record.get("response"), str)


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    turns = record.get("messages")
    system = record.get("system")
    system = system if isinstance(system, str) else ""
    if isinstance(turns, list):
        messages = join_call_turns(read_turns(turns, notes))
        first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
        if first.get("role") == "system" and isinstance(first.get("content"), str):
            system = first["content"]
    else:
        messages = _read_pairs(record, system, notes)
    return messages, read_offered(record, system, notes, arrow=isinstance(record, FromArrow))


def _read_pairs(record: Mapping[str, Any], system: str, notes: Notes) -> list[Message]:
    text = without_tools_text(system)
    messages = [Message("system", text)] if text else []
    pairs = [*read_history(record), (record["query"], record["response"])]
    for asked, answered in pairs:
        messages.append(Message("user", asked))
        messages.append(read_tagged_answer(answered, notes))
    return messages


def read_history(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Earlier exchanges: [[question, answer], ...]."""
    history = record.get("history") or []
    if not isinstance(history, list):
        raise Refused("bad_turn", "the history is no list")
    pairs = []
    for pair in history:
        if (
            not isinstance(pair, (list, tuple))
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise Refused("bad_turn", "an exchange of the history is no pair of texts")
        pairs.append((pair[0], pair[1]))
    return pairs
