"""xLAM (APIGen): `query`, `tools` and `answers`, the last two as JSON strings.

Its parameters are flat ({"city": {"type": "str", "default": ""}}): one without a default is
required. A row without answers has no assistant turn and is refused as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import FromArrow, Notes, Refused
from smollora.data.sources.calls import decode_object, read_call
from smollora.data.sources.tools import read_tools
from smollora.types import Message, ToolSpec

NAME = "xlam"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    return "query" in record and "answers" in record


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    asked, answers = record.get("query"), record.get("answers")
    if not isinstance(asked, str):
        raise Refused("bad_turn", "query is not text")
    if isinstance(answers, str) and answers.strip():
        answers = decode_object(answers, notes)
    if answers is not None and not isinstance(answers, (list, str)):
        raise Refused("bad_call", f"answers are no list: {str(answers)[:80]}")
    calls = tuple(read_call(answer, notes) for answer in answers or () if answers)
    messages = [Message("user", asked)]
    if calls:
        messages.append(Message("assistant", "", calls))
    tools = read_tools(record.get("tools"), notes, arrow=isinstance(record, FromArrow))
    return messages, tools
