"""Alpaca: `instruction`, `input`, `output`; optional `system` and `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.data.sources.swift import read_history
from smollora.types import Message, ToolSpec

NAME = "alpaca"


def matches(record: Mapping[str, Any]) -> bool:
    """Whether the record has this form."""
    return "instruction" in record and "output" in record


def read(record: Mapping[str, Any], notes: Notes) -> tuple[list[Message], list[ToolSpec]]:
    """Messages of one record; it has no tools. The input follows the instruction after a blank
    line.
    """
    texts = {key: record.get(key) or "" for key in ("instruction", "input", "output", "system")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise Refused("bad_turn", f"{key} is not text")
    system, asked = texts["system"].strip(), texts["instruction"]
    if texts["input"].strip():
        asked = f"{asked}\n\n{texts['input']}" if asked.strip() else texts["input"]
    messages = [Message("system", system)] if system else []
    for question, answer in [*read_history(record), (asked, texts["output"])]:
        messages += [Message("user", question), Message("assistant", answer)]
    return messages, []
