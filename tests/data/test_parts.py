"""Every labelled token has its part, and the weight of its part."""

from __future__ import annotations

from itertools import groupby

from smollora.config import PartWeights
from smollora.data.parts import parts_of, training_row
from smollora.formats.hermes import HERMES
from smollora.tokens import read_token_facts
from smollora.types import PARTS, Rendered
from tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FACTS = read_token_facts(TOKENIZER, HERMES, "")

PIECES = [
    ("rain?", None),
    ("I look.\n", "text"),
    ("<tool_call>", "open"),
    ('\n{"name": "rain", "arguments"', "name"),
    (': {"city": "Porto"}}\n', "arguments"),
    ("</tool_call>", "close"),
    ("\n", "close"),
    ("<tool_call>", "open"),
    ('\n{"name": "rain", "arguments"', "name"),
    (": {}}\n", "arguments"),
    ("</tool_call>", "close"),
    ("<|im_end|>", "close"),
    ("\n<tool_call>", None),
    ("Yes.<|im_end|>", "text"),
]
"""An answer by hand; a token that ends the key "arguments" may count to either side."""


def row() -> Rendered:
    ids = [TOKENIZER.encode(text) for text, _ in PIECES]
    trained = [part is not None for _, part in PIECES]
    flags = [flag for piece, flag in zip(ids, trained, strict=True) for _ in piece]
    flat = tuple(token for piece in ids for token in piece)
    return Rendered("a", flat, (0,) * len(flat), tuple(flags))


def test_parts_follow_each_other_as_the_answer_is_written() -> None:
    found = parts_of(row(), FACTS, TOKENIZER)
    assert [part for part, _ in groupby(found)] == [
        *(None, "text"),
        *("open", "name", "arguments", "close"),
        *("open", "name", "arguments", "close"),
        *(None, "text"),
    ]


def test_parts_hold_the_text_that_their_name_says() -> None:
    made = row()
    columns = zip(parts_of(made, FACTS, TOKENIZER), made.token_ids, strict=True)
    said = [
        TOKENIZER.decode([token for _, token in group])
        for _, group in groupby(columns, key=lambda column: column[0])
    ]
    assert "".join(said) == "".join(text for text, _ in PIECES)
    assert said[2] == said[6] == "<tool_call>"
    assert "rain" in said[3]
    assert '{"city": "Porto"}}\n' in said[4]
    assert "rain" not in said[4]
    assert said[5] == "</tool_call>\n"
    assert said[9] == "</tool_call><|im_end|>"
    assert said[11] == "Yes.<|im_end|>"


def test_a_token_weighs_what_its_part_weighs_and_nothing_outside_the_label() -> None:
    weights = PartWeights(open=5, name=2, arguments=3, close=7, text=0.5)
    made = row()
    weighted = training_row(made, FACTS, TOKENIZER, weights, has_tools=True)
    of_part = {None: 0.0, "open": 5, "name": 2, "arguments": 3, "close": 7, "text": 0.5}
    parts = parts_of(made, FACTS, TOKENIZER)
    assert list(weighted.weights) == [of_part[part] for part in parts]
    assert [PARTS[code] if code >= 0 else None for code in weighted.parts] == list(parts)
    assert weighted.token_ids == made.token_ids


def test_not_calling_has_its_own_weight_where_tools_are_on_offer() -> None:
    made, weights = row(), PartWeights(no_call=9, text=0.5)
    plain = training_row(made, FACTS, TOKENIZER, weights, has_tools=False)
    decided = training_row(made, FACTS, TOKENIZER, weights, has_tools=True)
    assert set(plain.weights) == {0.0, 0.5, 1.0} and plain.refusals == ()
    starts = [
        index
        for index, trained in enumerate(made.trained)
        if trained and not made.trained[index - 1]
    ]
    assert len(starts) == 2
    assert [i for i, weight in enumerate(decided.weights) if weight == 9] == starts
    assert decided.refusals == tuple((start, FACTS.open.id, 0.5) for start in starts)
    unsaid = training_row(made, FACTS, TOKENIZER, PartWeights(text=0.5), has_tools=True)
    assert unsaid.weights == plain.weights and unsaid.refusals == ()


def test_without_an_opening_token_there_is_nothing_to_refuse() -> None:
    spelled = FACTS.model_copy(update={"open": FACTS.open.model_copy(update={"id": None})})
    made = training_row(row(), spelled, TOKENIZER, PartWeights(no_call=9), has_tools=True)
    assert made.refusals == () and set(made.weights) == {0.0, 1.0}


def test_an_answer_that_begins_with_a_call_refuses_none() -> None:
    tokens = TOKENIZER.encode('<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call>')
    made = Rendered("a", (1, *tokens), (0,) * (1 + len(tokens)), (False, *[True] * len(tokens)))
    weights = PartWeights(no_call=9, open=4)
    weighted = training_row(made, FACTS, TOKENIZER, weights, has_tools=True)
    assert weighted.weights[:2] == (0.0, 4.0)
    assert 9 not in weighted.weights and weighted.refusals == ()
