"""Conversations as values: undo, save, load, and what is dropped from a full context."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smollora.chat.session import Session, emptied, fit, load, room_for_prompt, said, save, undone
from smollora.chat.settings import Settings, changed, from_generation_config
from smollora.errors import ConfigError, DataError
from smollora.template_view import read_chat
from smollora.types import Message, ToolCall, ToolSpec

TOOL = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}})
ASKED = (
    Message("user", "Look."),
    Message("assistant", "", (ToolCall("look", {"at": "it"}, "call1"),)),
    Message("tool", "42", call_id="call1", name="look"),
    Message("assistant", "It is 42."),
)


def test_undo_takes_back_question_calls_results_and_answer() -> None:
    session = Session(messages=(Message("user", "Hi"), Message("assistant", "Hello"), *ASKED))
    assert undone(session).messages == session.messages[:2]
    assert undone(undone(undone(session))).messages == ()


def test_reset_keeps_system_tools_and_settings() -> None:
    session = Session("Be brief.", ASKED, (TOOL,), Settings(seed=3), True, start=4)
    assert emptied(session) == Session("Be brief.", (), (TOOL,), Settings(seed=3), True)


texts = st.text(max_size=20)
answers = st.builds(Message, st.just("assistant"), texts, reasoning=texts)
exchange = st.tuples(st.builds(Message, st.just("user"), texts), answers)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(exchange, max_size=4), texts, st.integers(1, 900))
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[Message, ...]], system: str, n: int
) -> None:
    path = tmp_path_factory.mktemp("saved") / "talk.json"
    messages = (*(message for turn in turns for message in turn), *ASKED)
    session = Session(system, messages, (TOOL,), Settings(max_new_tokens=n))
    save(session, path)
    assert load(Session(tools=(TOOL,)), path) == session


def test_a_saved_conversation_is_one_for_smollora_template(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(Session("Be brief.", ASKED, (TOOL,), Settings(seed=1)), path)
    messages, tools = read_chat(path)
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "tool", "assistant")
    ]
    assert tools == [TOOL.as_openai()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"messages": 3}',
        '[{"role": "wizard", "content": "x"}]',
        '[{"role": "user", "content": 3}]',
        '[{"role": "assistant", "tool_calls": 3}]',
        '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]',
        '[{"role": "assistant", "tool_calls": [3]}]',
        '{"messages": [], "settings": {"warmth": 3}}',
        '{"messages": [], "settings": {"temperature": -1}}',
    ],
)
def test_a_file_that_is_no_conversation_is_one_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as found:
        load(Session(), path)
    assert found.value.hint


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        save(Session(messages=ASKED), tmp_path / "file" / "talk.json")


# ── a full context ────────────────────────────────────────────────────────────────────────────


def words(session: Session) -> int:
    return sum(len(message.content.split()) for message in session.shown)


def talk(*lengths: int) -> Session:
    """A question and an answer of so many words each, and a last question of the last length."""
    messages = []
    for length in lengths[:-1]:
        messages += [Message("user", "q " * length), Message("assistant", "a " * length)]
    return Session("s s", (*messages, Message("user", "q " * lengths[-1])))


def test_what_fits_is_left_alone() -> None:
    session = talk(10, 10, 10)
    assert fit(session, words, 52) is session


def test_the_oldest_exchanges_go_first_until_three_quarters_are_used() -> None:
    session = fit(talk(10, 10, 10, 10), words, 60)
    assert session.start == 4
    assert words(session) == 2 + 20 + 10
    assert session.messages == talk(10, 10, 10, 10).messages


def test_the_question_itself_always_stays() -> None:
    assert fit(talk(10, 10, 38), words, 40).shown[1:] == (Message("user", "q " * 38),)


def test_a_question_that_is_too_long_alone_is_refused() -> None:
    with pytest.raises(DataError, match="42 tokens of prompt, and the context has room for 41"):
        fit(talk(10, 40), words, 41)


def test_an_exchange_with_calls_is_dropped_whole() -> None:
    session = said(Session(messages=ASKED), Message("user", "And now?"))
    dropped = fit(session, words, 3)
    assert dropped.shown == (Message("user", "And now?"),)


def test_what_was_dropped_comes_back_when_it_is_undone() -> None:
    session = replace(talk(10, 10, 10), start=4)
    assert undone(undone(session)).start == 2


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 200))
def test_what_is_shown_fits_or_is_refused(lengths: list[int], room: int) -> None:
    session = talk(*lengths)
    try:
        fitted = fit(session, words, room)
    except DataError:
        assert 2 + lengths[-1] > room
    else:
        assert words(fitted) <= room
        assert fitted.shown[-1] == session.messages[-1]


def test_half_of_the_context_at_most_is_kept_for_the_answer() -> None:
    assert room_for_prompt(1000, Settings(max_new_tokens=200)) == 800
    assert room_for_prompt(1000, Settings(max_new_tokens=5000)) == 500


# ── settings ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        *[("temperature", "0.7", 0.7), ("max_new_tokens", "64", 64), ("seed", "none", None)],
        *[("do_sample", "true", True), ("do_sample", "False", False), ("seed", "7", 7)],
    ],
)
def test_a_setting_is_read_as_it_is_typed(key: str, typed: str, value: object) -> None:
    assert getattr(changed(Settings(), key, typed), key) == value


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        *[("temperature", "0"), ("temperature", "-1"), ("temperature", "hot"), ("top_p", "1.5")],
        *[("max_new_tokens", "0"), ("max_new_tokens", "1e400"), ("seed", "-1"), ("warmth", "1")],
        *[("temperature", "nan"), ("repetition_penalty", "0"), ("top_p", "none")],
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_can(key: str, typed: str) -> None:
    with pytest.raises(ConfigError) as found:
        changed(Settings(), key, typed)
    assert found.value.hint


def test_the_model_says_how_it_wants_to_be_sampled() -> None:
    found = from_generation_config({"do_sample": True, "temperature": 0.6, "eos_token_id": 2})
    assert found.model_dump(exclude_unset=True) == {"do_sample": True, "temperature": 0.6}
    assert from_generation_config({"temperature": 0}) == Settings()


def test_settings_are_numbers_of_json(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(Session(settings=changed(Settings(), "seed", "3")), path)
    assert json.loads(path.read_text(encoding="utf-8"))["settings"] == {"seed": 3}
