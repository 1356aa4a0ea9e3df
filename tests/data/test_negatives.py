"""Built rows are marked, their tools have nothing to do with the request, and a seed fixes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from small_sets import said, small_renderer, small_section
from smollora.config import PrepareSection, SourceSection
from smollora.data.negatives import MOST_OFFERED, Negatives, collect_pool, tool_words, words
from smollora.data.prepare import plan_negatives, prepare_rows
from smollora.errors import DataError
from smollora.types import Conversation, Message, ToolSpec

WEATHER = ToolSpec("get_weather", "Forecast for a city", {})
MAIL = ToolSpec("sendEmail", "Sends an email message", {})
STOCK = ToolSpec("stock_price", "Price of a share", {})
POOL = (WEATHER, MAIL, STOCK)


def asked(text: str, name: str = "c") -> Conversation:
    return Conversation(name, "chat", (Message("user", text), Message("assistant", "So so.")))


def built(text: str, row: int = 1, share: float = 1.0, seed: int = 7) -> Conversation | None:
    return Negatives(POOL, share, seed).of(asked(text), row)


def test_a_built_row_is_the_same_exchange_beside_tools_and_is_marked() -> None:
    made = built("Who wrote Faust?")
    assert made is not None
    assert made.messages == asked("Who wrote Faust?").messages
    assert made.kind == "no_call"
    assert (made.id, made.source) == ("c:built", "chat:built")
    assert 1 <= len(made.tools) <= MOST_OFFERED
    assert {tool.name for tool in made.tools} <= {tool.name for tool in POOL}


def test_no_offered_tool_shares_a_content_word_with_the_request() -> None:
    for row in range(200):
        made = built("Which emails and which stocks matter to the city?", row)
        assert made is None, [tool.name for tool in made.tools]
        made = built("Write an email about prices", row)
        assert made is not None and [tool.name for tool in made.tools] == ["get_weather"]


def test_words_take_names_apart_and_forget_what_all_texts_share() -> None:
    assert tool_words(MAIL) == {"send", "email", "message"}
    assert words("Tell me what the get_weather tools give") == {"weather", "tool"}


def test_rows_with_tools_or_calls_or_that_are_not_drawn_get_none() -> None:
    negatives = Negatives(POOL, 1.0, 7)
    assert negatives.of(replace(asked("Who?"), tools=(MAIL,)), 1) is None
    assert Negatives((), 1.0, 7).of(asked("Who?"), 1) is None
    drawn = sum(built("Who?", row, share=0.25) is not None for row in range(2000))
    assert 420 < drawn < 580  # 500 expected, four standard deviations are 77


def test_a_seed_and_a_row_fix_what_is_built() -> None:
    assert built("Who?", 3) == built("Who?", 3)
    several = {str(built("Who?", row)) for row in range(50)}
    assert len(several) > 3
    assert any(built("Who?", row, seed=8) != built("Who?", row) for row in range(9))


def test_the_pool_is_the_first_tools_by_name() -> None:
    other = replace(MAIL, description="Another")
    talks = [replace(asked("a"), tools=(MAIL, STOCK)), replace(asked("b"), tools=(other, WEATHER))]
    assert collect_pool(talks) == (MAIL, STOCK, WEATHER)
    assert collect_pool(talks, 1) == (MAIL,)


def test_the_recipe_key_is_off_by_default_and_marks_what_it_builds(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)
    plain = prepare_rows(small_section(tmp_path), renderer, seed=7)
    assert not any(row.built for row in plain.rows)
    made = prepare_rows(small_section(tmp_path, negatives=1.0), renderer, seed=7)
    extra = [row for row in made.rows if row.built]
    assert [row for row in made.rows if not row.built] == list(plain.rows)
    assert len(extra) == 60
    assert {(row.source, row.group, row.kind) for row in extra} == {
        ("b:built", "general", "no_call")
    }
    assert made.rows_in == plain.rows_in


def test_negatives_without_a_single_tool_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(said("1?", "1")))
    source = SourceSection(name="s", path=str(path), kind="general")
    with pytest.raises(DataError, match="needs tools"):
        plan_negatives(PrepareSection(sources=(source,), negatives=0.5), 7)
