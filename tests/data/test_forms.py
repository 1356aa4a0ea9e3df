"""One record of each published form, read to the conversation that a person reads in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smollora.data.sources import FORMS, Accepted, FromArrow, detect_form, read_row
from smollora.types import Message, Reject, ToolCall

FIND: dict[str, Any] = {
    "name": "find",
    "description": "Find things",
    "parameters": {
        "type": "object",
        "properties": {"what": {"type": "string"}, "many": {"type": "integer"}},
        "required": ["what"],
    },
}
CALL = {"name": "find", "arguments": {"what": "keys"}}
ASKED, CALLED = (
    Message("user", "Find my keys"),
    Message("assistant", "", (ToolCall("find", {"what": "keys"}),)),
)
TOLD, ANSWERED = Message("tool", '{"at": "door"}'), Message("assistant", "By the door.")
WHOLE = (ASKED, CALLED, TOLD, ANSWERED)

RECORDS: dict[str, dict[str, Any]] = {
    "hermes": {
        "conversations": [
            {"from": "human", "value": "Find my keys"},
            {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
            {"from": "tool", "value": '<tool_response>\n{"at": "door"}\n</tool_response>'},
            {"from": "gpt", "value": "By the door."},
        ],
        "tools": json.dumps([FIND]),
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Find my keys"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": '{"at": "door"}'},
            {"from": "gpt", "value": "By the door."},
        ],
        "tools": json.dumps([FIND]),
    },
    "openai": {
        "messages": [
            {"role": "user", "content": "Find my keys"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {**CALL, "arguments": '{"what": "keys"}'}}
                ],
            },
            {"role": "tool", "content": '{"at": "door"}'},
            {"role": "assistant", "content": "By the door."},
        ],
        "tools": [{"type": "function", "function": FIND}],
    },
    "swift": {
        "messages": [
            {"role": "user", "content": "Find my keys"},
            {"role": "tool_call", "content": json.dumps(CALL)},
            {"role": "tool_response", "content": '{"at": "door"}'},
            {"role": "assistant", "content": "By the door."},
        ],
        "tools": json.dumps([{"type": "function", "function": FIND}]),
    },
    "glaive": {
        "system": "SYSTEM: You are a helpful assistant with access to the following functions. "
        f"Use them if required -\n{json.dumps(FIND, indent=4)}\n",
        "chat": "USER: Find my keys\n\n\nASSISTANT: <functioncall> "
        '{"name": "find", "arguments": \'{"what": "keys"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"at": "door"}\n\n\nASSISTANT: By the door. <|endoftext|>\n\n\n',
    },
}


@pytest.mark.parametrize("form", RECORDS)
def test_a_conversation_with_a_call_is_the_same_in_every_form(form: str) -> None:
    for record in (RECORDS[form], FromArrow(RECORDS[form])):
        found = read_row(record, "mine", 3)
        assert isinstance(found, Accepted), found
        assert found.form == form
        assert found.conversation.messages == WHOLE
        (tool,) = found.conversation.tools
        assert (tool.name, tool.description, dict(tool.parameters)) == tuple(FIND.values())
        assert found.changes == ()


def test_xlam_has_a_question_its_tools_and_the_calls() -> None:
    flat = {
        "name": "find",
        "description": "Find things",
        "parameters": {
            "what": {"type": "str", "description": "What?"},
            "many": {"type": "int, optional", "description": "How many?"},
            "among": {"type": "List[str]", "description": "Where?", "default": ""},
        },
    }
    record = {
        "id": 7,
        "query": "Find my keys",
        "answers": json.dumps([CALL, CALL]),
        "tools": json.dumps([flat]),
    }
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted), found
    assert found.form == "xlam"
    assert found.conversation.messages == (
        ASKED,
        Message("assistant", "", (*CALLED.calls, *CALLED.calls)),
    )
    assert found.conversation.tools[0].parameters == {
        "type": "object",
        "properties": {
            "what": {"type": "string", "description": "What?"},
            "many": {"type": "integer", "description": "How many?"},
            "among": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Where?",
                "default": "",
            },
        },
        "required": ["what"],
    }
    empty = read_row({**record, "answers": "[]"}, "mine", 1)
    assert isinstance(empty, Reject) and empty.reason == "no_answer"


def test_alpaca_has_an_instruction_and_perhaps_an_input() -> None:
    record = {
        "instruction": "Translate.",
        "input": "Good day",
        "output": "Bom dia",
        "system": "Hi.",
    }
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted) and found.form == "alpaca"
    assert found.conversation.messages == (
        Message("system", "Hi."),
        Message("user", "Translate.\n\nGood day"),
        Message("assistant", "Bom dia"),
    )
    bare = read_row({"instruction": "Greet.", "input": "", "output": "Olá"}, "mine", 1)
    assert isinstance(bare, Accepted)
    assert bare.conversation.messages == (Message("user", "Greet."), Message("assistant", "Olá"))


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_plain_messages_need_no_tools(key: str) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    found = read_row({key: said}, "mine", 1)
    assert isinstance(found, Accepted) and found.form == "messages"
    assert found.conversation.messages == (Message("user", "Hi"), Message("assistant", "Hello"))


def test_swift_has_a_query_and_a_response_as_well() -> None:
    record = {"query": "And now?", "response": "Now.", "history": [["Hi", "Hello"]], "system": "S"}
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted) and found.form == "swift"
    roles = [message.role for message in found.conversation.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_parts_that_hold_their_text_under_value_are_read() -> None:
    """As published: reasoning, text and calls are parts, results a list of named results."""
    result = [{"tool_call_id": "c1", "name": "find", "content": {"at": "door"}}]
    record = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Find my keys"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "Where?"},
                    {"type": "tool_call", "value": json.dumps(CALL)},
                ],
            },
            {"role": "tool", "content": [{"type": "text", "value": json.dumps(result)}]},
            {"role": "assistant", "content": [{"type": "text", "value": "By the door."}]},
        ],
        "tools": json.dumps([FIND]),
    }
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted), found
    assert found.conversation.messages == (
        ASKED,
        Message("assistant", "", CALLED.calls, reasoning="Where?"),
        Message("tool", '{"at": "door"}', call_id="c1", name="find"),
        ANSWERED,
    )


def test_calls_in_the_text_of_messages_are_calls() -> None:
    record = json.loads(json.dumps(RECORDS["openai"]))
    record["messages"][1] = {
        "role": "assistant",
        "content": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
    }
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted)
    assert found.conversation.messages == WHOLE


def test_call_turns_one_after_the_other_are_one_turn() -> None:
    record = json.loads(json.dumps(RECORDS["sharegpt"]))
    turns = record["conversations"]
    turns[1:3] = [
        {"from": "gpt", "value": "I look."},
        *([turns[1]] * 2),
        *([turns[2]] * 2),
    ]
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted), found
    assert found.conversation.messages[1] == Message("assistant", "I look.", CALLED.calls * 2)


def test_arguments_encoded_twice_are_decoded_and_noted() -> None:
    record = json.loads(json.dumps(RECORDS["openai"]))
    record["messages"][1]["tool_calls"][0]["function"]["arguments"] = json.dumps(
        json.dumps({"what": "keys"})
    )
    found = read_row(record, "mine", 4)
    assert isinstance(found, Accepted)
    assert found.conversation.messages == WHOLE
    assert [(c.row, c.reason, c.detail) for c in found.changes] == [
        (4, "arguments_decoded", "find")
    ]


def test_glaives_single_quotes_keep_apostrophes_and_escapes() -> None:
    record = dict(RECORDS["glaive"])
    record["chat"] = (
        'USER: Find\n\n\nASSISTANT: <functioncall> {"name": "find", "arguments": '
        '\'{"what": "Ann\\\'s\\nhat"}\'} <|endoftext|>'
    )
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted), found
    assert found.conversation.messages[1].calls[0].arguments == {"what": "Ann's\nhat"}


# ── which form ────────────────────────────────────────────────────────────────────────────────


def test_a_form_that_is_given_refuses_rows_of_another() -> None:
    for form in FORMS:
        for other, record in RECORDS.items():
            found = read_row(record, "mine", 1, form=form)
            if FORMS[form].matches(record):
                continue
            assert isinstance(found, Reject) and found.reason == "other_form", (form, other)
    assert isinstance(read_row(RECORDS["openai"], "mine", 1, form="openai"), Accepted)


def test_rows_of_several_forms_in_one_file_are_each_read_as_what_they_are() -> None:
    assert [detect_form(record) for record in RECORDS.values()] == list(RECORDS)
    assert detect_form({"prompt": "Hi", "completion": "Hello"}) is None


# ── Arrow ─────────────────────────────────────────────────────────────────────────────────────


def test_nulls_that_arrow_put_into_a_struct_are_not_invented() -> None:
    """The parameters of all tools of a column stand in every call and every schema, null."""
    padded = json.loads(json.dumps(RECORDS["openai"]))
    padded["messages"][1]["tool_calls"][0]["function"]["arguments"] = {
        "what": "keys",
        "many": None,
        "city": None,
    }
    padded["tools"][0]["function"]["parameters"]["properties"] = {
        "what": {"type": "string", "enum": None, "default": None},
        "many": {"type": "integer", "enum": None, "default": None},
        "city": None,
    }
    found = read_row(FromArrow(padded), "mine", 1)
    assert isinstance(found, Accepted), found
    assert found.conversation.messages == WHOLE
    assert found.conversation.tools[0].parameters == FIND["parameters"]
    assert {change.reason for change in found.changes} == {
        "null_arguments_dropped",
        "null_schema_keys_dropped",
    }


def test_a_null_that_the_schema_asks_for_stays() -> None:
    record = json.loads(json.dumps(RECORDS["openai"]))
    function = record["tools"][0]["function"]
    function["parameters"]["properties"]["many"] = {"type": ["integer", "null"], "default": None}
    call = record["messages"][1]["tool_calls"][0]["function"]
    call["arguments"] = {"what": "keys", "many": None}
    found = read_row(record, "mine", 1)
    assert isinstance(found, Accepted)
    assert found.conversation.messages[1].calls[0].arguments == {"what": "keys", "many": None}
    assert found.conversation.tools[0].parameters["properties"]["many"]["default"] is None
    assert found.changes == ()


# ── roles and results ─────────────────────────────────────────────────────────────────────────


def test_every_call_has_its_result_before_anyone_speaks() -> None:
    def said(*results: dict[str, Any]) -> str:
        record = json.loads(json.dumps(RECORDS["openai"]))
        calls = record["messages"][1]["tool_calls"]
        record["messages"][1]["tool_calls"] = [{**calls[0], "id": "a"}, {**calls[0], "id": "b"}]
        record["messages"][2:3] = [{"role": "tool", "content": "1", **item} for item in results]
        found = read_row(record, "mine", 1)
        return found.reason if isinstance(found, Reject) else "kept"

    a, b, c = ({"tool_call_id": name} for name in "abc")
    assert said(a, b) == said({}, {}) == "kept"
    assert said(a) == "call_without_result"
    assert said() == "role_order"
    assert said(a, b, b) == said(a, c) == "result_without_call"


def test_a_system_turn_in_the_middle_is_out_of_order() -> None:
    said = [*RECORDS["openai"]["messages"], {"role": "system", "content": "Be brief."}]
    found = read_row({**RECORDS["openai"], "messages": said}, "mine", 1)
    assert isinstance(found, Reject) and found.reason == "role_order"
