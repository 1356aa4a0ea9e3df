"""The cases that vLLM was asked: what we read is what was decided by hand, and what is published is
what a fresh comparison gives.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from format_tokenizer import BENCH, bench_module
from smollora.formats import FORMATS
from smollora.formats.served import TRAITS, measured

AGREEMENT = bench_module("format_agreement")
READINGS = {(fmt, case): attempts for fmt, case, attempts in AGREEMENT.our_readings()}

OSLO = ("get_weather", {"city": "Oslo", "days": 3})
PLACE = ("get_weather", {"city": "Oslo"})
NOW: tuple[str, dict[str, Any]] = ("now", {})
UNICODE = 'Łódź 🙂 "quoted"\nC:\\new {x} [y]'
SAVE = {
    "config": {"a": {"b": [1, {"c": None}]}},
    "tags": ["x", "y"],
    "ratio": 0.5,
    "on": True,
}
RIGHT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "canonical": [OSLO],
    "text_before": [OSLO],
    "text_after": [OSLO],
    "two_calls": [OSLO, NOW],
    "two_marks": [NOW, NOW],
    "two_blocks": [OSLO, NOW],
    "arguments_first": [OSLO],
    "other_key": [OSLO],
    "no_arguments": [NOW],
    "nested": [("save", SAVE)],
    "unicode": [("note", {"text": UNICODE})],
    "newlines_inside": [OSLO],
}
"""What the cases that are written correctly say, by hand; for formats without exceptions below."""

EXCEPTIONS: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {
    **{
        (fmt, case): [PLACE]
        for fmt in ("qwen3_coder", "functiongemma", "deepseek_v3", "deepseek_v31")
        for case in ("text_before", "text_after")
    },
    **{
        (fmt, "two_calls"): [PLACE, NOW]
        for fmt in ("qwen3_coder", "functiongemma", "deepseek_v3", "deepseek_v31")
    },
    ("functiongemma", "canonical"): [PLACE],
    ("llama3_json", "text_before"): [],
    ("pythonic", "text_before"): [],
    ("pythonic", "text_after"): [],
    ("phi4_mini", "unicode"): [("note", {"text": 'Łódź 🙂 "quoted"\nC:\\new {x}'})],
    ("mistral", "unicode"): [("note", {"text": 'Łódź 🙂 "quoted"\nC:\\new [y]'})],
    **{
        (fmt, "unicode"): [("note", {"text": "Łódź 🙂 \"quoted\" 'single'\nC:\\new {x} [y]"})]
        for fmt in ("pythonic", "lfm2")
    },
    **{
        (fmt, "unicode"): [("note", {"text": 'Łódź 🙂 "quoted", C:\\new {x} [y] a:b'})]
        for fmt in ("gemma4", "functiongemma")
    },
    ("qwen3_coder", "unicode"): [
        ("note", {"text": 'Łódź 🙂 "quoted"\n  C:\\new {x} [y] <b> & a < b'})
    ],
}
WRONG: dict[str, list[str]] = {
    "cut_short": ["unclosed"],
    "unclosed": ["unclosed"],
    "outer_unclosed": ["unclosed"],
    "bad_syntax": ["bad_syntax"],
    "arguments_as_string": ["bad_syntax"],
    "positional": ["bad_syntax"],
    "not_a_number": ["bad_syntax"],
    "name_missing": ["no_name"],
    "spelled": ["spelled_out"],
    "spelled_python_tag": ["spelled_out"],
    "json_answer": [],
    "braces_in_words": [],
    "list_of_numbers": [],
    "word_alone": [],
}
"""The statuses of cases that are wrong, by hand, whatever the format."""


@pytest.mark.parametrize(("fmt", "case"), READINGS)
def test_a_case_is_read_as_decided_by_hand(fmt: str, case: str) -> None:
    attempts = READINGS[fmt, case]
    if case in RIGHT:
        read = [(a.call.name, dict(a.call.arguments)) for a in attempts if a.call]
        assert read == EXCEPTIONS.get((fmt, case), RIGHT[case])
    elif case in WRONG:
        assert [attempt.status for attempt in attempts] == WRONG[case]
    elif case == "one_bad_of_two":
        assert "ok" not in [attempt.status for attempt in attempts[1:]]
        assert attempts[-1].status == "bad_syntax"


def test_every_format_was_asked_in_enough_ways() -> None:
    asked: dict[str, int] = {}
    for fmt, _ in READINGS:
        asked[fmt] = asked.get(fmt, 0) + 1
    assert set(asked) == set(FORMATS)
    assert min(asked.values()) >= 15


def test_vllms_answers_are_to_these_cases_and_to_no_others() -> None:
    """bench/vllm_answers.json is a run of bench/vllm_parsers.py over bench/format_cases.yaml."""
    answers = json.loads((BENCH / "vllm_answers.json").read_text("utf-8"))["answers"]
    assert {(fmt, case) for fmt, cases in answers.items() for case in cases} == set(READINGS)


def test_the_parser_that_was_asked_is_the_one_that_the_format_names() -> None:
    cases = yaml.safe_load((BENCH / "format_cases.yaml").read_text("utf-8"))
    for fmt in cases["formats"]:
        assert FORMATS[fmt["name"]].vllm_parser == fmt["parser"]


def test_the_stored_verdicts_are_those_of_a_fresh_comparison() -> None:
    """Neither our parsers nor the stored answers can change without served.json."""
    assert AGREEMENT.SERVED.read_text("utf-8") == AGREEMENT.as_json(AGREEMENT.verdicts())


def test_the_documentation_shows_the_stored_verdicts() -> None:
    page = AGREEMENT.PAGE.read_text("utf-8")
    assert page == AGREEMENT.with_table(page, AGREEMENT.as_table(AGREEMENT.verdicts()))


MEASURED_BEFORE = {
    "canonical": ("same", "same"),
    "text_before": ("same", "same"),
    "two_calls": ("same", "same"),
    "text_after": ("words lost", "words lost"),
    "arguments_first": ("same", "corrupt"),
    "one_bad_of_two": ("lost", "laxer"),
    "in_think": ("lost", "corrupt"),
    "spelled": ("laxer", "laxer"),
}
"""vLLM 0.32's hermes parser behind its own HTTP server, measured apart from this file."""


@pytest.mark.parametrize("case", MEASURED_BEFORE)
def test_the_driver_finds_what_a_running_server_showed(case: str) -> None:
    seen = measured()["formats"]["hermes"][case]
    assert (seen["complete"], seen["streamed"]) == MEASURED_BEFORE[case]


def test_every_trait_that_verify_knows_was_measured_somewhere() -> None:
    known = {case for cases in measured()["formats"].values() for case in cases}
    assert set(TRAITS) <= known


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        ({"calls": [{"name": "f", "arguments": '{"a": 1}'}], "content": ""}, "same"),
        ({"calls": [], "content": ""}, "lost"),
        ({"calls": [{"name": "f", "arguments": '{"a": 2}'}], "content": ""}, "changed"),
        ({"calls": [{"name": "g", "arguments": '{"a": 1}'}], "content": ""}, "changed"),
        ({"calls": [{"name": "f", "arguments": '{"a": 1'}], "content": ""}, "corrupt"),
        ({"calls": [{"name": "f", "arguments": '{"a": NaN}'}], "content": ""}, "corrupt"),
        ({"calls": [{"name": "f", "arguments": '"{}"'}], "content": ""}, "corrupt"),
        ({"calls": [{"name": "f", "arguments": '{"a": 1}'}] * 2, "content": ""}, "laxer"),
        ({"error": "boom"}, "error"),
    ],
)
def test_each_word_of_the_table_is_earned(theirs: dict[str, Any], word: str) -> None:
    from smollora.types import ParsedCall, ToolCall

    ours = [ParsedCall("f", "ok", ToolCall("f", {"a": 1}))]
    assert AGREEMENT.compare("canonical", ours, theirs) == word
