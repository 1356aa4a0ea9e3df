"""One message of the person and all that follows from it: answers, calls, results, the next answer.

In: a session, an answerer, a toolbox, and `Person`, who is shown things and says yes or no. Out:
the session after it, with the answers. No tool runs without a yes; every refusal and every failure
is a result that the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from smollora.chat.answerer import Answer, Answerer, PieceKind
from smollora.chat.session import Session, said
from smollora.chat.tools import Outcome, Toolbox, failure
from smollora.types import Message, ToolCall

MAX_ROUNDS = 8
"""Answers to one message; a model that goes on calling is stopped then."""


class Person(Protocol):
    """The one who talks to the model."""

    def tell(self, kind: PieceKind, text: str) -> None:
        """Show a piece of an answer as it comes."""
        ...

    def notice(self, text: str) -> None:
        """Show what is no part of the answer."""
        ...

    def answered(self, answer: Answer) -> None:
        """The answer is whole."""
        ...

    def allows(self, call: ToolCall, box: Toolbox) -> bool:
        """Whether the tool may run, once; False where nobody can be asked."""
        ...

    def types_result(self, call: ToolCall) -> str | None:
        """The result of a tool that has no code; None to refuse."""
        ...

    def run(self, call: ToolCall, box: Toolbox, session: Session) -> Outcome:
        """Run an allowed call within the session's limits, Ctrl-C ending the tool."""
        ...


@dataclass
class Turn:
    """What one message led to."""

    session: Session
    answers: list[Answer] = field(default_factory=list)


def take_turn(
    session: Session, text: str, answerer: Answerer, box: Toolbox, person: Person
) -> Turn:
    """Say `text` to the model and follow its calls until it answers in words.

    Raises:
        SmolloraError: no answer could be had; nothing of the turn should then be kept.
    """
    turn = Turn(said(session, Message("user", text)))
    for _ in range(MAX_ROUNDS):
        answer = answerer.answer(turn.session, person.tell)
        if answer.session is not None:
            _tell_dropped(turn.session, answer.session, person)
            turn.session = answer.session
        person.answered(answer)
        if answer.finish == "interrupted" and not answer.message.content and not turn.answers:
            person.notice("nothing was answered: your message is taken back")
            return Turn(session, [])
        turn.answers.append(answer)
        turn.session = said(turn.session, answer.message)
        _tell_bad_calls(answer, person)
        if not answer.message.calls:
            return turn
        results = [_result(call, turn.session, box, person) for call in answer.message.calls]
        turn.session = said(turn.session, *results)
    person.notice(f"the model has called tools {MAX_ROUNDS} times in a row: stopped here")
    return turn


def _result(call: ToolCall, session: Session, box: Toolbox, person: Person) -> Message:
    problem = box.problem(call)
    if problem is not None:
        person.notice(f"not run: {problem}")
        outcome = failure(problem)
    elif not box.runs_code:
        typed = person.types_result(call)
        outcome = Outcome(typed) if typed is not None else failure(_refused(call))
    elif person.allows(call, box):
        outcome = person.run(call, box, session)
    else:
        outcome = failure(_refused(call))
    return Message("tool", outcome.content, call_id=call.id, name=call.name)


def _refused(call: ToolCall) -> str:
    return f"the user did not allow {call.name} to run"


def _tell_dropped(before: Session, after: Session, person: Person) -> None:
    gone = [m for m in before.messages[before.start : after.start] if m.role == "user"]
    if gone:
        what = "exchange is" if len(gone) == 1 else f"{len(gone)} exchanges are"
        person.notice(f"the context is full: the oldest {what} no longer shown to the model")


def _tell_bad_calls(answer: Answer, person: Person) -> None:
    reasons = {
        "bad_syntax": "is not written as this model's format wants it",
        "unclosed": "was begun and not ended",
        "no_name": "names no tool",
        "spelled_out": "is spelled with ordinary tokens instead of the delimiters",
    }
    bad: Sequence[str] = [each.status for each in answer.attempts if each.status in reasons]
    for status in dict.fromkeys(bad):
        person.notice(f"a call {reasons[status]}: not run (/raw shows its tokens)")
