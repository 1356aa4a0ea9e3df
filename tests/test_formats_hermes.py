"""The hermes format on ids: written as published, and every attempt keeps its status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smollm3_tokenizer import smollm3_tokenizer
from smollora.errors import ConfigError
from smollora.formats import get_format
from smollora.formats.grammar import single_id
from smollora.formats.hermes import HERMES
from smollora.types import ToolCall
from tiny_models import tiny_tokenizer

TINY = tiny_tokenizer()
OPEN, CLOSE = TINY.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
STOP = TINY.convert_tokens_to_ids("<|im_end|>")


def ids(text: str) -> list[int]:
    return TINY.encode(text, add_special_tokens=False)


def statuses(text: str) -> list[str]:
    return [attempt.status for attempt in HERMES.parse(ids(text), TINY)]


# ── what is written ───────────────────────────────────────────────────────────────────────────


def test_calls_are_shown_name_first_one_block_each_as_vllm_reads_them() -> None:
    calls = [
        ToolCall("get_weather", {"city": "Łódź", "days": 3, "exact": True, "unit": None}),
        ToolCall("now", {}),
    ]
    assert HERMES.show(calls) == (
        "<tool_call>\n"
        '{"name": "get_weather", "arguments": '
        '{"city": "Łódź", "days": 3, "exact": true, "unit": null}}\n'
        "</tool_call>\n"
        "<tool_call>\n"
        '{"name": "now", "arguments": {}}\n'
        "</tool_call>"
    )


def test_a_shown_call_is_one_opening_id_json_and_one_closing_id() -> None:
    tokens = ids(HERMES.show([ToolCall("now", {"zone": "CET"})]))
    assert tokens[0] == OPEN
    assert tokens[-1] == CLOSE
    assert not {OPEN, CLOSE} & set(tokens[1:-1])
    body = json.loads(TINY.decode(tokens[1:-1]))
    assert body == {"name": "now", "arguments": {"zone": "CET"}}


@pytest.mark.network
def test_smollm3_encodes_a_shown_call_as_was_measured() -> None:
    tokens = smollm3_tokenizer().encode(HERMES.show([ToolCall("now", {})]))
    assert tokens[:4] == [128015, 198, 5018, 609]
    assert tokens[-1] == 128016


def test_the_format_is_found_by_its_name_and_a_wrong_name_says_what_there_is() -> None:
    assert get_format("hermes") is HERMES
    with pytest.raises(ConfigError, match="hermes"):
        get_format("mistral_v99")


# ── every status ──────────────────────────────────────────────────────────────────────────────

WEATHER = '{"name": "get_weather", "arguments": {"city": "Porto"}}'

ANSWERS: dict[str, tuple[str, list[str]]] = {
    "a call": (f"<tool_call>\n{WEATHER}\n</tool_call>", ["ok"]),
    "a call and the stop token": (f"<tool_call>\n{WEATHER}\n</tool_call><|im_end|>", ["ok"]),
    "a call without newlines": (f"<tool_call>{WEATHER}</tool_call>", ["ok"]),
    "words before a call": (f"I look.\n<tool_call>{WEATHER}</tool_call>", ["ok"]),
    "two calls": (
        f"<tool_call>{WEATHER}</tool_call>\n<tool_call>{WEATHER}</tool_call>",
        ["ok"] * 2,
    ),
    "arguments before the name": (
        '<tool_call>{"arguments": {}, "name": "now"}</tool_call>',
        ["ok"],
    ),
    "words": ("It rains in Porto.", []),
    "nothing": ("", []),
    "JSON that is no call": ('{"city": "Porto"}', []),
    "a closing tag alone": ("</tool_call>", []),
    "no closing tag": (f"<tool_call>\n{WEATHER}<|im_end|>", ["unclosed"]),
    "a call opened inside another": (
        f"<tool_call>\n<tool_call>{WEATHER}</tool_call>",
        ["unclosed", "ok"],
    ),
    "Python's repr": (
        "<tool_call>{'name': 'now', 'arguments': {}}</tool_call>",
        ["bad_syntax"],
    ),
    "a list": ('<tool_call>[{"name": "now", "arguments": {}}]</tool_call>', ["bad_syntax"]),
    "two objects in one block": (f"<tool_call>{WEATHER}\n{WEATHER}</tool_call>", ["bad_syntax"]),
    "an empty block": ("<tool_call></tool_call>", ["bad_syntax"]),
    "no arguments": ('<tool_call>{"name": "now"}</tool_call>', ["bad_syntax"]),
    "arguments as a string": (
        '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>',
        ["bad_syntax"],
    ),
    "the key parameters": (
        '<tool_call>{"name": "now", "parameters": {}}</tool_call>',
        ["bad_syntax"],
    ),
    "JSON nested past all limits": (
        f"<tool_call>{'[' * 100_000}</tool_call>",
        ["bad_syntax"],
    ),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', ["no_name"]),
    "an empty name": ('<tool_call>{"name": "", "arguments": {}}</tool_call>', ["no_name"]),
    "a name that is a number": ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', ["no_name"]),
    "bare JSON of a call": (WEATHER, ["spelled_out"]),
    "bare JSON in a code fence": (f"```json\n{WEATHER}\n```", ["spelled_out"]),
    "one good block of two": (
        f"<tool_call>{WEATHER}</tool_call><tool_call>{{</tool_call>",
        ["ok", "bad_syntax"],
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_attempt_has_its_status(answer: str) -> None:
    text, expected = ANSWERS[answer]
    assert statuses(text) == expected


def test_only_a_good_attempt_carries_a_call_and_each_says_where_it_stands() -> None:
    text = f"I look. <tool_call>{WEATHER}</tool_call><tool_call>{{</tool_call><|im_end|>"
    tokens = ids(text)
    good, bad = HERMES.parse(tokens, TINY)
    assert good.call == ToolCall("get_weather", {"city": "Porto"})
    assert bad.call is None
    assert good.span == (tokens.index(OPEN), tokens.index(CLOSE) + 1)
    assert bad.span is not None
    assert tokens[bad.span[1]] == STOP
    assert good.raw == f"<tool_call>{WEATHER}</tool_call>"
    assert bad.raw == "<tool_call>{</tool_call>"


def test_a_delimiter_spelled_with_ordinary_tokens_never_counts_as_a_call() -> None:
    """vLLM's parser would read it: it matches strings (FACTS 3), so only the ids tell."""
    spelled = [token for letter in f"<tool_call>{WEATHER}</tool_call>" for token in ids(letter)]
    assert TINY.decode(spelled) == f"<tool_call>{WEATHER}</tool_call>"
    (attempt,) = HERMES.parse(spelled, TINY)
    assert attempt.status == "spelled_out"
    assert attempt.call is None
    assert attempt.span is None


def test_spelled_out_attempts_come_after_the_real_ones_and_are_counted_one_by_one() -> None:
    spelled = [token for letter in "<tool_call>{}" for token in ids(letter)]
    tokens = [*spelled, *ids(f"<tool_call>{WEATHER}</tool_call>"), *spelled]
    found = [attempt.status for attempt in HERMES.parse(tokens, TINY)]
    assert found == ["ok", "spelled_out", "spelled_out"]


# ── what is written is read back ──────────────────────────────────────────────────────────────

TEXT = st.text(max_size=20)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.sampled_from(
        ["<|im_end|>", "<think>", "</tool_call>", "\\", '"', "{}", "</s>", "🙂\u2028", "\x00"]
    ),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
CALLS = st.lists(
    st.builds(ToolCall, TEXT.filter(bool), st.dictionaries(TEXT, VALUES, max_size=4)), max_size=3
)


def _typed(value: Any) -> Any:
    """With the type beside each leaf: 1, 1.0 and True are three things in JSON."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value), value)


def _read_back_equals(calls: list[ToolCall], tokenizer: Any) -> None:
    attempts = HERMES.parse(tokenizer.encode(HERMES.show(calls)), tokenizer)
    assert [attempt.status for attempt in attempts] == ["ok"] * len(calls)
    for attempt, call in zip(attempts, calls, strict=True):
        assert attempt.call is not None
        assert attempt.call.name == call.name
        assert _typed(dict(attempt.call.arguments)) == _typed(dict(call.arguments))
        assert list(attempt.call.arguments) == list(call.arguments)


@settings(max_examples=200)
@given(CALLS)
def test_whatever_json_is_shown_is_read_back(calls: list[ToolCall]) -> None:
    _read_back_equals(calls, TINY)


@pytest.mark.network
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(CALLS)
def test_whatever_json_is_shown_is_read_back_with_smollm3s_tokenizer(calls: list[ToolCall]) -> None:
    _read_back_equals(calls, smollm3_tokenizer())


@pytest.mark.parametrize("tag", ["<tool_call>", "</tool_call>"])
def test_a_delimiter_inside_an_argument_breaks_the_call_as_it_does_in_vllm(tag: str) -> None:
    """As chat templates write it, unescaped: such rows cannot be taught (FACTS 3)."""
    body = json.dumps({"name": "note", "arguments": {"text": f"write {tag} here"}})
    tokens = ids(f"<tool_call>\n{body}\n</tool_call>")
    assert all(attempt.status != "ok" for attempt in HERMES.parse(tokens, TINY))


@pytest.mark.parametrize("tag", ["<tool_call>", "</tool_call>"])
def test_a_delimiter_inside_an_argument_is_shown_with_jsons_own_escape(tag: str) -> None:
    call = ToolCall("note", {"text": f"write {tag} here"})
    shown = HERMES.show([call])
    assert shown.count(tag) == 1, "its own delimiter, and no other"
    assert "\\u003c" in shown
    _read_back_equals([call], TINY)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_bad_syntax(number: str) -> None:
    """json.loads takes them all; no server can pass them on."""
    body = f'{{"name": "set", "arguments": {{"x": {number}}}}}'
    assert statuses(f"<tool_call>{body}</tool_call>") == ["bad_syntax"]


# ── tokenizers without the delimiters ─────────────────────────────────────────────────────────


def _unk_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def test_an_unequipped_tokenizer_never_takes_unk_for_a_delimiter() -> None:
    tokenizer = _unk_tokenizer()
    assert tokenizer.convert_tokens_to_ids("<tool_call>") == 0, "transformers answers unk here"
    assert single_id(tokenizer, "<tool_call>") is None
    assert HERMES.parse([0, 1, 0, 0, 2], tokenizer) == ()


def test_an_unequipped_byte_level_tokenizer_sees_spelled_out_attempts_only() -> None:
    tokenizer = tiny_tokenizer(tags=())
    assert single_id(tokenizer, "<tool_call>") is None
    tokens = tokenizer.encode(HERMES.show([ToolCall("now", {})]))
    assert [attempt.status for attempt in HERMES.parse(tokens, tokenizer)] == ["spelled_out"]


def test_a_tokenizer_with_the_opening_tag_only_never_closes_a_call() -> None:
    tokenizer = tiny_tokenizer(tags=("<tool_call>",))
    tokens = tokenizer.encode(HERMES.show([ToolCall("now", {})]))
    assert [attempt.status for attempt in HERMES.parse(tokens, tokenizer)] == ["unclosed"]
