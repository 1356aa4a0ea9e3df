"""The shipped templates against hand-written text, and against SmolLM3's own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from smollm3_tokenizer import added_tokens, smollm3_tokenizer
from smollora.data.starter import load_domains
from smollora.formats.hermes import HERMES
from smollora.templates.audit import audit
from smollora.templates.engine import ChatTemplate, load_shipped
from smollora.templates.repair.own_words import set_value
from smollora.types import ToolCall

CHATML = ChatTemplate(load_shipped("chatml_tools"))
SMOLLM3 = ChatTemplate(load_shipped("smollm3"))

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "description": 'Weather\'s <b>"now"</b>',
        "strict": None,
        "name": "weather",
    },
}
BARE = {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather and time in Łódź?"},
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Two calls.",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}},
            {"name": "now", "arguments": '{"zone": "CET"}'},
            {"name": "now"},
        ],
    },
    {"role": "tool", "content": "rain"},
    {"role": "tool", "content": {"time": "14:05", "ok": True}},
    {"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Rain, 14"}, {"text": ":05."}]},
    {"role": "system", "content": "In verse."},
    {"role": "user", "content": "Thanks"},
]

TURNS = """\
<|im_start|>user
Weather and time in Łódź?<|im_end|>
<|im_start|>assistant
<think>
Two calls.
</think>
I look.
<tool_call>
{"name": "weather", "arguments": {"city": "Łódź"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {"zone": "CET"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>tool
<tool_response>
rain
</tool_response>
<tool_response>
{"time": "14:05", "ok": true}
</tool_response>
<tool_response>
ab
</tool_response><|im_end|>
<|im_start|>assistant
Rain, 14:05.<|im_end|>
<|im_start|>system
In verse.<|im_end|>
<|im_start|>user
Thanks<|im_end|>
"""

CHATML_TOOLS = """\
# Tools

You may call one or more functions to assist with the user. Call only a function that fits the \
request; otherwise answer in plain text.

<tools>
{"name": "weather", "description": "Weather's <b>\\"now\\"</b>", "parameters": {"type": "object", \
"properties": {"city": {"type": "string"}}}}
{"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}}
</tools>

For each function call, write:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
"""


def test_chatml_renders_a_whole_conversation() -> None:
    assert CHATML.render(CHAT, [WEATHER, BARE], add_generation_prompt=True) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face\n\n"
        + CHATML_TOOLS
        + TURNS
        + "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "tools", "head"),
    [
        (
            [],
            None,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
            "trained by Hugging Face<|im_end|>\n",
        ),
        ([{"role": "system", "content": "Brief."}], None, "<|im_start|>system\nBrief.<|im_end|>\n"),
        (
            [{"role": "system", "content": "Brief."}],
            [WEATHER, BARE],
            "<|im_start|>system\nBrief.\n\n" + CHATML_TOOLS,
        ),
        (
            [{"role": "system", "content": ""}],
            [WEATHER, BARE],
            "<|im_start|>system\n" + CHATML_TOOLS,
        ),
        ([{"role": "system", "content": ""}], [], "<|im_start|>system\n<|im_end|>\n"),
    ],
    ids=["default", "system", "system and tools", "empty system and tools", "empty system"],
)
def test_chatml_always_has_a_closed_system_turn(messages: Any, tools: Any, head: str) -> None:
    chat = [*messages, {"role": "user", "content": "Hi"}]
    assert CHATML.render(chat, tools) == head + "<|im_start|>user\nHi<|im_end|>\n"


def test_chatml_marks_what_the_model_produces() -> None:
    marked = CHATML.render_marked(CHAT, [WEATHER])
    assert [marked.text[start:end] for start, end in marked.spans] == [
        "<think>\nTwo calls.\n</think>\nI look.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "now", "arguments": {}}\n</tool_call><|im_end|>',
        "Rain, 14:05.<|im_end|>",
    ]


def test_tools_as_a_server_passes_them_render_like_bare_ones() -> None:
    """A server adds keys of its own; the prompt must be the one that was trained."""
    user = [{"role": "user", "content": "Hi"}]
    served = {"type": "function", "function": {**BARE, "strict": False}}
    for template in (CHATML, SMOLLM3):
        assert template.render(user, [served]) == template.render(user, [BARE])


def test_a_tool_without_description_or_parameters_has_empty_ones() -> None:
    text = CHATML.render(
        [{"role": "user", "content": "Hi"}], [{"name": "ping", "parameters": None}]
    )
    assert '\n{"name": "ping", "description": "", "parameters": {}}\n' in text


AS_CALLS = ChatTemplate(set_value(load_shipped("chatml_tools"), "tools_as_calls", True))
DRAW: dict[str, Any] = {
    "name": "draw",
    "description": "Draw things",
    "parameters": {
        "type": "object",
        "description": "One picture",
        "$defs": {"c": {"type": "string"}},
        "properties": {
            "title": {"type": "string", "description": 'The "title"'},
            "size": {"type": "integer", "minimum": 1, "default": None},
            "style": {"enum": ["ink", "oil"], "description": "How"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
            "parts": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"at": {"type": ["number", "null"]}, "items": {"type": "array"}},
                    "required": ["at"],
                    "additionalProperties": False,
                },
            },
            "colour": {"anyOf": [{"$ref": "#/$defs/c"}, {"type": "null"}]},
        },
        "required": ["title", "size", "ghost"],
    },
}
DRAWN = """\
<tools>
Draw things
- arguments: One picture {"$defs": {"c": {"type": "string"}}, \
"required": ["title", "size", "ghost"]}
- title: The "title"
- size: {"minimum": 1, "default": null}
- style: How
- tags: {"minItems": 2}
- tags[]: {"enum": ["a", "b"]}
- parts[]: {"additionalProperties": false}
- colour: {"anyOf": [{"$ref": "#/$defs/c"}, {"type": "null"}]}
{"name": "draw", "arguments": {"title": "string", "size": integer, "style"?: "ink" | "oil", \
"tags"?: [any], "parts"?: [{"at": number | null, "items"?: array}], "colour"?: any}}

Time
{"name": "now", "arguments": {}}

{"name": "ping", "arguments": {}}
</tools>
"""


def test_tools_as_calls_show_the_call_that_is_to_be_made() -> None:
    """Types stand where values will; what they do not say stands above, as words and as JSON."""
    user = [{"role": "user", "content": "Hi"}]
    tools = [DRAW, {"type": "function", "function": {**BARE, "strict": False}}, {"name": "ping"}]
    assert DRAWN in AS_CALLS.render(user, tools)


def test_tools_as_calls_take_schemas_that_are_none() -> None:
    odd = {"properties": [1], "required": True, "enum": 3, "type": "object", "items": 4}
    bad = {"properties": {"s": True, "k": {"enum": []}, "d": {"description": {"a": 1}, "type": 7}}}
    text = AS_CALLS.render(
        [{"role": "user", "content": "Hi"}],
        [{"name": "odd", "parameters": odd}, {"name": "bad", "parameters": bad}],
    )
    assert '- arguments: {"properties": [1], "required": true, "enum": 3, "items": 4}\n' in text
    assert '{"name": "odd", "arguments": {}}\n' in text
    assert '- d: {"description": {"a": 1}}\n' in text
    assert '{"name": "bad", "arguments": {"s"?: any, "k"?: any, "d"?: any}}\n' in text


def test_tools_as_calls_lose_no_word_of_the_starter_tools() -> None:
    """Every name, description, choice and bound of every tool is in the prompt."""
    for domain in load_domains("train"):
        for tool in domain.tools.values():
            text = AS_CALLS.render([{"role": "user", "content": "Hi"}], [tool])
            lost = [word for word in words_of(tool["parameters"]) if word not in text]
            assert (tool["name"], lost) == (tool["name"], [])
            assert tool["description"] in text


def words_of(schema: Any) -> Iterator[str]:
    """Names of arguments, and the values of all keywords but types."""
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if key == "properties":
            yield from (f'"{name}"' for name in value)
            for inner in value.values():
                yield from words_of(inner)
        elif key == "items":
            yield from words_of(value)
        elif key == "enum":
            yield from (json.dumps(each, ensure_ascii=False) for each in value)
        elif key == "description":
            yield value
        elif key not in ("type", "required"):
            yield f'"{key}": {json.dumps(value, ensure_ascii=False)}'


def test_calls_are_written_as_the_format_writes_them() -> None:
    calls = [ToolCall("a", {"x": ["é", None, 1.5]}), ToolCall("b", {})]
    message = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": c.name, "arguments": c.arguments}} for c in calls],
    }
    for template in (CHATML, SMOLLM3):
        text = template.render([{"role": "user", "content": "Hi"}, message])
        assert text.endswith("<|im_start|>assistant\n" + HERMES.show(calls) + "<|im_end|>\n")


# ── SmolLM3 ───────────────────────────────────────────────────────────────────────────────────

METADATA = """\
<|im_start|>system
## Metadata

Knowledge Cutoff Date: June 2025
Today Date: 08 July 2025
Reasoning Mode: {mode}

## Custom Instructions

"""
SMOLLM3_TOOLS = """\
### Tools

You may call one or more functions to assist with the user query.
You are provided with function signatures within <tools></tools> XML tags:

<tools>
{"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>

"""
PYTHON_TOOLS = """\
When you send a message containing Python code between '<code>' and '</code>' tags, it will be \
executed in a stateful Jupyter notebook environment, and you will then be given the output to \
continued reasoning in an agentic loop.

You can use the following tools in your python code like regular functions:
<tools>
def now()
</tools>

The state persists between code executions: so variables that you define in one step are still \
available thereafter.

"""
HI = [{"role": "user", "content": "Hi"}]
HI_TURN = "<|im_start|>user\nHi<|im_end|>\n"


def system(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}]


def test_smollm3_renders_a_whole_conversation() -> None:
    text = SMOLLM3.render(system("Be brief.") + CHAT, [BARE], add_generation_prompt=True)
    assert text == (
        METADATA.format(mode="/think")
        + "Be brief.\n\n"
        + SMOLLM3_TOOLS
        + "<|im_end|>\n"
        + TURNS
        + "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("instructions", "options"),
    [("Be brief. /no_think", {}), ("Be brief.", {"enable_thinking": False})],
)
def test_smollm3_without_thinking_prompts_as_it_trains(
    instructions: str, options: dict[str, Any]
) -> None:
    chat = [
        *system(instructions),
        *HI,
        {"role": "assistant", "content": "\nHello", "thinking": "Hm"},
    ]
    head = METADATA.format(mode="/no_think") + "Be brief.\n\n<|im_end|>\n" + HI_TURN
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n"
    assert SMOLLM3.render(chat[:-1], add_generation_prompt=True, **options) == head + empty
    marked = SMOLLM3.render_marked(chat, **options)
    assert marked.text == head + empty + "Hello<|im_end|>\n"
    ((start, end),) = marked.spans
    assert marked.text[start:end] == "Hello<|im_end|>"


def test_smollm3_thinks_when_the_system_message_says_so() -> None:
    text = SMOLLM3.render(system("Be brief. /think") + HI, enable_thinking=False)
    assert text == METADATA.format(mode="/think") + "Be brief.\n\n<|im_end|>\n" + HI_TURN


def test_smollm3_has_its_stock_instructions() -> None:
    short = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
    assert SMOLLM3.render(HI, enable_thinking=False) == (
        METADATA.format(mode="/no_think") + short + "\n\n<|im_end|>\n" + HI_TURN
    )
    thinking = SMOLLM3.render(HI)
    assert thinking.startswith(
        METADATA.format(mode="/think") + short + " Your role as an assistant"
    )
    assert thinking.endswith("needed to reach the conclusion.\n\n<|im_end|>\n" + HI_TURN)


def test_smollm3_says_the_day_it_is_given() -> None:
    assert "Today Date: 22 November 2026\n" in SMOLLM3.render(HI, date="2026-11-22")
    assert "Today Date: 1 May 2026\n" in SMOLLM3.render(HI, date_string="1 May 2026")


def test_smollm3_override_keeps_the_tools() -> None:
    """The stock template dropped the tools block with /system_override."""
    chat = system("Only this. /system_override") + HI
    assert SMOLLM3.render(chat) == "<|im_start|>system\nOnly this.<|im_end|>\n" + HI_TURN
    assert SMOLLM3.render(chat, [BARE]) == (
        "<|im_start|>system\nOnly this.\n\n" + SMOLLM3_TOOLS + "<|im_end|>\n" + HI_TURN
    )


def test_smollm3_takes_tools_by_their_older_names() -> None:
    head = METADATA.format(mode="/think") + "Be brief.\n\n"
    chat = system("Be brief.") + HI
    shown = head + SMOLLM3_TOOLS + "<|im_end|>\n" + HI_TURN
    assert SMOLLM3.render(chat, xml_tools=[BARE]) == shown
    assert SMOLLM3.render(chat, [BARE], xml_tools=[{"name": "other"}]) == shown
    code = PYTHON_TOOLS + "<|im_end|>\n" + HI_TURN
    assert SMOLLM3.render(chat, python_tools=["def now()"]) == head + "### Tools\n\n" + code
    both = SMOLLM3.render(chat, [BARE], python_tools=["def now()"])
    assert both == head + SMOLLM3_TOOLS + code


# ── with SmolLM3's own tokenizer ──────────────────────────────────────────────────────────────


def test_the_added_tokens_of_smollm3_are_256() -> None:
    names = [token.content for token in added_tokens()]
    assert len(set(names)) == 256
    assert names[2:4] == ["<think>", "</think>"]
    assert names[11:17] == [
        "<|im_start|>",
        "<|im_end|>",
        "<tool_response>",
        "</tool_response>",
        "<tool_call>",
        "</tool_call>",
    ]
    assert names[-1] == "<|reserved_special_token_247|>"


@pytest.mark.network
def test_tools_as_calls_pass_the_whole_audit() -> None:
    checks = audit(AS_CALLS.source, smollm3_tokenizer())
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    (said,) = [check.detail for check in checks if check.name == "tools_as_json"]
    assert "as the call that is to be made" in said


@pytest.mark.network
@pytest.mark.parametrize("name", ["chatml_tools", "smollm3"])
def test_a_shipped_template_passes_the_whole_audit(name: str) -> None:
    checks = audit(load_shipped(name), smollm3_tokenizer())
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    injection = next(check for check in checks if check.name == "delimiter_injection")
    assert "becomes token 128015" in injection.detail


@pytest.mark.network
def test_calls_and_results_are_the_real_tokens() -> None:
    tokenizer = smollm3_tokenizer()
    for template in (CHATML, SMOLLM3):
        text = template.render(CHAT)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids.count(128015) == ids.count(128016) == 3
        assert ids.count(128013) == ids.count(128014) == 3
        assert tokenizer.decode(ids) == text
    said = CHATML.render_marked(CHAT).text.partition("I look.\n")[2]
    # <tool_call>, newline, {", name
    assert tokenizer.encode(said, add_special_tokens=False)[:4] == [128015, 198, 5018, 609]


@pytest.mark.network
def test_calls_are_read_back_from_ids() -> None:
    tokenizer = smollm3_tokenizer()
    marked = SMOLLM3.render_marked(CHAT, [BARE])
    start, end = marked.spans[0]
    ids = tokenizer.encode(marked.text[start:end], add_special_tokens=False)
    read = HERMES.parse(ids, tokenizer)
    assert [attempt.call for attempt in read] == [
        ToolCall("weather", {"city": "Łódź"}),
        ToolCall("now", {"zone": "CET"}),
        ToolCall("now", {}),
    ]
    assert ids[-1] == tokenizer.eos_token_id == 128012
