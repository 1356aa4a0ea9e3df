"""Near duplicates as a person sees them, against Jaccard similarity worked out exactly."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from smollora.data.duplicates import (
    Repeat,
    Sketch,
    bands,
    find_repeats,
    shingles,
    sketch,
)
from smollora.types import Conversation, Message, ToolCall, ToolSpec

FIND = ToolSpec("find", "Find", {"properties": {"what": {}}})
WORDS = [f"word{n}" for n in range(5000)]


def talk(text: str, *, tools: tuple[ToolSpec, ...] = ()) -> Conversation:
    return Conversation("x", "y", (Message("user", text), Message("assistant", "Yes.")), tools)


def repeats(*conversations: Conversation, threshold: float = 0.9) -> list[Repeat]:
    made = [sketch(conversation) for conversation in conversations]
    return find_repeats(
        b"".join(item.exact for item in made),
        [(row, value) for row, item in enumerate(made) for value in item.beginnings],
        bands([item.signature for item in made]),
        lambda wanted: [made[row].signature for row in wanted],
        threshold,
    )


def test_similar_pairs_are_found_as_often_as_minhash_promises() -> None:
    dice = random.Random(3)
    found = {True: 0, False: 0}
    asked = {True: 0, False: 0}
    for _ in range(150):
        words = dice.sample(WORDS, 120)
        other = list(words)
        for place in dice.sample(range(120), dice.choice([0, 1, 12])):
            other[place] = "changed"
        one, two = talk(" ".join(words)), talk(" ".join(other) + ".")
        left, right = shingles(one), shingles(two)
        exact = len(left & right) / len(left | right)
        if 0.8 < exact < 0.97:
            continue  # within the error of the estimate
        asked[exact >= 0.97] += 1
        found[exact >= 0.97] += bool(repeats(one, two, threshold=0.9))
    assert min(asked.values()) > 30
    assert found[True] == asked[True]
    assert found[False] == 0


def test_the_same_words_under_other_tools_are_another_lesson() -> None:
    text = "Please find the keys that I left somewhere in the house this morning"
    assert repeats(talk(text, tools=(FIND,)), talk(text)) == []
    other = replace(FIND, name="search")
    assert repeats(talk(text, tools=(FIND,)), talk(text, tools=(other,))) == []
    again = replace(talk(text, tools=(FIND,)), id="other", source="elsewhere")
    assert repeats(talk(text, tools=(FIND,)), again) == [Repeat(1, 0, "exact")]


def test_calls_count_to_what_is_said() -> None:
    def calling(what: str) -> Conversation:
        messages = (
            Message("user", "Find it"),
            Message("assistant", "", (ToolCall("find", {"what": what}),)),
        )
        return Conversation("x", "y", messages, (FIND,))

    assert repeats(calling("keys"), calling("hat")) == []
    assert repeats(calling("keys"), calling("keys")) == [Repeat(1, 0, "exact")]


def test_of_many_that_are_alike_the_first_stays() -> None:
    text = " ".join(WORDS[:200])
    alike = [talk(f"{text} {word}") for word in ("a", "b", "c", "d")]
    found = repeats(talk("Hello there, you"), *alike)
    assert [(repeat.index, repeat.of, repeat.how) for repeat in found] == [
        *((2, 1, "near"), (3, 1, "near"), (4, 1, "near"))
    ]


def test_without_signatures_only_equal_rows_are_found() -> None:
    made = [sketch(talk(text), near=False) for text in ("a b c", "a b c", "d")]
    assert all(isinstance(item, Sketch) and item.signature == b"" for item in made)
    exact = b"".join(item.exact for item in made)
    assert find_repeats(exact, [], None, lambda _: [], 0.9) == [Repeat(1, 0, "exact")]


@pytest.mark.parametrize("text", ["", "?", "one", "one two"])
def test_short_texts_have_a_signature_too(text: str) -> None:
    assert repeats(talk(text), talk("entirely different words here")) == []
