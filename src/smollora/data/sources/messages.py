"""Plain messages: `messages` (or `conversations`) with role/content and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import FromArrow, Notes
from smollora.data.sources import openai
from smollora.types import Message, ToolSpec

NAME = "messages"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    turns = record.get("messages", record.get("conversations"))
    return isinstance(turns, list) and ("messages" in record or _has_roles(turns))


def _has_roles(turns: list[Any]) -> bool:
    return bool(turns) and all(
        isinstance(turn, Mapping) and "role" in turn and "from" not in turn for turn in turns
    )


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages and tools of one record."""
    turns = record.get("messages", record.get("conversations"))
    kind = FromArrow if isinstance(record, FromArrow) else dict
    return openai.read(kind({**record, "messages": turns}), notes)
