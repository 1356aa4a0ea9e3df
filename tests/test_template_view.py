"""`smollora template`: the text of transformers, the labels of training, and what is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from smollora.template_view import as_rich, show_template
from smollora.templates.engine import load_shipped
from test_inspection import model_folder
from tiny_runs import CHATML, smollora

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
THINKING = load_shipped("chatml_tools").replace(
    "{%- if message.reasoning_content -%}",
    "{%- if message.reasoning_content and loop.last -%}",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("m") / "m", load_shipped("chatml_tools"))


def chat_file(folder: Path, value: object = None) -> Path:
    path = folder / "chat.json"
    path.write_text(json.dumps(CHAT if value is None else value), encoding="utf-8")
    return path


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_text_is_that_of_apply_chat_template(model: Path, tools: Any, prompt: bool) -> None:
    theirs = AutoTokenizer.from_pretrained(model)
    chat = CHAT[:4] if prompt else CHAT
    view = show_template(str(model), chat, tools, add_generation_prompt=prompt)
    options = {"tools": tools, "add_generation_prompt": prompt}
    assert view.text == theirs.apply_chat_template(chat, tokenize=False, **options)
    assert list(view.token_ids) == theirs.apply_chat_template(chat, return_dict=False, **options)
    assert str(view) == view.text


def test_what_the_model_says_is_labelled_and_its_own(model: Path) -> None:
    """By hand: both turns with their stop token, without header and without the newline after."""
    view = show_template(str(model), CHAT, TOOLS)
    (row,) = view.rows
    assert "".join(row.tokens) == view.text
    labelled = [token for token, on in zip(row.tokens, row.labels, strict=True) if on]
    assert "".join(labelled) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        "<|im_end|>It rains.<|im_end|>"
    )
    owned = dict.fromkeys(range(5), "")
    for token, owner in zip(row.tokens, row.owners, strict=True):
        if owner >= 0:
            owned[owner] += token
    assert owned[0].strip() == "Be brief."
    assert owned[1] == "Weather in Oslo?"
    assert owned[3] == "rain"
    assert view.notes == ()


def test_a_prompt_has_owners_and_no_labels(model: Path) -> None:
    view = show_template(str(model), CHAT[:2], TOOLS, add_generation_prompt=True)
    (row,) = view.rows
    assert not any(row.labels)
    assert view.text.endswith("<|im_start|>assistant\n")
    said = "".join(t for t, owner in zip(row.tokens, row.owners, strict=True) if owner == 1)
    assert said == "Weather in Oslo?"


def test_what_the_template_drops_is_said(tmp_path: Path) -> None:
    view = show_template(str(model_folder(tmp_path / "m", CHATML)), CHAT, TOOLS)
    assert "the tools are lost: the text is the same without" in view.notes
    assert "message 3: its calls are lost: the text is the same without" in view.notes


def test_rewritten_history_is_shown_row_by_row(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a", "reasoning_content": "Hm."},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "b", "reasoning_content": "Oh."},
    ]
    view = show_template(str(model_folder(tmp_path / "m", THINKING)), chat)
    assert len(view.rows) == 2
    assert any("2 training rows" in note for note in view.notes)
    said = ["".join(t for t, on in zip(r.tokens, r.labels, strict=True) if on) for r in view.rows]
    assert sorted(said) == sorted(
        ["<think>\nHm.\n</think>\na<|im_end|>", "<think>\nOh.\n</think>\nb<|im_end|>"]
    )


def test_a_conversation_that_is_no_training_row_says_why(model: Path) -> None:
    unknown = {"type": "function", "function": {"name": "fly", "arguments": {}}}
    chat = [CHAT[1], {"role": "assistant", "content": "", "tool_calls": [unknown]}]
    view = show_template(str(model), chat, TOOLS)
    assert any("not a training row" in note and "fly" in note for note in view.notes)
    assert not any(view.rows[0].labels)


def test_the_frozen_day_is_said(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", load_shipped("smollm3"))
    talk = [*CHAT[:2], CHAT[4]]
    assert any("2025-07-08" in note for note in show_template(str(folder), talk).notes)
    view = show_template(str(folder), talk, date="2026-11-22")
    assert "22 November 2026" in view.text
    assert view.notes == ()
    assert "/no_think" in show_template(str(folder), CHAT[1:2], enable_thinking=False).text


# ── the command ───────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_the_text_and_nothing_else(model: Path, tmp_path: Path) -> None:
    path = chat_file(tmp_path, {"messages": CHAT, "tools": TOOLS})
    assert smollora("template", model, path).out == show_template(str(model), CHAT, TOOLS).text
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    said = smollora("template", model, chat_file(tmp_path), "--tools", tmp_path / "tools.json")
    assert said.out == show_template(str(model), CHAT, TOOLS).text


def test_json_holds_the_columns(model: Path, tmp_path: Path) -> None:
    found = json.loads(smollora("template", model, chat_file(tmp_path), "--json").out)
    (row,) = found["rows"]
    assert len({len(row[name]) for name in ("token_ids", "tokens", "owners", "labels")}) == 1
    assert found["roles"] == ["system", "user", "assistant", "tool", "assistant"]


def test_in_a_pipe_every_token_is_a_line_without_colour(model: Path, tmp_path: Path) -> None:
    said = smollora("template", model, chat_file(tmp_path, CHAT[1:2] + CHAT[4:]), "--tokens")
    assert "\x1b" not in said.out
    lines = said.out.splitlines()
    view = show_template(str(model), CHAT[1:2] + CHAT[4:])
    assert (
        lines[-1]
        == f"{len(view.token_ids)} tokens, {sum(view.rows[0].labels)} labelled in 1 places"
    )
    labelled = [json.loads(line.split("\t", 4)[4]) for line in lines if "\tlabelled\t" in line]
    assert "".join(labelled) == "It rains.<|im_end|>"


def test_on_a_terminal_owners_are_colours_and_control_characters_are_not_passed_on(
    model: Path,
) -> None:
    chat = [{"role": "user", "content": "\x1b]0;owned\x07"}, CHAT[4]]
    view = show_template(str(model), chat)
    for colour in (True, False):
        console = Console(force_terminal=True, record=True, width=80, file=io.StringIO())
        for line in as_rich(view, colour=colour):
            console.print(line)
        shown = console.export_text(styles=True)
        assert "\x1b]0" not in shown
        assert "\x07" not in shown
        assert ("\x1b[" in shown) is colour


@pytest.mark.parametrize("colour_off", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(
    colour_off: dict[str, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", **colour_off}.items():
        monkeypatch.setenv(name, value)
    assert "\x1b[" not in smollora("template", model, chat_file(tmp_path), "--tokens").out


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "no conversation"),
        ('{"mesages": []}', "no conversation"),
        ('{"messages": [], "tool": []}', "unknown key 'tool'"),
        ('[{"role": "user", "content": "x", "contnet": "y"}]', "unknown key 'contnet'"),
        ('["x"]', "message 1"),
        ('[{"content": "x"}]', "message 1"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": {}}', "tools"),
        ("[]", "without messages"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_one_message(
    written: str, word: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "chat.json").write_text(written, encoding="utf-8")
    said = smollora("template", model, tmp_path / "chat.json")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("error: ") == 1
    assert word in said.err


def test_files_and_settings_that_are_not_there_are_one_message(model: Path, tmp_path: Path) -> None:
    path = chat_file(tmp_path)
    for arguments in (
        [model, tmp_path / "none.json"],
        [model, tmp_path],
        [model, path, "--tools", tmp_path / "none.json"],
        [model, path, "--set", "enable_thinking"],
        [model, path, "--set", "messages=[]"],
        [model, path, "--date", "tomorrow"],
        [tmp_path / "no model", path],
    ):
        said = smollora("template", *arguments)
        assert said.code == 2, arguments
        assert said.err.count("error: ") == 1, said.err
