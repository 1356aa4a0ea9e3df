"""Every quirk that is told of Hermes-Function-Calling-V1, in one file of made-up rows.

The rows follow the card of the data set and the code of its readers; no row is out of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smollora.data.sources import Accepted, read_row, read_rows
from smollora.types import Reject, ToolCall

FIXTURE = Path(__file__).parent / "fixtures" / "hermes_v1.jsonl"
ROWS: dict[str, Any] = {record["id"]: (number, record) for number, record in read_rows(FIXTURE)}
PORTO = ToolCall("get_weather", {"city": "Porto"})

KEPT: dict[str, tuple[tuple[ToolCall, ...], set[str]]] = {
    "single-turn": ((PORTO,), set()),
    "with-result": ((PORTO,), set()),
    "parallel": ((PORTO, ToolCall("get_weather", {"city": "Faro"})), set()),
    "python-repr": (
        (ToolCall("get_weather", {"city": "Port o' Call", "unit": "celsius"}),),
        {"python_literal_read"},
    ),
    "literal-newlines": ((PORTO,), {"literal_newlines_removed"}),
    "unformatted-placeholder": ((PORTO,), set()),
    "encoded-twice": ((PORTO,), {"arguments_decoded"}),
    "tools-only-in-the-text": ((PORTO,), {"tools_from_system_text"}),
    "json-mode": ((), set()),
    "no-call-needed": ((), set()),
}
"""Calls, and what is noted as changed."""

REFUSED = {
    "name-inside-arguments": "name_inside_arguments",
    "arguments-outside-the-schema": "arguments_break_schema",
    "undeclared-tool": "unknown_tool",
    "call-without-result": "call_without_result",
    "text-after-call": "text_after_call",
    "unclosed-tag": "unmatched_tag",
    "placeholder-as-answer": "bad_call",
}


def test_the_fixture_holds_what_is_tested() -> None:
    assert set(ROWS) == set(KEPT) | set(REFUSED)


@pytest.mark.parametrize("name", KEPT)
def test_a_quirk_that_can_be_read_survives_and_is_noted(name: str) -> None:
    calls, changes = KEPT[name]
    number, record = ROWS[name]
    found = read_row(record, "hermes", number)
    assert isinstance(found, Accepted), found
    assert found.form == "hermes"
    made = [call for message in found.conversation.messages for call in message.calls]
    assert tuple(made) == calls
    assert {change.reason for change in found.changes} == changes
    assert all((c.source, c.row) == ("hermes", number) and c.detail for c in found.changes)
    shown = json.dumps([message.content for message in found.conversation.messages])
    assert "<tools>" not in shown
    assert "tool_call" not in shown
    wanted = () if name == "json-mode" else ("get_weather",)
    assert tuple(tool.name for tool in found.conversation.tools) == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_a_quirk_that_cannot_be_trained_has_a_reason_of_its_own(name: str) -> None:
    number, record = ROWS[name]
    found = read_row(record, "hermes", number)
    assert isinstance(found, Reject), found
    assert (found.reason, found.row) == (REFUSED[name], number)
