"""A question of an evaluation is found in training rows, and its neighbours are left alone."""

from __future__ import annotations

import pickle

import pytest

from smollora.data.overlap import Overlap
from smollora.types import Conversation, EvalCase, Message, ToolSpec

QUESTION = (
    "Find the area of a triangle with a base of 10 units and a height of 5 units, please,"
    " and tell me how you did it."
)
AREA = ToolSpec("triangle_area", "Area", {"properties": {"base": {}, "height": {}}})
CASES = [
    EvalCase("simple_0", "simple", (Message("user", QUESTION),), (AREA,)),
    EvalCase("short_0", "short", (Message("user", "Hello there!"),)),
    EvalCase("short_1", "short", (Message("user", "What is the time?"),)),
]


def asked(text: str, *tools: ToolSpec) -> Conversation:
    return Conversation("x", "y", (Message("user", text), Message("assistant", "Ok.")), tools)


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        QUESTION.upper().replace(",", ""),
        f"Hi! {QUESTION} Thank you.",
        QUESTION.replace(", please,", ", please, do,"),
        "what is the TIME",
    ],
)
def test_a_question_is_found_however_it_is_wrapped(text: str) -> None:
    found = Overlap(CASES).of(asked(text))
    assert found is not None and found.what == "prompt"
    assert found.case == ("short_1" if "TIME" in text and len(text) < 20 else "simple_0")


@pytest.mark.parametrize(
    "text",
    [
        "Hello there!",
        "Find the area of a circle with a radius of 10 units.",
        "What is the time in Lisbon when it is noon in Tokyo?",
        QUESTION[:40],
        "",
    ],
)
def test_another_question_is_not(text: str) -> None:
    assert Overlap(CASES).of(asked(text)) is None


def test_a_tool_is_the_same_when_name_and_parameters_are() -> None:
    overlap = pickle.loads(pickle.dumps(Overlap(CASES)))
    same = ToolSpec("Triangle_Area", "Other words", {"properties": {"height": {}, "base": {}}})
    found = overlap.of(asked("How large?", same))
    assert found is not None and (found.what, found.case) == ("tool", "simple_0")
    wider = ToolSpec("triangle_area", "", {"properties": {"base": {}, "height": {}, "unit": {}}})
    assert overlap.of(asked("How large?", wider)) is None
