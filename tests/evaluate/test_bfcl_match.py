"""BFCL's rules as we read them are those of its own checker: on every case of its data, on answers
that are right and on answers broken in one place or in two.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest

from format_tokenizer import bench_module
from smollora.evaluate import bfcl_match
from smollora.evaluate.bfcl import SCORED_CATEGORIES, read_truths
from smollora.evaluate.bfcl_match import TYPES, judge_calls
from smollora.evaluate.bfcl_values import java_value, javascript_value
from smollora.evaluate.suites import bfcl_folder
from smollora.types import ToolCall

AGREEMENT = bench_module("bfcl_agreement")

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "share": {"type": "float"},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "place": {"type": "dict"},
        },
        "required": ["city"],
    },
}
ANSWER: dict[str, Any] = {
    "get_weather": {
        "city": ["New York, NY", "New York"],
        "days": [3, ""],
        "share": [2.0, ""],
        "hours": [[1, 2], ""],
        "place": [{"zip": ["10001"], "floor": [4, ""]}, ""],
    }
}


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    return {category: AGREEMENT.compare(category) for category in SCORED_CATEGORIES}


# ── against the official checker ──────────────────────────────────────────────────────────────


@pytest.mark.network
def test_no_verdict_differs_from_the_official_checker_on_any_case(counts: dict[str, Any]) -> None:
    assert sum(count.cases for count in counts.values()) == 2501
    assert {name: count.disagreements[:3] for name, count in counts.items()} == {
        name: [] for name in SCORED_CATEGORIES
    }


@pytest.mark.network
def test_the_reasons_are_the_official_ones(counts: dict[str, Any]) -> None:
    found = {name: dict(count.reasons) for name, count in counts.items() if count.reasons}
    assert found == {}


@pytest.mark.network
def test_both_kinds_of_answers_were_judged_both_ways(counts: dict[str, Any]) -> None:
    for name, count in counts.items():
        assert count.right >= count.cases, name
        assert count.broken > 20 * count.cases, name
        assert count.passed > 0, name


@pytest.mark.network
def test_the_table_in_the_documentation_is_what_a_fresh_comparison_gives(
    counts: dict[str, Any],
) -> None:
    assert AGREEMENT.table(counts) in AGREEMENT.PAGE.read_text(encoding="utf-8")


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("_fold", lambda value: value),
        ("_judge_mapping", lambda value, alternatives: bfcl_match.RIGHT),
        ("_judge_unordered", lambda *given: bfcl_match.RIGHT),
    ],
    ids=["case counts", "objects are not looked into", "parallel calls are not compared"],
)
def test_the_comparison_sees_a_planted_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: Any
) -> None:
    monkeypatch.setattr(bfcl_match, name, fault)
    seen = [AGREEMENT.compare(category, every=10) for category in ("parallel", "live_simple")]
    assert any(count.disagreements for count in seen)


@pytest.mark.network
def test_literals_of_java_and_javascript_are_read_as_the_official_converters_read_them() -> None:
    AGREEMENT.load_official()
    folder = "bfcl_eval.eval_checker.ast_eval.type_convertor"
    java = importlib.import_module(f"{folder}.java_type_converter").java_type_converter
    javascript = importlib.import_module(f"{folder}.js_type_converter").js_type_converter
    pieces = [
        *("1", "-2", "3.5", "1e3", "L", "f", "n", "true", "false", '"a"', "'b'", "x", " ", ","),
        *("[", "]", "{", "}", "(", ")", ":", "new int[]{", "new Array(", "key: ", "\n"),
        *("new ArrayList<T>(Arrays.asList(", "new ArrayList<>() {{ add(", "add(", "); }}", "))"),
        *("new HashMap<String, Object>() {{ put(", '"k", ', "new ArrayList<>()", "{}", "[]"),
    ]
    dice = random.Random(3)
    unread = ("Set", "Hashtable", "Queue", "Stack")
    kinds = {
        "java": [name for name in TYPES["java"] if name not in unread],
        "javascript": list(TYPES["javascript"]),
    }
    compared = 0
    for language, ours, theirs in (
        ("java", java_value, java),
        ("javascript", javascript_value, javascript),
    ):
        for _ in range(6000):
            text = "".join(dice.choices(pieces, k=dice.randint(1, 7)))
            kind = dice.choice(kinds[language])
            inner = dice.choice([None, *kinds[language]])
            try:
                expected = theirs(text, kind, inner)
            except (ValueError, IndexError):
                continue  # a literal that the official converter stops at: "1n" and a line break
            found = ours(text, kind, inner)
            assert (found, type(found)) == (expected, type(expected)), (text, kind, inner)
            compared += 1
    assert compared > 11000


# ── by hand ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"city": "new york"}, ""),
        ({"city": "New-York, N.Y."}, ""),
        ({"city": "New York!"}, "value_error:string"),
        ({"city": "Boston"}, "value_error:string"),
        ({"city": 3}, "type_error:simple"),
        ({"city": None}, "type_error:simple"),
        ({}, "simple_function_checker:missing_required"),
        ({"city": "New York", "when": 1}, "simple_function_checker:unexpected_param"),
        ({"city": "New York", "days": 3}, ""),
        ({"city": "New York", "days": 4}, "value_error:others"),
        ({"city": "New York", "days": 3.0}, "type_error:simple"),
        ({"city": "New York", "days": True}, "type_error:simple"),
        ({"city": "New York", "share": 2}, ""),
        ({"city": "New York", "hours": [1, 2]}, ""),
        ({"city": "New York", "hours": [2, 1]}, "value_error:list/tuple"),
        ({"city": "New York", "hours": []}, ""),
        ({"city": "New York", "place": {"zip": "10001"}}, ""),
        ({"city": "New York", "place": {"zip": "10001", "floor": 4}}, ""),
        ({"city": "New York", "place": {"floor": 4}}, "value_error:dict_key"),
        ({"city": "New York", "place": {"zip": "10001", "x": 1}}, "value_error:dict_key"),
        ({"city": "New York", "place": {"zip": "10002"}}, "value_error:dict_value"),
    ],
    ids=str,
)
def test_one_call_is_judged_by_the_rules(arguments: dict[str, Any], reason: str) -> None:
    found = judge_calls("simple_python", [WEATHER], [ANSWER], [ToolCall("get_weather", arguments)])
    assert (found.valid, found.reason) == (not reason, reason)


def test_parallel_calls_may_come_in_any_order_and_none_may_serve_twice() -> None:
    oslo = {"get_weather": {"city": ["Oslo"]}}
    rome = {"get_weather": {"city": ["Rome"]}}
    calls = [ToolCall("get_weather", {"city": city}) for city in ("Rome", "Oslo")]
    assert judge_calls("parallel", [WEATHER], [oslo, rome], calls).valid
    twice = judge_calls("parallel", [WEATHER], [oslo, rome], [calls[0], calls[0]])
    assert twice.reason == "parallel_function_checker_no_order:cannot_find_match"
    one = judge_calls("parallel", [WEATHER], [oslo, rome], calls[:1])
    assert one.reason == "parallel_function_checker_no_order:wrong_count"


def test_an_element_that_is_no_object_is_wrong_and_no_crash() -> None:
    function = {
        "name": "f",
        "parameters": {
            "properties": {"rows": {"type": "array", "items": {"type": "dict"}}},
            "required": [],
        },
    }
    answer = {"f": {"rows": [[{"a": [1]}], ""]}}
    found = judge_calls("simple_python", [function], [answer], [ToolCall("f", {"rows": ["x"]})])
    assert not found.valid


@pytest.mark.network
def test_every_category_has_the_number_of_questions_that_bfcl_publishes() -> None:
    """Numbers from BFCL's README of v4."""
    published = {"simple_python": 400, "multiple": 200, "parallel": 200, "live_multiple": 1053}
    for category, number in published.items():
        assert len(list(read_truths(bfcl_folder(), category))) == number
