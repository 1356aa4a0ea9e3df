"""What a format shows it reads back: for any JSON, or for exactly the part of it that it can write.

The domains are stated here, by hand: a format that refuses more than it says, or writes what it
cannot read, fails.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format_tokenizer import ALL, format_tokenizer, ids, spelled
from smollora.formats import FORMATS, ToolFormat
from smollora.formats.grammar import CannotShow
from smollora.types import ParsedCall, ToolCall, ToolSpec
from smollora.verify import tools_of

TOKENS = sorted({t for fmt in ALL for t in (fmt.open, fmt.close, *fmt.inner) if t})
NASTY = [
    *TOKENS,
    '"',
    "'",
    "\\",
    "\n",
    "\r\n",
    "\t",
    "{}",
    "[]",
    "});",
    "</s>",
    "🙂",
    "\u2028",
    "\x00",
]
NASTY += ["<function=f>", "</function>", "<parameter=p>", "</parameter>", "call:f{a:1}", "; ", "3"]
NASTY += ["true", "null", "None", "NaN", "<|im_end|>", "```", "'''", "\\u003c", " x ", ""]
TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(NASTY),
    st.lists(st.sampled_from(NASTY), min_size=2, max_size=3).map("".join),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
)


def values(text: st.SearchStrategy[str], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """JSON values with such texts and keys."""
    leaves = st.one_of(LEAVES.filter(lambda leaf: not isinstance(leaf, str)), text)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


def calls(
    names: st.SearchStrategy[str],
    keys: st.SearchStrategy[str],
    arguments: st.SearchStrategy[Any],
    most: int = 3,
    unique: bool = False,
) -> st.SearchStrategy[list[ToolCall]]:
    """Lists of calls; `unique`: no tool twice."""
    one = st.builds(ToolCall, names, st.dictionaries(keys, arguments, max_size=4))
    return st.lists(one, max_size=most, unique_by=(lambda call: call.name) if unique else None)


def free_of(*parts: str) -> st.SearchStrategy[str]:
    return TEXT.filter(lambda text: not any(part in text for part in parts))


IDENTIFIERS = st.one_of(
    st.from_regex(r"[^\W\d]\w{0,8}", fullmatch=True), st.sampled_from(["a", "true", "_x"])
).filter(
    lambda text: (
        text.isidentifier()
        and not keyword.iskeyword(text)
        and unicodedata.normalize("NFKC", text) == text
        and text != "__debug__"
    )
)
TAG_NAMES = st.from_regex(r"[^<>\s]{1,8}", fullmatch=True)
PLAIN_NAMES = st.from_regex(r"[^\s\[\]{}<>():,\"]{1,8}", fullmatch=True)
QWEN_TAGS = (
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "</function>",
    "<parameter=",
    "</parameter>",
)
QWEN_KEYS = TAG_NAMES
QWEN_VALUES = values(TEXT, TEXT).filter(
    lambda value: not (isinstance(value, str) and any(tag in value for tag in QWEN_TAGS))
)
ANY = values(TEXT, TEXT)


def gemma(fmt: ToolFormat) -> st.SearchStrategy[list[ToolCall]]:
    tokens = (fmt.open, fmt.close, *fmt.inner)
    keys = PLAIN_NAMES.filter(lambda key: not any(token in key for token in tokens))
    names = PLAIN_NAMES.filter(lambda name: not any(token in name for token in tokens))
    return calls(names, keys, values(free_of(*tokens), keys))


DOMAINS: dict[str, st.SearchStrategy[list[ToolCall]]] = {
    # any JSON at all, under any name
    "hermes": calls(TEXT.filter(bool), TEXT, ANY),
    "granite": calls(TEXT.filter(bool), TEXT, ANY),
    "granite_31": calls(TEXT.filter(bool), TEXT, ANY),
    "phi4_mini": calls(TEXT.filter(bool), TEXT, ANY),
    "llama3_json": calls(TEXT.filter(bool), TEXT, ANY),
    "mistral": calls(TEXT.filter(bool), TEXT, ANY),
    # any JSON; names without spaces and brackets
    "mistral_v11": calls(PLAIN_NAMES, TEXT, ANY),
    "deepseek_v3": calls(PLAIN_NAMES, TEXT, ANY),
    "deepseek_v31": calls(PLAIN_NAMES, TEXT, ANY),
    # any JSON; names and arguments are Python identifiers
    "pythonic": calls(IDENTIFIERS, IDENTIFIERS, ANY),
    "lfm2": calls(IDENTIFIERS, IDENTIFIERS, ANY),
    # texts without the tags; a schema per call names the type of each value
    "qwen3_coder": calls(TAG_NAMES, QWEN_KEYS, QWEN_VALUES, unique=True),
    # texts without the tokens; keys without punctuation of the grammar
    "gemma4": gemma(FORMATS["gemma4"]),
    "functiongemma": gemma(FORMATS["functiongemma"]),
}


def typed(value: Any) -> Any:
    """With the type beside each leaf: 1, 1.0 and True are three things in JSON."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


def read(fmt: ToolFormat, text: str, tools: list[ToolSpec]) -> tuple[ParsedCall, ...]:
    return fmt.parse([*ids(fmt, text), *ids(fmt, "<|im_end|>")], format_tokenizer(fmt), tools)


def test_every_format_has_a_domain() -> None:
    assert set(DOMAINS) == set(FORMATS)


@pytest.mark.parametrize("name", DOMAINS)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_shown_is_read_back(name: str, data: st.DataObject) -> None:
    fmt = FORMATS[name]
    wanted = data.draw(DOMAINS[name])
    attempts = read(fmt, fmt.show(wanted), tools_of(wanted))
    assert [attempt.status for attempt in attempts] == ["ok"] * len(wanted)
    for attempt, call in zip(attempts, wanted, strict=True):
        assert attempt.call is not None
        assert attempt.call.name == call.name
        assert typed(dict(attempt.call.arguments)) == typed(dict(call.arguments))
        assert list(attempt.call.arguments) == list(call.arguments)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(wanted=calls(TEXT, TEXT, ANY, most=2))
def test_what_cannot_be_read_back_is_refused_not_written(
    fmt: ToolFormat, wanted: list[ToolCall]
) -> None:
    """Of any calls at all: shown and read back as they were, or refused."""
    try:
        shown = fmt.show(wanted)
    except CannotShow:
        return
    attempts = read(fmt, shown, tools_of(wanted))
    if any(not call.name for call in wanted):
        assert any(attempt.status != "ok" for attempt in attempts), "a call without a name"
        return
    read_back = [(a.call.name, typed(dict(a.call.arguments))) for a in attempts if a.call]
    if fmt.name == "qwen3_coder" and len({call.name for call in wanted}) < len(wanted):
        return  # one schema for two calls cannot name two types for one value
    assert read_back == [(call.name, typed(dict(call.arguments))) for call in wanted]


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_are_refused(fmt: ToolFormat, number: float) -> None:
    with pytest.raises(CannotShow):
        fmt.show([ToolCall("f", {"x": number})])


@pytest.mark.parametrize("fmt", [f for f in ALL if f.delimited == "token"], ids=lambda f: f.name)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_call_spelled_with_ordinary_tokens_is_never_a_call(
    fmt: ToolFormat, data: st.DataObject
) -> None:
    wanted = data.draw(DOMAINS[fmt.name].filter(bool))
    attempts = fmt.parse(spelled(fmt, fmt.show(wanted)), format_tokenizer(fmt), tools_of(wanted))
    assert attempts
    assert {attempt.status for attempt in attempts} == {"spelled_out"}
    assert all(attempt.call is None and attempt.span is None for attempt in attempts)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_tokens_make_a_parser_fail(fmt: ToolFormat, data: st.DataObject) -> None:
    """Any mixture of delimiters, pieces of calls and noise: attempts, spans in bounds, no error."""
    own = [text for text in (fmt.open, fmt.close, *fmt.inner) if text]
    pieces = [
        *own,
        *own,
        "[",
        "]",
        "{",
        "}",
        "f(",
        "x=1",
        ")",
        '"name": "f"',
        '"arguments": {}',
        ",",
    ]
    pieces += [
        "call:f{",
        "<function=f>",
        "</function>",
        "function",
        "\n```json\n{}\n```",
        "f",
        " hi ",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=14)))
    token_ids = ids(fmt, text)
    for attempt in fmt.parse(token_ids, format_tokenizer(fmt)):
        assert (attempt.call is not None) == (attempt.status == "ok")
        if attempt.span is not None:
            assert 0 <= attempt.span[0] < attempt.span[1] <= len(token_ids)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_nesting_past_all_limits_is_bad_syntax(fmt: ToolFormat) -> None:
    shown = fmt.show([ToolCall("f", {"x": "DEEP"})])
    if fmt.name == "qwen3_coder":
        shown = shown.replace("DEEP", "[" * 50_000)
        tools = [ToolSpec("f", "", {"properties": {"x": {"type": "array"}}})]
    else:
        shown = re.sub(r"(\"|'|<\|\"\|>|<escape>)DEEP(\"|'|<\|\"\|>|<escape>)", "[" * 50_000, shown)
        tools = []
    assert "[" * 50_000 in shown
    statuses = [attempt.status for attempt in read(fmt, shown, tools)]
    assert statuses
    assert "ok" not in statuses
