"""Each check of an instruction, by hand: an answer that keeps to it and one that does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from smollora.evaluate.instructions import CHECKS, follows, load_instructions

GOOD_AND_BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"kind": "at_least_words", "n": 3}, "one two three", "one two-three"),
    ({"kind": "at_most_words", "n": 2}, "don't stop", "do not stop"),
    ({"kind": "lines", "n": 2}, "a\nb", "a b"),
    ({"kind": "paragraphs", "n": 2}, "a\nb\n\nc", "a\nb\nc"),
    ({"kind": "bullets", "n": 2}, "Here:\n- a\n* b", "- a\n- b\n- c"),
    ({"kind": "numbered", "n": 2}, "1. a\n2. b", "1. a\n3. b"),
    ({"kind": "lower_case"}, "all small, 3 times", "Not small"),
    ({"kind": "upper_case"}, "WET PAINT!", "WET paint"),
    ({"kind": "contains", "words": ["cat", "4|four"]}, "Four with a Cat.", "Four cats"),
    ({"kind": "lacks", "words": ["hot"]}, "A shot of warmth", "It is hot."),
    ({"kind": "times", "word": "go", "n": 2}, "Go, go!", "Go, gone"),
    ({"kind": "starts_with", "phrase": "Of course!"}, "of course! A noun", "A noun, of course!"),
    ({"kind": "ends_with", "phrase": "Good luck!"}, "Save. Good luck!\n", "Good luck! Bye"),
    ({"kind": "postscript", "phrase": "P.S."}, "Dear you\n\nP.S. bye", "P.S. is no letter"),
    ({"kind": "no_commas"}, "none here", "one, here"),
    ({"kind": "quoted"}, '"Arr!"', 'He said "Arr!"'),
    ({"kind": "titled"}, "<<Spring>>\nA rose", "<< >> Spring"),
    ({"kind": "placeholders", "n": 2}, "Dear [name], on [date]", "Dear [name], on []"),
    ({"kind": "highlighted", "n": 1}, "so *very* good", "5 * 3 * 2"),
    ({"kind": "json", "keys": ["a"]}, '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ({"kind": "json", "keys": []}, '["red"]', '{"red": 1}'),
    ({"kind": "exactly", "options": ["yes", "no"]}, " yes\n", "Yes."),
    ({"kind": "parts", "mark": "******", "n": 2}, "a dog\n******\na cat", "******a cat"),
]


@pytest.mark.parametrize(("check", "good", "bad"), GOOD_AND_BAD, ids=lambda x: str(x)[:24])
def test_a_check_holds_for_what_keeps_to_it_only(
    check: dict[str, Any], good: str, bad: str
) -> None:
    assert follows(good, [check]) == {check["kind"]: True}
    assert follows(bad, [check]) == {check["kind"]: False}


def test_every_kind_of_check_is_tried_here_and_asked_somewhere() -> None:
    asked = Counter(check["kind"] for each in load_instructions() for check in each.checks)
    assert {check["kind"] for check, _, _ in GOOD_AND_BAD} == set(CHECKS) == set(asked)


def test_an_empty_answer_follows_nothing() -> None:
    assert follows(" \n", [{"kind": "no_commas"}, {"kind": "at_most_words", "n": 3}]) == {
        "no_commas": False,
        "at_most_words": False,
    }


def test_there_are_sixty_instructions_and_more_each_with_its_own_prompt() -> None:
    every = load_instructions()
    assert len(every) >= 60
    assert len({each.id for each in every}) == len({each.prompt for each in every}) == len(every)
    for each in every:
        kinds = [check["kind"] for check in each.checks]
        assert len(set(kinds)) == len(kinds) > 0
        follows("some answer", each.checks)  # every check takes the values that it is given
