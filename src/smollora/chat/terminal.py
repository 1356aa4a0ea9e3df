"""The person's side of a conversation: what is shown where, and how yes is said.

Answers go to stdout, everything else to stderr, so that a pipe gets the answer alone. Nothing that
came from a model or a tool is printed before `visible` has gone over it. Lines are edited with the
standard library's readline; a further library would add little to one line of input.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from smollora.chat.answerer import Answer, PieceKind
from smollora.chat.interrupt import stop_on_interrupt
from smollora.chat.session import Session
from smollora.chat.tools import Outcome, Toolbox
from smollora.chat.visible import visible
from smollora.types import ToolCall

HISTORY_LINES = 1000
SHOWN_ARGUMENTS = 2000
"""Characters of a call that are shown before the question; s shows all."""
RIGHTS = "It is code of yours and runs with your own rights: it can do whatever you can."
STYLES = {"open": "bold yellow", "inner": "bold yellow", "close": "bold yellow", "stop": "bold red"}


class Screen:
    """stdin, stdout and stderr of a chat; a `Person` as `turn` sees one."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
        self.asks = sys.stdin.isatty()
        """Whether somebody can be asked."""
        self._edits = self.asks and sys.stdout.isatty()
        self._out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._said = ""
        self._kind: PieceKind | None = None
        self._blank = True
        """Nothing but spaces was shown of this answer: a template may begin with a line end."""

    # ── shown ─────────────────────────────────────────────────────────────────────────────────

    def tell(self, kind: PieceKind, text: str) -> None:
        """See `Person`. Thoughts are no part of the answer: dim, and on stderr."""
        if self._kind is not None and kind != self._kind and self._said[-1:] not in ("", "\n"):
            self._newline()
        if kind != self._kind:
            self._blank = True
        self._kind = kind
        if kind == "call":
            self._err.print(Text("(writes a call)", style="dim"))
            self._said = "\n"
            return
        if self._blank:
            text = text.lstrip("\n")
        if not text:
            return
        self._blank = False
        self._said = text
        if kind == "thought":
            self._err.print(Text(visible(text), style="dim"), end="", soft_wrap=True)
            self._err.file.flush()
        else:  # as it is: rich would write spaces for tabs
            self._out.file.write(visible(text))
            self._out.file.flush()

    def answered(self, answer: Answer) -> None:
        """See `Person`."""
        if self._said[-1:] not in ("", "\n"):
            self._newline()
        self._said, self._kind, self._blank = "", None, True
        if answer.finish == "length":
            self.notice("the answer was cut: max_new_tokens, or the context, is used up")
        elif answer.finish == "interrupted":
            self.notice("stopped")
        elif not answer.message.content.strip() and not answer.attempts:
            self.notice("the model ended its turn without a word")

    def _newline(self) -> None:
        console = self._err if self._kind == "thought" else self._out
        console.print()
        console.file.flush()

    def notice(self, text: str) -> None:
        """See `Person`: one sentence in brackets."""
        self._line(f"[{visible(text)}]", "dim")

    def error(self, text: str) -> None:
        """What went wrong, without ending the conversation."""
        self._line(f"error: {visible(text)}", "red")

    def _line(self, text: str, style: str) -> None:
        err = self._err
        plain = err.no_color or err.is_dumb_terminal
        self._err.print(
            Text(text, style="" if plain else style),
            soft_wrap=not err.is_terminal,
            width=_columns() if err.is_terminal else None,
        )
        err.file.flush()

    def page(self, lines: list[Text]) -> None:
        """The answer to a command, on stdout."""
        for line in lines:
            if self.colours:
                self._out.print(line, soft_wrap=True)
            else:
                self._out.file.write(f"{line.plain}\n")
        self._out.file.flush()

    @property
    def colours(self) -> bool:
        """Whether stdout shows colours: a terminal, and neither NO_COLOR nor TERM=dumb."""
        out = self._out
        return out.is_terminal and not out.no_color and not out.is_dumb_terminal

    # ── asked ─────────────────────────────────────────────────────────────────────────────────

    def line(self, prompt: str, *, remember: bool = False) -> str:
        """One line from the person.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: Ctrl-C.
        """
        if self._edits:
            typed = input(prompt)
            if remember and typed.strip():
                _remember(typed)
            return typed
        self._err.print(Text(prompt), end="")
        self._err.file.flush()
        typed = sys.stdin.readline()
        if not typed:
            raise EOFError
        return typed.rstrip("\n")

    def allows(self, call: ToolCall, box: Toolbox) -> bool:
        """See `Person`: only y or yes is one."""
        name = box.path.name if box.path else "tools"
        if not self.asks:
            self.notice(f"{call.name} of {name} not run: nobody is here to allow it")
            return False
        whole = visible(json.dumps(dict(call.arguments), indent=2, ensure_ascii=False))
        shown = whole[:SHOWN_ARGUMENTS]
        more = len(whole) - len(shown)
        self._line(f"The model wants to run {visible(call.name)} of {visible(name)} with", "bold")
        self._line(shown + (f"\n… {more:,} more characters (s shows them)" if more else ""), "")
        self._line(RIGHTS, "yellow")
        while True:
            try:
                typed = self.line("Run it? [y/N] ").strip().lower()
            except (EOFError, KeyboardInterrupt):
                self._line("", "")
                typed = ""
            if typed == "s" and more:
                self._line(whole, "")
                continue
            if typed not in ("y", "yes"):
                self.notice(f"{call.name} was not run")
            return typed in ("y", "yes")

    def types_result(self, call: ToolCall) -> str | None:
        """See `Person`."""
        if not self.asks:
            self.notice(f"{call.name} has no result: nobody is here to type it")
            return None
        whole = visible(json.dumps(dict(call.arguments), indent=2, ensure_ascii=False))
        self._line(f"The model calls {visible(call.name)} with", "bold")
        self._line(whole, "")
        try:
            typed = self.line("Its result (empty: none)? ").strip()
        except (EOFError, KeyboardInterrupt):
            self._line("", "")
            typed = ""
        return typed or None

    def run(self, call: ToolCall, box: Toolbox, session: Session) -> Outcome:
        """See `Person`."""
        settings = session.settings
        with stop_on_interrupt() as stop:
            self.notice(f"{call.name} runs, at most {settings.tool_seconds:g} s; Ctrl-C ends it")
            outcome = box.run(
                call,
                seconds=settings.tool_seconds,
                size=settings.tool_bytes,
                stopped=stop.is_set,
            )
        if outcome.printed:
            self.notice(f"{call.name} printed: {outcome.printed}")
        self._line(f"{call.name}: {_shortened(visible(outcome.content))}", "cyan")
        return outcome


def _columns() -> int:
    """The width of the terminal on stderr; rich takes any dumb one for 80 columns wide."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _shortened(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


# ── lines of input ────────────────────────────────────────────────────────────────────────────


def start_history(path: Path) -> Callable[[], None]:
    """Line editing with the history of earlier chats; call the result at the end to keep it."""
    try:
        import readline
    except ImportError:  # some builds of Python have none: lines are then read as they are
        return lambda: None
    readline.set_auto_history(False)  # a yes to a tool is no line to come back to
    readline.clear_history()
    with suppress(OSError):  # the first chat, or a file of another kind of readline
        readline.read_history_file(path)

    def keep() -> None:
        with suppress(OSError):  # a home that cannot be written to costs the history alone
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.set_history_length(HISTORY_LINES)
            readline.write_history_file(path)

    return keep


def _remember(line: str) -> None:
    try:
        import readline
    except ImportError:
        return
    readline.add_history(line)
