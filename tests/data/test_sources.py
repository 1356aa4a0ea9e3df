"""Rows as data sets really hold them: read whole, or refused with a reason that is counted.

The quirks are those of Hermes-Function-Calling-V1 as its card and its readers describe them; the
rows are made up.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from smollora.data.sources import Undecodable, read_conversation, read_rows
from smollora.errors import DataError
from smollora.types import Conversation, Message, Reject, ToolCall, ToolSpec

FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find things",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string"}, "many": {"type": "integer"}},
            "required": ["what"],
        },
    },
}
GOOD_CALL = '<tool_call>\n{"arguments": {"what": "keys"}, "name": "find"}\n</tool_call>'

PREAMBLE = (
    "You are a function calling AI model. You are provided with function signatures within <tools>"
    " </tools> XML tags. You may call one or more functions to assist with the user query. Don't"
    " make assumptions about what values to plug into functions.\n<tools>\n"
    f"{json.dumps([FIND])}\n</tools>\n"
    "For each function call return a json object with function name and arguments within"
    " <tool_call> </tool_call> tags with the following schema:\n<tool_call>\n"
    "{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>\n"
)
"""The system text of glaive_func_calling."""
PYDANTIC_PREAMBLE = (
    "You are a function calling AI model. You are provided with function signatures within <tools>"
    " </tools> XML tags. You may call one or more functions to assist with the user query. Don't"
    " make assumptions about what values to plug into functions.\n<tools>\n"
    f"{json.dumps([FIND])}\n</tools>\n"
    "For each function call return a json object with function name and arguments within"
    " <tool_call> </tool_call> tags with the following schema:\n<tool_call>\n"
    "{tool_call}\n</tool_call>\n"
)
"""As in func_calling_singleturn: a placeholder that nobody filled in."""


def hermes(*turns: tuple[str, Any], tools: Any = (FIND,), **more: Any) -> dict[str, Any]:
    """A row in Hermes-V1 form."""
    shown = json.dumps(list(tools)) if isinstance(tools, tuple) else tools
    said = [{"from": role, "value": value} for role, value in turns]
    return {"id": "row-1", "conversations": said, "tools": shown, **more}


def answered(answer: Any, **more: Any) -> dict[str, Any]:
    return hermes(("human", "Find my keys"), ("gpt", answer), **more)


def chat(*turns: dict[str, Any], tools: Any = (FIND,)) -> dict[str, Any]:
    """A row in messages form."""
    return {"messages": list(turns), "tools": list(tools) if isinstance(tools, tuple) else tools}


def read(record: Any) -> Conversation:
    result = read_conversation(record, "made-up", 7)
    assert isinstance(result, Conversation), result
    return result


def refused(record: Any) -> Reject:
    result = read_conversation(record, "made-up", 7)
    assert isinstance(result, Reject), result
    assert (result.source, result.row) == ("made-up", 7)
    assert result.detail
    return result


# ── Hermes-V1, as it should be ────────────────────────────────────────────────────────────────


def test_a_whole_hermes_row_is_read() -> None:
    record = hermes(
        ("system", PREAMBLE),
        ("human", "Find my keys and two hats"),
        (
            "gpt",
            "I look.\n"
            '<tool_call>\n{"arguments": {"what": "keys"}, "name": "find"}\n</tool_call>\n'
            '<tool_call>\n{"name": "find", "arguments": {"what": "hat", "many": 2}}\n</tool_call>',
        ),
        (
            "tool",
            '<tool_response>\n{"name": "find", "content": {"at": "the door"}}\n</tool_response>\n'
            '<tool_response>\n{"name": "find", "content": "nowhere"}\n</tool_response>',
        ),
        ("gpt", "By the door; no hats."),
    )
    assert read(record) == Conversation(
        "row-1",
        "made-up",
        (
            Message("user", "Find my keys and two hats"),
            Message(
                "assistant",
                "I look.",
                (
                    ToolCall("find", {"what": "keys"}),
                    ToolCall("find", {"what": "hat", "many": 2}),
                ),
            ),
            Message("tool", '{"at": "the door"}', name="find"),
            Message("tool", "nowhere", name="find"),
            Message("assistant", "By the door; no hats."),
        ),
        (ToolSpec("find", "Find things", FIND["function"]["parameters"]),),
    )


@pytest.mark.parametrize("preamble", [PREAMBLE, PYDANTIC_PREAMBLE], ids=["schema", "placeholder"])
@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("Speak like a pirate.\n\n", ""), ("", "Be brief.")]
)
def test_the_tools_text_leaves_the_system_turn_and_the_rest_stays(
    preamble: str, before: str, after: str
) -> None:
    """The template writes the tools; twice would teach a prompt that no server sends."""
    system = before + preamble + after
    conversation = read(hermes(("system", system), ("human", "Find my keys"), ("gpt", GOOD_CALL)))
    expected = (before + after).strip()
    systems = [m.content for m in conversation.messages if m.role == "system"]
    assert systems == ([expected] if expected else [])


def test_a_row_without_an_id_is_named_by_its_source_and_number() -> None:
    record = answered(GOOD_CALL)
    del record["id"]
    assert read(record).id == "made-up-7"


# ── Hermes-V1, quirks that can be read ────────────────────────────────────────────────────────


def test_pythons_repr_with_arguments_first_is_read_as_it_was_meant() -> None:
    """Quotes are never replaced: an apostrophe inside a value would break."""
    said = (
        "<tool_call>\n{'arguments': {'what': \"Ann's \\\"best\\\" hat\", 'many': 2},"
        " 'name': 'find'}\n</tool_call>"
    )
    (message,) = read(answered(said)).messages[1:]
    assert message.calls == (ToolCall("find", {"what": 'Ann\'s "best" hat', "many": 2}),)


@pytest.mark.parametrize("tools", ["null", None, "[]"])
def test_null_tools_are_no_tools(tools: Any) -> None:
    conversation = read(answered("They are by the door.", tools=tools))
    assert conversation.tools == ()
    assert conversation.kind == "no_tools"


def test_a_row_without_the_key_tools_has_none() -> None:
    record = answered("They are by the door.")
    del record["tools"]
    assert read(record).tools == ()


def test_arguments_that_were_encoded_twice_are_decoded() -> None:
    said = '<tool_call>{"name": "find", "arguments": "{\\"what\\": \\"keys\\"}"}</tool_call>'
    assert read(answered(said)).messages[1].calls == (ToolCall("find", {"what": "keys"}),)


def test_a_result_that_is_no_json_is_kept_as_it_stands() -> None:
    record = hermes(
        ("human", "Find my keys"),
        ("gpt", GOOD_CALL),
        ("tool", "<tool_response>\n{'name': 'find', 'content': nowhere}\n</tool_response>"),
        ("gpt", "Nowhere."),
    )
    assert read(record).messages[2] == Message("tool", "{'name': 'find', 'content': nowhere}")


# ── Hermes-V1, quirks that must not be trained ────────────────────────────────────────────────

QUIRKS: dict[str, tuple[dict[str, Any], str]] = {
    "an opening tag alone": (answered('<tool_call>\n{"name": "find"}'), "unmatched_tag"),
    "a closing tag alone": (answered("I looked.</tool_call>"), "unmatched_tag"),
    "a good call and an opening tag": (answered(GOOD_CALL + "<tool_call>"), "unmatched_tag"),
    "text after the call": (answered(GOOD_CALL + "\nI called it."), "text_after_call"),
    "an undeclared tool": (answered(GOOD_CALL.replace("find", "search")), "unknown_tool"),
    "a call without any tools": (answered(GOOD_CALL, tools="null"), "unknown_tool"),
    "the name inside the arguments": (
        answered('<tool_call>{"arguments": {"name": "find", "what": "keys"}}</tool_call>'),
        "name_inside_arguments",
    ),
    "a missing required argument": (
        answered('<tool_call>{"name": "find", "arguments": {"many": 1}}</tool_call>'),
        "arguments_break_schema",
    ),
    "an argument of the wrong type": (
        answered('<tool_call>{"name": "find", "arguments": {"what": 5}}</tool_call>'),
        "arguments_break_schema",
    ),
    "an undeclared argument": (
        answered('<tool_call>{"name": "find", "arguments": {"what": "a", "x": 1}}</tool_call>'),
        "arguments_break_schema",
    ),
    "no arguments at all": (answered('<tool_call>{"name": "find"}</tool_call>'), "bad_arguments"),
    "arguments encoded three times": (
        answered(
            '<tool_call>{"name": "find", "arguments": "\\"{\\\\\\"what\\\\\\": 1}\\""}</tool_call>'
        ),
        "bad_arguments",
    ),
    "the placeholder as an answer": (
        answered("<tool_call>\n{tool_call}\n</tool_call>"),
        "bad_call",
    ),
    "a list of calls": (
        answered('<tool_call>[{"name": "find", "arguments": {}}]</tool_call>'),
        "bad_call",
    ),
    "code that a lenient reader would run": (
        answered("<tool_call>__import__('os').system('true')</tool_call>"),
        "bad_call",
    ),
    "a call nested past all limits": (
        answered('<tool_call>{"name": "find", "arguments": ' + "[" * 100_000 + "</tool_call>"),
        "bad_call",
    ),
    "tools that are no JSON": (answered("Hm.", tools="[{'name': 'find'}]"), "bad_tools"),
    "tools nested past all limits": (answered("Hm.", tools="[" * 100_000), "bad_tools"),
    "tools that are one object": (answered("Hm.", tools=json.dumps(FIND)), "bad_tools"),
    "a tool without a name": (answered("Hm.", tools='[{"description": "x"}]'), "bad_tools"),
    "tools that are words": (answered("Hm.", tools='["find"]'), "bad_tools"),
    "parameters that are a list": (
        answered("Hm.", tools='[{"name": "find", "parameters": ["what"]}]'),
        "bad_tools",
    ),
    "an unknown speaker": (hermes(("moderator", "Hm.")), "unknown_role"),
    "a value that is no text": (answered(["Hm."]), "bad_turn"),
    "a turn that is no object": ({"conversations": ["Hm."]}, "bad_turn"),
    "nobody answers": (hermes(("human", "Hello?")), "no_answer"),
    "an empty answer": (answered("  \n"), "empty_turn"),
    "the model speaks first": (hermes(("gpt", "Hello!"), ("human", "Hi")), "role_order"),
    "two answers in a row": (
        hermes(("human", "Hello?"), ("gpt", "Yes?"), ("gpt", "Hello!")),
        "role_order",
    ),
    "a call that nobody answers": (
        hermes(("human", "Find"), ("gpt", GOOD_CALL), ("human", "And?"), ("gpt", "Hm.")),
        "call_without_result",
    ),
    "a result that nobody asked for": (
        hermes(("human", "Find"), ("tool", "<tool_response>1</tool_response>"), ("gpt", "1")),
        "result_without_call",
    ),
    "a record of another form": ({"prompt": "Hello", "completion": "Hi"}, "unknown_form"),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_row_that_must_not_be_trained_is_refused_with_its_reason(quirk: str) -> None:
    record, reason = QUIRKS[quirk]
    assert refused(record).reason == reason


@pytest.mark.parametrize("record", [None, 5, "text", [], True])
def test_a_row_that_is_no_object_is_refused(record: Any) -> None:
    assert refused(record).reason == "not_an_object"


def test_a_refusal_says_what_was_called_and_what_was_offered() -> None:
    detail = refused(answered(GOOD_CALL.replace("find", "search"))).detail
    assert '"search"' in detail
    assert "offered: find" in detail


# ── the messages form ─────────────────────────────────────────────────────────────────────────


def test_a_row_of_messages_is_read_with_its_ids_reasoning_and_list_content() -> None:
    record = chat(
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"text": "brief."}]},
        {"role": "user", "content": "Find my keys"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Where?",
            "tool_calls": [
                {"id": "c1", "function": {"name": "find", "arguments": '{"what": "keys"}'}},
                {"id": "c2", "name": "find", "arguments": {"what": "hat"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "find", "content": "door"},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
        {"role": "assistant", "content": "By the door."},
    )
    assert read(record).messages == (
        Message("system", "Be brief."),
        Message("user", "Find my keys"),
        Message(
            "assistant",
            "",
            (ToolCall("find", {"what": "keys"}, "c1"), ToolCall("find", {"what": "hat"}, "c2")),
            reasoning="Where?",
        ),
        Message("tool", "door", call_id="c1", name="find"),
        Message("tool", "", call_id="c2"),
        Message("assistant", "By the door."),
    )


ASKED = {"role": "user", "content": "Find"}

ODD_MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "a picture": (
        chat({"role": "user", "content": [{"type": "image", "url": "x"}]}),
        "bad_content",
    ),
    "content that is a number": (chat({"role": "user", "content": 5}), "bad_content"),
    "a call without a name": (
        chat(ASKED, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}),
        "call_without_name",
    ),
    "a call that is text": (
        chat(ASKED, {"role": "assistant", "tool_calls": ["find"]}),
        "call_without_name",
    ),
    "arguments that are a list": (
        chat(ASKED, {"role": "assistant", "tool_calls": [{"name": "find", "arguments": [1]}]}),
        "bad_arguments",
    ),
    "an unknown role": (chat({"role": "critic", "content": "Hm."}), "unknown_role"),
    "a turn that is text": ({"messages": ["Hm."]}, "bad_turn"),
}


@pytest.mark.parametrize("oddity", ODD_MESSAGES)
def test_an_odd_row_of_messages_is_refused_with_its_reason(oddity: str) -> None:
    record, reason = ODD_MESSAGES[oddity]
    assert refused(record).reason == reason


@pytest.mark.parametrize("calls", [5, True, 1.5])
def test_tool_calls_that_are_no_list_are_refused(calls: Any) -> None:
    refused(chat(ASKED, {"role": "assistant", "content": "Hm.", "tool_calls": calls}))


# ── schemas ───────────────────────────────────────────────────────────────────────────────────


def with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return answered(GOOD_CALL, tools=({"name": "find", "parameters": schema},))


def test_a_tool_without_parameters_takes_no_arguments() -> None:
    record = answered(GOOD_CALL, tools=({"name": "find"},))
    assert "undeclared arguments what" in refused(record).detail
    bare = GOOD_CALL.replace('{"what": "keys"}', "{}")
    assert read(answered(bare, tools=({"name": "find"},))).has_calls


def test_references_inside_a_schema_are_followed_and_open_schemas_stay_open() -> None:
    inside = {"properties": {"what": {"$ref": "#/$defs/w"}}, "$defs": {"w": {"type": "string"}}}
    assert read(with_schema(inside)).has_calls
    inside["$defs"]["w"]["type"] = "integer"
    assert "keys" in refused(with_schema(inside)).detail
    assert read(with_schema({"properties": {}, "additionalProperties": True})).has_calls
    assert read(with_schema({"type": "object"})).has_calls


def test_a_reference_to_another_document_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a row of data made us open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    remote = {"properties": {"what": {"$ref": "http://127.0.0.1:9/s.json"}}}
    assert refused(with_schema(remote)).reason == "remote_reference"
    hidden = {"properties": {"what": {"if": {"$ref": "http://127.0.0.1:9/s.json"}}}}
    assert refused(with_schema(hidden)).reason == "arguments_break_schema"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"properties": ["what"]},
        {"required": 5},
        {"properties": {"what": 5}},
        {"properties": {"what": {"enum": "keys"}}},
        {"properties": {"what": {"anyOf": []}}},
        {"properties": {"what": {"type": {"of": "string"}}}},
    ],
)
def test_a_schema_that_is_none_refuses_the_row(schema: dict[str, Any]) -> None:
    assert refused(with_schema(schema)).reason == "bad_schema"


# ── values that neither JSON nor UTF-8 can hold ───────────────────────────────────────────────

OPEN_TOOL = {"name": "find", "parameters": {"type": "object", "properties": {"what": {}}}}

NO_JSON = {
    "a set": "{'name': 'find', 'arguments': {'what': {1, 2}}}",
    "bytes": "{'name': 'find', 'arguments': {'what': b'keys'}}",
    "a complex number": "{'name': 'find', 'arguments': {'what': 1+2j}}",
    "an ellipsis": "{'name': 'find', 'arguments': {'what': ...}}",
    "a key that is a number": "{'name': 'find', 'arguments': {1: 2}}",
    "not a number": '{"name": "find", "arguments": {"what": NaN}}',
    "infinity": '{"name": "find", "arguments": {"what": 1e999}}',
    "a lone surrogate": '{"name": "find", "arguments": {"what": "\\ud83d"}}',
    "nested 500 deep": '{"name": "find", "arguments": {"what": ' + "[" * 500 + "]" * 500 + "}}",
}


@pytest.mark.parametrize("value", NO_JSON)
def test_arguments_that_json_cannot_hold_are_refused(value: str) -> None:
    refused(answered(f"<tool_call>{NO_JSON[value]}</tool_call>", tools=(OPEN_TOOL,)))


def test_a_python_tuple_is_a_list_in_the_call_that_is_trained() -> None:
    said = "<tool_call>{'name': 'find', 'arguments': {'what': (1, 2)}}</tool_call>"
    (call,) = read(answered(said, tools=(OPEN_TOOL,))).messages[1].calls
    assert json.loads(json.dumps(call.arguments)) == {"what": [1, 2]}


@pytest.mark.parametrize(
    "record",
    [
        hermes(("human", "Find \ud83d"), ("gpt", "Hm.")),
        hermes(("human", "Find"), ("gpt", "Hm \udc00.")),
        chat({"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "Hm."}),
        hermes(("human", "Find"), ("gpt", "Hm."), tools=({"name": "f", "description": "\ud83d"},)),
    ],
    ids=["asked", "answered", "messages", "tool"],
)
def test_half_an_emoji_is_refused(record: dict[str, Any]) -> None:
    """A surrogate cut from its pair is valid in JSON's escapes and cannot be encoded."""
    refused(json.loads(json.dumps(record)))


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def test_broken_lines_are_rows_with_a_reason_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(answered("Łódź")).encode()
    path.write_bytes(
        b"\xef\xbb\xbf"  # a byte order mark, as Windows writes it
        + good
        + b"\n\n   \n"
        + b'{"conversations": [\n'
        + b'{"conversations": "\xff\xfe"}\n'
        + b"[" * 100_000
        + b"\n"
        + good
        + b"\r\n"
        + good
    )
    found = dict(read_rows(path))
    assert list(found) == [1, 4, 5, 6, 7, 8]
    assert [isinstance(row, Undecodable) for row in found.values()] == [
        *(False, True, True, True, False, False)
    ]
    assert read(found[1]) == read(found[7]) == read(found[8])
    for number in (4, 5, 6):
        assert f"line {number}" in found[number].detail
    reasons = [found[number].reason for number in (4, 5, 6)]
    assert reasons == ["bad_json", "bad_unicode", "too_deep"]


def test_a_json_file_is_one_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert list(read_rows(path)) == [(1, {"a": 1}), (2, {"a": 2})]
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="no list of rows"):
        list(read_rows(path))
    path.write_text('[{"a": 1},')
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_rows(path))


def test_a_json_file_nested_past_all_limits_is_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"rows\.json"):
        list(read_rows(path))


def test_a_missing_and_an_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        list(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="is empty"):
        list(read_rows(tmp_path / "empty.jsonl"))
