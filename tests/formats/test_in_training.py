"""Token facts and the checks before training, for formats of every shape."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from format_tokenizer import ALL, format_tokenizer, ids
from smollora.data.parts import parts_of
from smollora.formats import FORMATS, ToolFormat
from smollora.tokens import TokenFacts, read_token_facts
from smollora.types import Check, Rendered, ToolCall
from smollora.verify import check_row

WEATHER = ToolCall("get_weather", {"city": "Oslo"})
NOW = ToolCall("now", {})


def facts_of(fmt: ToolFormat, *, special: bool = False) -> TokenFacts:
    return read_token_facts(format_tokenizer(fmt, special=special), fmt, "")


def row_of(fmt: ToolFormat, text: str) -> Rendered:
    """A row whose answer is `text`, all of it trained, with a prompt of one letter."""
    answer = ids(fmt, text + "<|im_end|>")
    count = len(answer)
    return Rendered("r", (*ids(fmt, "Q"), *answer), (0, *[1] * count), (False, *[True] * count))


def checks(fmt: ToolFormat, text: str, calls: Sequence[ToolCall]) -> dict[str, Check]:
    found = check_row(row_of(fmt, text), [tuple(calls)], facts_of(fmt), fmt, format_tokenizer(fmt))
    return {check.name: check for check in found}


# ── facts ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_format_says_by_what_it_tells_a_call(fmt: ToolFormat, special: bool) -> None:
    facts = facts_of(fmt, special=special)
    by_tokens = fmt.name not in ("granite_31", "phi4_mini", "llama3_json", "pythonic")
    assert facts.has_delimiters is by_tokens
    assert facts.lacking == ()
    assert facts.open.single is by_tokens
    assert facts.open.special is (by_tokens and special)


def test_nothing_is_no_delimiter() -> None:
    facts = facts_of(FORMATS["pythonic"])
    assert (facts.open.text, facts.open.id, facts.open.ids, facts.open.single) == (
        "",
        None,
        (),
        False,
    )
    assert facts.ids == ()


def test_a_missing_inner_token_is_lacking() -> None:
    fmt = FORMATS["deepseek_v31"]
    facts = read_token_facts(format_tokenizer(FORMATS["hermes"]), fmt, "")
    assert not facts.has_delimiters
    assert [each.text for each in facts.lacking] == [fmt.open, fmt.close, *fmt.inner]


def test_a_format_without_a_closing_token_lacks_none() -> None:
    assert facts_of(FORMATS["mistral"]).close.text == ""
    assert facts_of(FORMATS["mistral"]).has_delimiters


# ── proof ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_row_as_its_format_writes_it_is_proved(fmt: ToolFormat) -> None:
    for calls in ([WEATHER], [WEATHER, NOW], [NOW, NOW, NOW], []):
        found = checks(fmt, fmt.show(calls) or "Words.", calls)
        failed = [check for check in found.values() if not check.ok]
        assert failed == []


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_row_that_lost_a_call_or_says_another_is_not(fmt: ToolFormat) -> None:
    other = ToolCall("get_weather", {"city": "Rome"})
    for written, wanted in (([WEATHER], [WEATHER, NOW]), ([other], [WEATHER]), ([], [NOW])):
        found = checks(fmt, fmt.show(written) or "Words.", wanted)
        assert not found["round_trip"].ok
    assert not checks(fmt, fmt.show([WEATHER]), [])["round_trip"].ok


@pytest.mark.parametrize("fmt", [f for f in ALL if f.close], ids=lambda f: f.name)
def test_a_row_without_its_closing_token_is_not(fmt: ToolFormat) -> None:
    found = checks(fmt, fmt.show([WEATHER]).removesuffix(fmt.close), [WEATHER])
    assert not found["delimiters"].ok
    assert fmt.close in found["delimiters"].detail


@pytest.mark.parametrize("fmt", [f for f in ALL if f.delimited == "token"], ids=lambda f: f.name)
def test_a_row_that_opens_twice_is_not(fmt: ToolFormat) -> None:
    assert not checks(fmt, fmt.open + fmt.show([WEATHER]), [WEATHER])["delimiters"].ok


@pytest.mark.parametrize(
    ("value", "other"), [(3, "3"), (True, "true"), (None, "null"), ([1], "[1]"), (3, 3.0)]
)
def test_values_without_types_are_read_as_the_row_has_them(value: object, other: object) -> None:
    """qwen3_coder writes 3 and "3" alike; the row, not the text, says which it is."""
    fmt = FORMATS["qwen3_coder"]
    for each in (value, other):
        call = ToolCall("f", {"x": each})
        assert checks(fmt, fmt.show([call]), [call])["round_trip"].ok


# ── parts of the loss ─────────────────────────────────────────────────────────────────────────

PARTS_OF: dict[str, list[str]] = {
    "hermes": ["open", "name", "arguments", "close"],
    "mistral_v11": ["open", "name", "arguments", "close"],
    "qwen3_coder": ["open", "name", "arguments", "close"],
    "gemma4": ["open", "name", "arguments", "close"],
    "deepseek_v31": ["open", "name", "arguments", "close"],
    "lfm2": ["open", "name", "arguments", "close"],
    "granite": ["open", "name", "arguments", "close"],
    "pythonic": ["text"],
    "llama3_json": ["text"],
}


@pytest.mark.parametrize("name", PARTS_OF)
def test_the_loss_of_a_call_falls_into_its_parts(name: str) -> None:
    fmt = FORMATS[name]
    row = row_of(fmt, fmt.show([WEATHER]))
    parts = [part for part in parts_of(row, facts_of(fmt), format_tokenizer(fmt)) if part]
    in_order = [part for at, part in enumerate(parts) if at == 0 or parts[at - 1] != part]
    assert in_order == PARTS_OF[name]


# ── what a server makes of it ─────────────────────────────────────────────────────────────────


def hermes(body: str, *, before: str = "", after: str = "") -> str:
    return f"{before}<tool_call>\n{body}\n</tool_call>{after}"


def test_a_plain_call_has_nothing_to_note() -> None:
    found = checks(FORMATS["hermes"], FORMATS["hermes"].show([WEATHER]), [WEATHER])
    assert (found["served"].ok, found["served"].detail) == (True, "")


def test_arguments_first_are_noted_for_they_are_corrupted_when_streamed() -> None:
    text = hermes('{"arguments": {"city": "Oslo"}, "name": "get_weather"}')
    served = checks(FORMATS["hermes"], text, [WEATHER])["served"]
    assert served.ok, "a complete answer gives the call"
    assert served.detail == (
        "arguments first: vLLM 0.32.0's parser hermes gives arguments that are no JSON object"
        " when streamed"
    )


def test_words_after_the_call_are_noted() -> None:
    text = hermes('{"name": "get_weather", "arguments": {"city": "Oslo"}}', after="\nWait.")
    served = checks(FORMATS["hermes"], text, [WEATHER])["served"]
    assert served.ok
    assert served.detail == (
        "text after: vLLM 0.32.0's parser hermes drops the words beside the call"
    )


def test_a_call_that_the_server_loses_is_refused() -> None:
    """vLLM reads DeepSeek's arguments to the end of the line, so indented JSON is lost."""
    fmt = FORMATS["deepseek_v31"]
    text = fmt.show([WEATHER]).replace('{"city"', '{\n  "city"')
    found = checks(fmt, text, [WEATHER])
    assert found["round_trip"].ok
    assert not found["served"].ok
    assert "newlines inside" in found["served"].detail
    assert "loses the call" in found["served"].detail


def test_a_list_in_phi4s_arguments_is_refused_for_its_bracket_ends_the_call() -> None:
    fmt = FORMATS["phi4_mini"]
    call = ToolCall("save", {"tags": ["x"]})
    assert not checks(fmt, fmt.show([call]), [call])["served"].ok
    plain = checks(fmt, fmt.show([WEATHER]), [WEATHER])["served"]
    assert plain.ok
    assert "when streamed" in plain.detail, "its parser streams nothing at all"


def test_functiongemmas_numbers_are_noted() -> None:
    fmt = FORMATS["functiongemma"]
    call = ToolCall("get_weather", {"days": 3})
    served = checks(fmt, fmt.show([call]), [call])["served"]
    assert served.ok
    assert "number: " in served.detail
    assert "gives other arguments" in served.detail


def test_an_answer_in_words_has_nothing_to_note() -> None:
    for fmt in ALL:
        assert checks(fmt, "It rains.", [])["served"].detail == ""
