"""A chat in five lines, for notebooks and scripts.

    from smollora import Chat
    chat = Chat("runs/starter", system="Answer in one sentence.")
    print(chat.say("What is a chat template?"))
    for piece in chat.stream("And a generation prompt?"):
        print(piece, end="")

In: a model and messages. Out: answers as text; `session`, `prompt` and `last` hold the rest. The
surprise: calls are given back, not run; `result` answers one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from smollora.chat.answerer import Answer, PieceKind
from smollora.chat.local import open_local
from smollora.chat.session import Session, load, said, save, undone
from smollora.chat.settings import changed
from smollora.chat.tools import load_tools
from smollora.types import Message, ToolCall


class Chat:
    """A conversation with a model on this machine."""

    def __init__(
        self,
        model: str | None = None,
        *,
        system: str = "",
        tools: str | Path | None = None,
        **settings: Any,
    ) -> None:
        """Args: folder, run, Hub id or `pypi:NAME==VERSION` (None: the starter run's model); system
        prompt; a .py or .json file of tools; settings as `/set` takes them.

        Raises:
            SmolloraError: no such model, tool file or setting.
        """
        self._opened = open_local(model)
        box = load_tools(Path(tools)) if tools else None
        self.session = Session(
            system=system, tools=box.specs if box else (), settings=self._opened.settings()
        )
        self.set(**settings)
        self._opened.load()
        self.last: Answer | None = None
        """The last answer, with its ids."""

    def set(self, **settings: Any) -> None:
        """Change settings for the answers to come: `chat.set(do_sample=True, temperature=0.8)`."""
        for key, value in settings.items():
            made = changed(self.session.settings, key, str(value))
            self.session = replace(self.session, settings=made)

    def say(self, text: str) -> str:
        """Say something; the answer in words ("" where the model only calls)."""
        return self._answer(said(self.session, Message("user", text)), lambda kind, piece: None)

    def stream(self, text: str) -> Iterator[str]:
        """`say`, piece by piece as it comes."""
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

        def tell(kind: PieceKind, piece: str) -> None:
            if kind == "text":
                pieces.put(piece)

        def work() -> None:
            try:
                self._answer(said(self.session, Message("user", text)), tell)
                pieces.put(None)
            except BaseException as error:  # raised again where the pieces are read
                pieces.put(error)

        Thread(target=work).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """What the last answer wants to call; nothing of it was run."""
        return self.last.message.calls if self.last else ()

    def result(self, *contents: str) -> str:
        """Give the results of `calls`, in their order; the answer that follows."""
        results = [
            Message("tool", content, call_id=call.id, name=call.name)
            for call, content in zip(self.calls, contents, strict=True)
        ]
        return self._answer(said(self.session, *results), lambda kind, piece: None)

    def tokens(self) -> list[tuple[int, str, str]]:
        """(id, text, kind) of the last answer's tokens; kind: open, inner, close, stop or ""."""
        ids = (self.last.token_ids if self.last else None) or ()
        return self._opened.answerer.tokens(ids)

    @property
    def prompt(self) -> str:
        """The conversation as the model would get it now."""
        return self._opened.answerer.prompt_text(self.session)

    def undo(self) -> None:
        """Take back the last message and its answer."""
        self.session, self.last = undone(self.session), None

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON."""
        save(self.session, Path(path))

    def load(self, path: str | Path) -> None:
        """Go on with a saved conversation."""
        self.session, self.last = load(self.session, Path(path)), None

    def _answer(self, session: Session, tell: Any) -> str:
        answer = self._opened.answerer.answer(session, tell)
        self.last = answer
        self.session = said(answer.session or session, answer.message)
        return answer.message.content
