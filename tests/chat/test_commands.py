"""Slash commands and turns, with a scripted model and nobody at the keyboard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_parts import call_text, write_chat_model
from scripted_chat import ScriptedStream

from smollora.chat.answerer import Answer
from smollora.chat.commands import COMMANDS, Talk, run_command
from smollora.chat.local import LocalAnswerer, OpenedModel, open_local
from smollora.chat.session import Session
from smollora.chat.settings import Settings
from smollora.chat.tools import Outcome, Toolbox
from smollora.chat.turn import take_turn
from smollora.chat.visible import visible
from smollora.errors import DataError, SmolloraError
from smollora.templates.engine import load_shipped
from smollora.types import Message, ToolCall, ToolSpec

LOOK = ToolSpec(
    "look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}, "required": []}
)
READS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n{% endif %}"
)


class Scripted(Talk):
    """A `Talk` with a scripted stream."""

    stream: ScriptedStream


def talk_with(folder: Path, answers: Sequence[Any], tools: tuple[ToolSpec, ...] = ()) -> Scripted:
    opened = open_local(str(folder))
    answerer = opened.answerer
    stream = ScriptedStream(answerer.tokenizer, answers)
    answerer._stream = lambda: stream  # type: ignore[assignment, return-value]
    talk = Scripted(Session(tools=tools), answerer, Toolbox(tools))
    talk.stream = stream
    return talk


class Quiet:
    """A person who sees everything, types `result`, and allows nothing."""

    def __init__(self, result: str | None = None) -> None:
        self.told: list[tuple[str, str]] = []
        self.notices: list[str] = []
        self.result = result

    def tell(self, kind: str, text: str) -> None:
        self.told.append((kind, text))

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def answered(self, answer: Answer) -> None:
        pass

    def allows(self, call: ToolCall, box: Toolbox) -> bool:
        return False

    def types_result(self, call: ToolCall) -> str | None:
        return self.result

    def run(self, call: ToolCall, box: Toolbox, session: Session) -> Outcome:
        raise AssertionError("nothing was allowed")


def say(talk: Scripted, text: str, person: Quiet | None = None) -> Quiet:
    person = person or Quiet()
    turn = take_turn(talk.session, text, talk.answerer, talk.box, person)  # type: ignore[arg-type]
    talk.session, talk.last = turn.session, turn.answers
    return person


def shown(talk: Talk, line: str) -> str:
    return "\n".join(text.plain for text in run_command(talk, line))


# ── turns ─────────────────────────────────────────────────────────────────────────────────────


def test_the_prompt_is_the_one_that_transformers_renders(chat_model: Path) -> None:
    from transformers import AutoTokenizer

    talk = talk_with(chat_model, ["Good day.", "Good night."])
    say(talk, "Hello.")
    say(talk, "Bye.")
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Bye."},
    ]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert shown(talk, "/prompt") == expected
    assert list(talk.stream.prompts[1]) == tokenizer.encode(expected, add_special_tokens=False)


def test_a_result_that_the_person_types_is_fed_back(chat_model: Path) -> None:
    talk = talk_with(chat_model, [call_text("look", at="it"), "It is 42."], (LOOK,))
    person = say(talk, "Look.", Quiet("42"))
    assert talk.session.messages == (
        Message("user", "Look."),
        Message("assistant", "", (ToolCall("look", {"at": "it"}),)),
        Message("tool", "42", name="look"),
        Message("assistant", "It is 42."),
    )
    assert ("call", "") in person.told
    assert "".join(text for kind, text in person.told if kind == "text") == "It is 42."


def test_two_calls_of_one_answer_get_a_result_each(chat_model: Path) -> None:
    both = f"First. {call_text('look', at='a')}\n{call_text('look', at='b')}"
    talk = talk_with(chat_model, [both, "Done."], (LOOK,))
    say(talk, "Look twice.", Quiet("seen"))
    assert [m.role for m in talk.session.messages] == [
        *("user", "assistant", "tool", "tool", "assistant")
    ]
    assert talk.session.messages[1].content == "First."


@pytest.mark.parametrize(
    ("said", "notice"),
    [
        ("<tool_call>\n{broken\n</tool_call>", "not written as"),
        ('<tool_call>\n{"name": "look"', "begun and not ended"),
        ('<tool_call>\n{"arguments": {}}\n</tool_call>', "names no tool"),
        ('{"name": "look", "arguments": {}}', "ordinary tokens"),
    ],
)
def test_a_call_that_cannot_be_read_is_kept_said_and_not_run(
    chat_model: Path, said: str, notice: str
) -> None:
    talk = talk_with(chat_model, [said], (LOOK,))
    person = say(talk, "Look.", Quiet("42"))
    assert any(notice in line for line in person.notices)
    assert talk.session.messages[-1] == Message("assistant", said)


def test_an_unknown_tool_and_bad_arguments_are_told_to_the_model(chat_model: Path) -> None:
    answers = [call_text("lok"), call_text("look", at=3), "Sorry."]
    talk = talk_with(chat_model, answers, (LOOK,))
    say(talk, "Look.", Quiet("never"))
    results = [json.loads(m.content) for m in talk.session.messages if m.role == "tool"]
    assert "no tool" in results[0]["error"] and "schema" in results[1]["error"]


def test_a_full_context_drops_the_oldest_and_says_so(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "m", load_shipped("chatml_tools"), context=256)
    talk = talk_with(folder, ["word " * 20] * 8)
    talk.session = Session(settings=Settings(max_new_tokens=100))
    notices: list[str] = []
    for number in range(6):
        notices += say(talk, f"Question {number}?").notices
    assert any("oldest" in line and "no longer shown" in line for line in notices)
    assert all(len(prompt) <= 156 for prompt in talk.stream.prompts)
    assert len(talk.session.messages) == 12
    with pytest.raises(DataError, match="context has room for 156"):
        say(talk, "long " * 200)


def test_thoughts_are_told_apart_and_kept_as_reasoning(chat_model: Path) -> None:
    talk = talk_with(chat_model, ["<think>\nHm.\n</think>\n\nYes."])
    person = say(talk, "Really?")
    assert talk.session.messages[-1] == Message("assistant", "Yes.", reasoning="Hm.")
    assert "".join(text for kind, text in person.told if kind == "thought").strip() == "Hm."


# ── commands ──────────────────────────────────────────────────────────────────────────────────


def test_help_names_every_command(chat_model: Path) -> None:
    text = shown(talk_with(chat_model, []), "/help")
    assert all(f"/{name}" in text for name in COMMANDS)


def test_set_changes_the_next_answer(chat_model: Path) -> None:
    talk = talk_with(chat_model, [{"repeat": "so "}])
    assert shown(talk, "/set max_new_tokens 3") == "max_new_tokens 3"
    say(talk, "Go on.")
    assert talk.last[0].finish == "length" and len(talk.last[0].token_ids or ()) == 3
    assert "no effect" in shown(talk, "/set temperature 0.9")
    assert "no effect" not in shown(talk, "/set do_sample true")
    assert "temperature 0.9" in shown(talk, "/set")


def test_raw_shows_ids_and_what_they_are(chat_model: Path) -> None:
    talk = talk_with(chat_model, [call_text("look"), "Done."], (LOOK,))
    assert "nothing" in shown(talk, "/raw")
    say(talk, "Look.", Quiet("42"))
    tokenizer = talk.answerer.tokenizer  # type: ignore[attr-defined]
    rows = [line.split("\t") for line in shown(talk, "/raw").splitlines() if "\t" in line]
    ids = [int(row[0]) for row in rows]
    opening, closing = (tokenizer.convert_tokens_to_ids(t) for t in ("<tool_call>", "</tool_call>"))
    assert [row[1] for row in rows if int(row[0]) == opening] == ["open"]
    assert [row[1] for row in rows if int(row[0]) == closing] == ["close"]
    assert [row[1] for row in rows].count("stop") == 2
    assert tokenizer.decode(ids).count("<|im_end|>") == 2


def test_think_where_the_template_reads_it_and_where_not(tmp_path: Path, chat_model: Path) -> None:
    assert "does not read enable_thinking" in shown(talk_with(chat_model, []), "/think")
    folder = write_chat_model(tmp_path / "m", READS_THINKING)
    talk = talk_with(folder, ["Yes."])
    assert shown(talk, "/think") == "enable_thinking true"
    assert shown(talk, "/think") == "enable_thinking false"
    say(talk, "Really?")
    assert shown(talk, "/prompt").endswith("<think>\n\n</think>\n")


def test_save_reset_load_undo(chat_model: Path, tmp_path: Path) -> None:
    talk = talk_with(chat_model, ["One.", "Two."])
    say(talk, "First?")
    say(talk, "Second?")
    before = talk.session.messages
    assert "4 messages" in shown(talk, f"/save {tmp_path / 'my talk.json'}")
    assert shown(talk, "/reset") == "a new conversation" and talk.session.messages == ()
    assert "> Second?" in shown(talk, f"/load {tmp_path / 'my talk.json'}")
    assert talk.session.messages == before
    assert "2 messages are left" in shown(talk, "/undo")
    shown(talk, "/undo")
    assert shown(talk, "/undo") == "nothing to take back"


@pytest.mark.parametrize("line", ["/nope", "/", "/save", "/load nowhere.json", "/set seed"])
def test_what_cannot_be_done_says_what_can(chat_model: Path, line: str) -> None:
    with pytest.raises(SmolloraError) as found:
        run_command(talk_with(chat_model, []), line)
    assert found.value.hint


def test_tools_that_the_template_does_not_show_are_said(tmp_path: Path, chat_model: Path) -> None:
    folder = write_chat_model(tmp_path / "m", READS_THINKING)
    lost = talk_with(folder, [], (LOOK,))
    assert "does not show tools" in lost.answerer.notes(lost.session)[0]
    kept = talk_with(chat_model, [], (LOOK,))
    assert kept.answerer.notes(kept.session) == []


# ── what is printed ───────────────────────────────────────────────────────────────────────────


def test_what_a_terminal_might_obey_is_shown_as_its_code() -> None:
    assert visible("a\x1b[31mb\r\x9b\x7f\u202e\u2066") == (
        "a⟨001B⟩[31mb⟨000D⟩⟨009B⟩⟨007F⟩⟨202E⟩⟨2066⟩"
    )
    assert visible("é\u00a0日本 👩\u200d🔬\n\t") == "é\u00a0日本 👩\u200d🔬\n\t"


def test_weights_are_waited_for_and_their_error_is_the_answer(chat_model: Path) -> None:
    opened = OpenedModel(chat_model)
    with pytest.raises(SmolloraError, match="cannot load the model"):
        opened.stream()
    assert isinstance(open_local(str(chat_model)).answerer, LocalAnswerer)


# ── what cannot be talked to ──────────────────────────────────────────────────────────────────


def test_without_a_model_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SmolloraError) as found:
        open_local(None)
    assert "runs/starter" in found.value.message and "smollora run" in found.value.hint
    merged = tmp_path / "runs" / "starter" / "merge"
    merged.mkdir(parents=True)
    (merged / "model").symlink_to(chat_model)
    assert open_local(None).folder == open_local("runs/starter").folder


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "no safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_model_that_lacks_something_is_refused_before_anything_is_typed(
    tmp_path: Path, gone: str, words: str
) -> None:
    folder = write_chat_model(tmp_path / "m", load_shipped("chatml_tools"))
    (folder / gone).unlink()
    with pytest.raises(SmolloraError, match=words) as found:
        open_local(str(folder))
    assert found.value.exit_code == 2 and found.value.hint
