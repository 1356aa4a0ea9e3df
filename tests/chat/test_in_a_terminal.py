"""The chat in a real pseudo-terminal, and in a pipe; the weights are a script, the rest is real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from chat_parts import HERE, Start, call_text
from pseudo_terminal import CTRL_C, CTRL_D


def test_a_tool_runs_after_a_yes_and_not_after_a_no(
    start: Start, tool_file: Path, tmp_path: Path
) -> None:
    yes, no = tmp_path / "yes", tmp_path / "no"
    answers = [
        call_text("leave_a_mark", path=str(yes)),
        "It is written.",
        call_text("leave_a_mark", path=str(no)),
        "Then not.",
    ]
    chat = start(answers, "--tools", tool_file)
    chat.wait_for("> ")
    chat.type("Write a file.")
    asked = chat.wait_for("[y/N] ")
    assert "leave_a_mark" in asked and str(yes) in asked and "your own rights" in asked
    assert not yes.exists()
    chat.type("y")
    chat.wait_for("It is written.")
    assert yes.exists()
    chat.wait_for("> ")
    chat.type("Another one.")
    chat.wait_for("[y/N] ")
    chat.type("")
    chat.wait_for("was not run")
    chat.wait_for("Then not.")
    chat.wait_for("> ")
    chat.type("/prompt")
    prompt = chat.wait_for("> ")
    assert "<tool_response>\nwritten\n</tool_response>" in prompt
    assert "the user did not allow leave_a_mark to run" in prompt
    chat.type("/quit")
    assert chat.ends() == 0
    assert not no.exists()


@pytest.mark.parametrize("typed", ["yeah", "Y E S", "n", CTRL_D, CTRL_C])
def test_only_yes_is_yes(start: Start, tool_file: Path, tmp_path: Path, typed: str) -> None:
    mark = tmp_path / "mark"
    chat = start([call_text("leave_a_mark", path=str(mark)), "Well."], "--tools", tool_file)
    chat.wait_for("> ")
    chat.type("Write a file.")
    chat.wait_for("[y/N] ")
    chat.rest()
    chat.type(typed, end="" if typed in (CTRL_C, CTRL_D) else "\n")
    chat.wait_for("was not run")
    chat.wait_for("Well.")
    assert not mark.exists()


def test_ctrl_c_stops_the_answer_and_twice_at_the_prompt_the_program(start: Start) -> None:
    chat = start([{"repeat": "on and on "}, "Still here."])
    chat.wait_for("> ")
    chat.type("Talk.")
    chat.wait_for("on and on on and on")
    chat.press(CTRL_C)
    chat.wait_for("[stopped]")
    chat.wait_for("> ")
    chat.type("Are you there?")
    chat.wait_for("Still here.")
    chat.wait_for("> ")
    chat.rest()
    chat.press(CTRL_C)
    chat.wait_for("once more")
    chat.wait_for("> ")
    chat.rest()
    chat.press(CTRL_C)
    assert chat.ends() == 130
    assert "finished stages" not in chat.text and "Traceback" not in chat.text


def test_ctrl_d_leaves(start: Start) -> None:
    chat = start([])
    chat.wait_for("> ")
    chat.rest()
    chat.press(CTRL_D)
    assert chat.ends() == 0
    assert "Traceback" not in chat.text


def test_ctrl_c_ends_a_tool_that_never_does(start: Start, tool_file: Path) -> None:
    chat = start([call_text("hang"), "A pity."], "--tools", tool_file)
    chat.wait_for("> ")
    chat.type("Hang.")
    chat.wait_for("[y/N] ")
    chat.type("y")
    chat.wait_for("Ctrl-C ends it")
    chat.press(CTRL_C)
    chat.wait_for("interrupted by the person")
    chat.wait_for("A pity.")


def test_a_terminal_obeys_neither_the_model_nor_a_tool_nor_the_prompt(
    start: Start, tool_file: Path
) -> None:
    title = "\x1b]0;owned\x07"
    answers = [call_text("fail", reason=f"{title}\u202eoops"), f"{title}said \u202e so"]
    chat = start(answers, "--tools", tool_file)
    chat.wait_for("> ")
    chat.type("Do it.")
    asked = chat.wait_for("[y/N] ")
    assert "\\u001b]0;owned" in asked or "⟨001B⟩]0;owned" in asked
    chat.type("y")
    chat.wait_for("⟨001B⟩]0;owned⟨0007⟩said ⟨202E⟩ so")
    chat.wait_for("> ")
    for command in ("/prompt", "/raw"):
        chat.type(command)
        chat.wait_for("> ")
    chat.type("/quit")
    chat.ends()
    assert "\x1b]" not in chat.text and "\u202e" not in chat.text


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_forty_columns_without_colour(start: Start, tool_file: Path, env: dict[str, str]) -> None:
    chat = start(
        [call_text("get_weather", city="Oslo"), "Mild."], "--tools", tool_file, columns=40, **env
    )
    chat.wait_for("> ")
    chat.type("Weather?")
    asked = chat.wait_for("[y/N] ")
    assert max(map(len, asked.splitlines()[-8:])) <= 40
    assert "\x1b[3" not in asked and "\x1b[1m" not in asked
    chat.type("yes")
    chat.wait_for("Mild.")
    chat.wait_for("> ")
    chat.type("/raw")
    raw = chat.wait_for("> ")
    assert "\topen\t" in raw and "\tclose\t" in raw and "\tstop\t" in raw


def test_raw_colours_the_delimiters(start: Start, tool_file: Path) -> None:
    chat = start(
        [call_text("get_weather", city="Oslo"), "Mild."], "--tools", tool_file, TERM="xterm"
    )
    chat.wait_for("> ")
    chat.type("Weather?")
    chat.wait_for("[y/N] ")
    chat.type("y")
    chat.wait_for("Mild.")
    chat.wait_for("> ")
    chat.type("/raw")
    raw = chat.wait_for("answer 2 of 2")
    assert "\x1b[1;33m<tool_call>" in raw


# ── in a pipe ─────────────────────────────────────────────────────────────────────────────────


def piped(
    answers: list[object], given: str | bytes, model: Path, env: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    script = Path(env["SMOLLORA_CACHE"]).with_name("script.json")
    script.write_text(json.dumps(answers), encoding="utf-8")
    program = [sys.executable, str(HERE / "scripted_chat.py"), str(script), str(model)]
    done = subprocess.run(
        [*program, *map(str, arguments)],
        input=given if isinstance(given, bytes) else given.encode(),
        capture_output=True,
        env=env,
        timeout=120,
        cwd=script.parent,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def test_a_pipe_gets_the_answer_and_nothing_else(
    chat_model: Path, environment: dict[str, str]
) -> None:
    done = piped(["Good day.\n\tTwo lines."], "Hello\n", chat_model, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Good day.\n\tTwo lines.\n", "")


def test_in_a_pipe_no_tool_runs(
    chat_model: Path, environment: dict[str, str], tool_file: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    answers: list[object] = [call_text("leave_a_mark", path=str(mark)), "I may not."]
    done = piped(answers, "y\ny\n", chat_model, environment, "--tools", tool_file)
    assert (done.returncode, done.stdout) == (0, "I may not.\n")
    assert "nobody is here to allow it" in done.stderr
    assert not mark.exists()


def test_a_model_that_calls_for_ever_is_stopped(
    chat_model: Path, environment: dict[str, str], tool_file: Path
) -> None:
    answers: list[object] = [call_text("get_weather", city="Oslo")] * 20
    done = piped(answers, "Weather?", chat_model, environment, "--tools", tool_file)
    assert "8 times in a row" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("given", [b"", b"  \n", b"\xff\xfe"])
def test_stdin_without_a_message_is_said(
    chat_model: Path, environment: dict[str, str], given: bytes
) -> None:
    done = piped(["never"], given, chat_model, environment)
    assert done.returncode == 2
    assert "stdin" in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_in_a_pipe_ends_the_answer_and_the_program(
    chat_model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"repeat": "on and on "}]), encoding="utf-8")
    program = [sys.executable, str(HERE / "scripted_chat.py"), str(script), str(chat_model)]
    child = subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert child.stdin and child.stdout
    child.stdin.write(b"Talk.")
    child.stdin.close()
    child.stdin = None
    assert child.stdout.read(4) == b"on a"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert out.endswith(b"\n") and err == b"[stopped]\n"
