"""Answers judged: verdicts of ours and of BFCL's, rates, and prompts that were never answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from smollora.errors import TemplateError
from smollora.evaluate.asking import Column, ask_questions
from smollora.evaluate.bfcl import Truth
from smollora.evaluate.records import (
    Record,
    judge_again,
    question_row,
    rates,
    read_question,
    record_of,
)
from smollora.evaluate.suites import Question, bfcl_question
from smollora.formats import get_format
from smollora.render import Renderer
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from smollora.types import Generation, Message
from tiny_models import tiny_tokenizer

HERMES = get_format("hermes")
TEMPLATE = load_shipped("chatml_tools")
TOKENIZER = tiny_tokenizer(template=TEMPLATE)
FACTS = read_token_facts(TOKENIZER, HERMES, TEMPLATE, ())

FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


def question(category: str, *cities: str) -> Question:
    answers = [{"get_weather": {"city": [city], "days": [3, ""]}} for city in cities]
    messages = (Message("user", "What is the weather?"),)
    return bfcl_question("bfcl", Truth(f"{category}_0", category, messages, (FUNCTION,), answers))


def answer(text: str, finish: str = "stop") -> Generation:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    if finish == "stop":
        ids = [*ids, FACTS.stop_ids[0]]
    return Generation(tuple(ids), finish)  # type: ignore[arg-type]


def record(asked: Question, text: str, finish: str = "stop") -> Record:
    given = answer(text, finish)
    attempts = HERMES.parse(given.token_ids, TOKENIZER, asked.case.tools)
    return record_of("m", asked, given, attempts, facts=FACTS, tokenizer=TOKENIZER)


def call(city: str, name: str = "get_weather") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


SIMPLE, PARALLEL = question("simple_python", "Oslo"), question("parallel", "Oslo", "Rome")
QUIET, SOME = question("irrelevance"), question("live_relevance")
BROKEN = '<tool_call>\n{"name": "get_weather", \n</tool_call>'


@pytest.mark.parametrize(
    ("asked", "text", "verdict", "official"),
    [
        (SIMPLE, call("oslo"), "right", ""),
        (SIMPLE, call("Rome"), "other_arguments", "value_error:string"),
        (SIMPLE, call("Oslo", "find"), "wrong_tool", "simple_function_checker:wrong_func_name"),
        (SIMPLE, "It is cold.", "no_call", "simple_function_checker:wrong_count"),
        (SIMPLE, BROKEN, "malformed", "ast_decoder:decoder_failed"),
        (SIMPLE, call("Oslo") + call("Oslo"), "wrong_tool", "simple_function_checker:wrong_count"),
        (PARALLEL, call("Rome") + "\n" + call("Oslo"), "right", ""),
        (QUIET, "I cannot.", "right", ""),
        (QUIET, call("Oslo"), "false_call", "irrelevance_error:decoder_success"),
        (QUIET, BROKEN, "false_call", ""),
        (SOME, call("anywhere"), "right", ""),
        (SOME, "I cannot.", "no_call", "relevance_error:decoder_failed"),
        (SOME, BROKEN, "malformed", "relevance_error:decoder_failed"),
    ],
)
def test_an_answer_gets_our_verdict_and_the_official_one(
    asked: Question, text: str, verdict: str, official: str
) -> None:
    found = record(asked, text)
    assert found["verdict"] == verdict
    assert (found["official"]["valid"], found["official"]["reason"]) == (not official, official)


def test_rates_count_over_what_each_question_wants() -> None:
    records = [
        record(SIMPLE, call("Oslo")),
        record(SIMPLE, call("Rome")),
        record(SIMPLE, "No."),
        record(SOME, call("Oslo")),
        record(QUIET, call("Oslo")),
        record(QUIET, "No."),
    ]
    wants = {q.case.id: q.wants for q in (SIMPLE, SOME, QUIET)}
    found: Any = rates(records, wants)
    counted = {name: (r["k"], r["n"]) for name, r in found.items() if isinstance(r, dict)}
    assert counted["emission"] == (3, 4)
    assert counted["right_tool"] == (2, 2), "of live_relevance nobody knows the right tool"
    assert counted["right_call"] == (1, 2)
    assert counted["false_call"] == (1, 2)
    assert counted["bfcl"] == (3, 6)
    assert found["harness_errors"] == 0


def test_a_prompt_that_got_no_answer_is_in_no_rate() -> None:
    lost = record_of(
        "m", SIMPLE, Generation((), "error"), (), facts=FACTS, tokenizer=TOKENIZER, failure="500"
    )
    assert (lost["verdict"], lost["detail"]) == ("no_answer", "500")
    found: Any = rates([lost, record(SIMPLE, call("Oslo"))], {SIMPLE.case.id: "calls"})
    assert (found["emission"]["k"], found["emission"]["n"]) == (1, 1)
    assert found["harness_errors"] == 1
    alone: Any = rates([lost], {SIMPLE.case.id: "calls"})
    assert alone["emission"]["rate"] is None, "no cases is not 0%"


@pytest.mark.parametrize("asked", [SIMPLE, PARALLEL, QUIET, SOME], ids=lambda q: q.case.id)
def test_records_and_cases_from_a_file_give_the_same_verdicts_again(asked: Question) -> None:
    again = read_question(json.loads(json.dumps(question_row(asked))))
    for text in (call("Oslo"), call("Rome") + call("Oslo"), BROKEN, "No.", call("Oslo", "x")):
        first = json.loads(json.dumps(record(asked, text)))
        spoilt = {**first, "verdict": "right", "flags": {}, "official": None}
        assert judge_again(spoilt, again, FACTS) == first


class Failing:
    """Answers the first prompt and loses the others."""

    def __init__(self) -> None:
        self.failures = {1: "the server answered 500"}

    def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
        lost = [Generation((), "error") for _ in prompts[1:]]
        return [answer(call("Oslo")), *lost]


def test_what_a_server_loses_and_what_a_template_refuses_is_no_fault_of_the_model() -> None:
    refusing = (
        TEMPLATE + "{% if messages[0].content == 'X' %}{{ raise_exception('no') }}{% endif %}"
    )
    renderer = Renderer(refusing, TOKENIZER, FACTS)
    with pytest.raises(TemplateError):
        renderer.prompt_ids((Message("user", "X"),))
    odd = Question(
        "bfcl",
        read_question(
            {**question_row(SIMPLE), "messages": [{"role": "user", "content": "X"}]}
        ).case,
        "calls",
        SIMPLE.truth,
    )
    column = Column("m", renderer, HERMES, Failing(), 8, 8)
    found = ask_questions(column, [odd, SIMPLE, SIMPLE])
    assert [each["verdict"] for each in found] == ["no_answer", "right", "no_answer"]
    assert "no prompt" in found[0]["detail"]
    assert found[2]["detail"] == "the server answered 500"
