"""What answers a session, and what an answer is.

`Answerer` is the protocol of `local` (a model on this machine) and `remote` (a server). Pieces of
text are told as they come; the answer that is returned holds them all, with the ids where there are
any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from smollora.chat.session import Session
from smollora.types import Message, ParsedCall

PieceKind = Literal["text", "thought", "call"]
"""call: the model has begun a call; its text is not told, for the call is shown when it is read."""
Tell = Callable[[PieceKind, str], None]
Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a model."""

    message: Message
    attempts: tuple[ParsedCall, ...] = ()
    """Every attempt to call, good or bad."""
    finish: Finish = "stop"
    prompt_ids: tuple[int, ...] | None = None
    """None where a server gives no ids."""
    token_ids: tuple[int, ...] | None = None
    seconds_to_first: float | None = None
    seconds: float = 0.0
    session: Session | None = None
    """What was answered, if older exchanges had to be dropped to fit."""


class Answerer(Protocol):
    """Something that answers."""

    def answer(self, session: Session, tell: Tell) -> Answer:
        """Answer the last message; Ctrl-C ends the answer, which is then `interrupted`."""
        ...

    def prompt_text(self, session: Session) -> str:
        """The prompt as the model gets it, or a sentence that says why it is not known."""
        ...

    def notes(self, session: Session) -> list[str]:
        """What a person should know before the first message."""
        ...

    @property
    def samples_here(self) -> bool:
        """Whether `do_sample` decides; False: a server does."""
        ...

    @property
    def reads_thinking(self) -> bool:
        """Whether the chat template reads `enable_thinking`."""
        ...

    def tokens(self, ids: tuple[int, ...]) -> list[tuple[int, str, str]]:
        """(id, text, "open" | "close" | "inner" | "stop" | "") of each token; [] if not known."""
        ...
