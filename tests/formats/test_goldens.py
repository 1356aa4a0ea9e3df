"""Each format as its family publishes it, copied by hand from cards, templates and vLLM's docs."""

from __future__ import annotations

import pytest

from format_tokenizer import format_tokenizer, ids
from smollora.formats import get_format
from smollora.types import ToolCall, ToolSpec

WEATHER = ToolCall("get_weather", {"city": "Oslo", "days": 3})
NOW = ToolCall("now", {})

WRITTEN: dict[str, str] = {
    "hermes": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n'
        "</tool_call>\n"
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ),
    "granite": (
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]'
    ),
    "granite_31": (
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]'
    ),
    "phi4_mini": (
        'functools[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]'
    ),
    "llama3_json": (
        '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 3}}; '
        '{"name": "now", "parameters": {}}'
    ),
    "mistral": (
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},'
        ' {"name": "now", "arguments": {}}]'
    ),
    "mistral_v11": (
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo", "days": 3}[TOOL_CALLS]now[ARGS]{}'
    ),
    "pythonic": "[get_weather(city='Oslo', days=3), now()]",
    "lfm2": "<|tool_call_start|>[get_weather(city='Oslo', days=3), now()]<|tool_call_end|>",
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    "gemma4": (
        '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>"
    ),
    "functiongemma": (
        "<start_function_call>call:get_weather{city:<escape>Oslo<escape>,days:3}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>"
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n"
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Oslo", "days": 3}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_two_calls_are_written_as_the_family_writes_them(name: str) -> None:
    assert get_format(name).show([WEATHER, NOW]) == WRITTEN[name]


PUBLISHED: list[tuple[str, str, list[tuple[str, dict[str, object]]]]] = [
    (  # vLLM, tests/tool_parsers and the parser's docstring
        "granite",
        '<|tool_call|> [{"name": "get_weather", "arguments": {"city": "SF"}}]',
        [("get_weather", {"city": "SF"})],
    ),
    (
        "granite_31",
        '<tool_call> [{"name": "get_weather", "arguments": {"city": "SF"}}]',
        [("get_weather", {"city": "SF"})],
    ),
    (  # Phi-4-mini-instruct's model card: tool-enabled function-calling format
        "phi4_mini",
        'functools[{"name": "get_weather_updates", "arguments": {"city": "Milan"}}]',
        [("get_weather_updates", {"city": "Milan"})],
    ),
    (  # Meta, Llama 3.1 prompt formats: user-defined custom tool calling
        "llama3_json",
        '{"name": "trending_songs", "parameters": {"country": "US", "n": "10"}}',
        [("trending_songs", {"country": "US", "n": "10"})],
    ),
    (  # Meta, Llama 3.1 prompt formats: zero-shot with built-in tools enabled
        "llama3_json",
        '<|python_tag|>{"name": "trending_songs", "parameters": {"n": 10}}',
        [("trending_songs", {"n": 10})],
    ),
    (  # vLLM's mistral parser: pre-v11
        "mistral",
        '[TOOL_CALLS][{"name": "add", "arguments":{"a": 3.5, "b": 4}}]',
        [("add", {"a": 3.5, "b": 4})],
    ),
    (  # Mistral-7B-Instruct-v0.3's chat template, with the id it asks for
        "mistral",
        '[TOOL_CALLS] [{"name": "now", "arguments": {"zone": "CET"}, "id": "9Ae3bDc2F"}]',
        [("now", {"zone": "CET"})],
    ),
    (  # vLLM, tests of the mistral parser: two calls of v11 and later
        "mistral_v11",
        '[TOOL_CALLS]add[ARGS]{"a": 3.5, "b": 4}[TOOL_CALLS]multiply[ARGS]{"a": 3, "b": 6}',
        [("add", {"a": 3.5, "b": 4}), ("multiply", {"a": 3, "b": 6})],
    ),
    (  # vLLM, docs/features/tool_calling: models with pythonic tool calls
        "pythonic",
        "[get_weather(city='San Francisco', metric='celsius'),"
        " get_weather(city='Seattle', metric='celsius')]",
        [
            ("get_weather", {"city": "San Francisco", "metric": "celsius"}),
            ("get_weather", {"city": "Seattle", "metric": "celsius"}),
        ],
    ),
    (  # LFM2's model card
        "lfm2",
        '<|tool_call_start|>[get_candidate_status(candidate_id="12345")]<|tool_call_end|>'
        "Checking the current status of candidate ID 12345.",
        [("get_candidate_status", {"candidate_id": "12345"})],
    ),
    (  # LFM2.5's template writes a mapping as JSON
        "lfm2",
        '<|tool_call_start|>[save(config={"on": true, "x": null})]<|tool_call_end|>',
        [("save", {"config": {"on": True, "x": None}})],
    ),
    (  # vLLM's qwen3 parser: docstring
        "qwen3_coder",
        "<tool_call>\n<function=func_name>\n<parameter=key>value</parameter>\n"
        "</function>\n</tool_call>",
        [("func_name", {"key": "value"})],
    ),
    (  # vLLM's gemma4 parser: docstring
        "gemma4",
        '<|tool_call>call:func_name{key:<|"|>value<|"|>,num:42}<tool_call|>',
        [("func_name", {"key": "value", "num": 42})],
    ),
    (
        "gemma4",
        '<|tool_call>call:f{nested:{inner_key:<|"|>val<|"|>},'
        'items:[<|"|>a<|"|>,<|"|>b<|"|>]}<tool_call|>',
        [("f", {"nested": {"inner_key": "val"}, "items": ["a", "b"]})],
    ),
    (  # Google, FunctionGemma formatting and best practices
        "functiongemma",
        "<start_function_call>call:get_current_temperature{location:<escape>London<escape>}"
        "<end_function_call>",
        [("get_current_temperature", {"location": "London"})],
    ),
    (  # DeepSeek-V3's chat template
        "deepseek_v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_current_weather\n"
        '```json\n{"location": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [("get_current_weather", {"location": "Paris"})],
    ),
    (  # DeepSeek-V3.1's model card: toolcall
        "deepseek_v31",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"location": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [("get_weather", {"location": "Paris"})],
    ),
]


@pytest.mark.parametrize(("name", "text", "calls"), PUBLISHED)
def test_a_published_example_is_read(
    name: str, text: str, calls: list[tuple[str, dict[str, object]]]
) -> None:
    fmt = get_format(name)
    attempts = fmt.parse(ids(fmt, text), format_tokenizer(fmt))
    assert [a.status for a in attempts] == ["ok"] * len(calls)
    assert [(a.call.name, dict(a.call.arguments)) for a in attempts if a.call] == calls


def test_mistrals_ids_are_kept_and_written() -> None:
    fmt = get_format("mistral")
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "9Ae3bDc2F"}]'
    (attempt,) = fmt.parse(ids(fmt, text), format_tokenizer(fmt))
    assert attempt.call == ToolCall("now", {}, "9Ae3bDc2F")
    assert fmt.show([attempt.call]) == text


SCHEMA = {
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"type": "object"},
        "a": {"type": "array"},
        "m": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "sn": {"type": ["string", "null"]},
        "e": {"enum": ["1", "2"]},
    }
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("s", "3", "3"),
        ("s", "true", "true"),
        ("i", "3", 3),
        ("n", "3", 3),
        ("n", "0.5", 0.5),
        ("b", "true", True),
        ("b", "False", False),
        ("o", '{"x": [1]}', {"x": [1]}),
        ("a", "[]", []),
        ("m", "null", None),
        ("sn", "null", None),
        ("sn", "nothing", "nothing"),
        ("e", "1", "1"),
        ("unknown", "3", "3"),
    ],
)
def test_qwen3_coders_texts_take_the_type_that_the_schema_names(
    key: str, text: str, value: object
) -> None:
    fmt = get_format("qwen3_coder")
    parameter = f"<parameter={key}>\n{text}\n</parameter>"
    answer = f"<tool_call>\n<function=f>\n{parameter}\n</function>\n</tool_call>"
    (read,) = fmt.parse(ids(fmt, answer), format_tokenizer(fmt), [ToolSpec("f", "", SCHEMA)])
    assert read.call is not None
    assert read.call.arguments[key] == value
    assert type(read.call.arguments[key]) is type(value)
    (untyped,) = fmt.parse(ids(fmt, answer), format_tokenizer(fmt))
    assert untyped.call is not None
    assert untyped.call.arguments[key] == text, "without tools everything is text"


@pytest.mark.parametrize(("key", "text"), [("i", "three"), ("i", "3.5"), ("b", "1"), ("o", "[1]")])
def test_a_text_of_another_type_is_bad_syntax(key: str, text: str) -> None:
    """vLLM hands it on as a string; a tool that wants a number cannot use it."""
    fmt = get_format("qwen3_coder")
    answer = f"<tool_call><function=f><parameter={key}>{text}</parameter></function></tool_call>"
    (read,) = fmt.parse(ids(fmt, answer), format_tokenizer(fmt), [ToolSpec("f", "", SCHEMA)])
    assert (read.status, read.call) == ("bad_syntax", None)
