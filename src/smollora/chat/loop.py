"""The chat itself: lines in, answers out, until the person leaves; or one message out of a pipe."""

from __future__ import annotations

import sys
from pathlib import Path

from smollora.chat.commands import Talk, run_command
from smollora.chat.terminal import Screen, start_history
from smollora.chat.turn import take_turn
from smollora.errors import DataError, SmolloraError

PROMPT = "> "
MAX_INPUT = 10_000_000
"""Bytes of a message out of a pipe."""


def converse(talk: Talk, screen: Screen, history: Path) -> int:
    """Talk with somebody at a terminal; returns the exit code: 0, or 130 after Ctrl-C twice."""
    keep = start_history(history)
    interrupted = False
    try:
        while not talk.done:
            try:
                line = _message(screen)
            except EOFError:
                print(file=sys.stderr)
                return 0
            except KeyboardInterrupt:
                print(file=sys.stderr)
                if interrupted:
                    return 130
                interrupted = True
                screen.notice("Ctrl-C once more, Ctrl-D or /quit leaves")
                continue
            interrupted = False
            if line.strip():
                _do(talk, screen, line)
    finally:
        keep()
    return 0


def _message(screen: Screen) -> str:
    """One message; a line that ends with a backslash goes on in the next one."""
    line = screen.line(PROMPT, remember=True)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + screen.line("… ", remember=True)
    return line


def _do(talk: Talk, screen: Screen, line: str) -> None:
    try:
        if line.startswith("/") and not line.startswith("//"):
            screen.page(run_command(talk, line))
            return
        turn = take_turn(
            talk.session,
            line.removeprefix("/") if line[:2] == "//" else line,
            talk.answerer,
            talk.box,
            screen,
        )
        talk.session, talk.last = turn.session, turn.answers
    except KeyboardInterrupt:
        print(file=sys.stderr)
        screen.notice("stopped: your message is taken back")
    except SmolloraError as error:
        screen.error(str(error))


def answer_pipe(talk: Talk, screen: Screen) -> int:
    """All of stdin is one message; its answer goes to stdout. The exit code: 0, or 130 after
    Ctrl-C.

    Raises:
        SmolloraError: there is no message, or no answer.
    """
    given = sys.stdin.buffer.read(MAX_INPUT + 1)
    if len(given) > MAX_INPUT:
        raise DataError(f"stdin holds more than {MAX_INPUT:,} bytes", "send less of it")
    try:
        text = given.decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 text: {error.reason}", "convert it first") from error
    if not text.strip():
        raise DataError("stdin holds no message", "write one: echo Hello | smollora chat")
    turn = take_turn(talk.session, text, talk.answerer, talk.box, screen)
    talk.session, talk.last = turn.session, turn.answers
    if not any(answer.message.content.strip() for answer in turn.answers):
        screen.notice("there is no answer in words")
    interrupted = not turn.answers or turn.answers[-1].finish == "interrupted"
    return 130 if interrupted else 0
