"""Are the assistant's calls in its turn, whole, and in the format that is taught?

Two questions, kept apart: whether a call is there at all, in whatever grammar the family writes
(then training on it is not training on an empty answer), and whether it is in the format that the
model is taught and its server reads. Where the grammar is another one, the finer checks look for
the words of a call instead of reading it, and say so.
"""

from __future__ import annotations

import json
from typing import Any

from smollora.errors import TemplateError
from smollora.templates.audit.samples import (
    ARGUMENTS,
    ONE_CALL,
    THOUGHT,
    TOOLS,
    TWO_CALLS,
    assistant,
    calling,
    user,
)
from smollora.templates.audit.subject import FOR_INFORMATION, Finding, Subject, Turn, lost_from

WORDS_ONLY = f"{FOR_INFORMATION}in another grammar, so looked for by its words only"


def calls_rendered(subject: Subject) -> Finding:
    """A call of the assistant is in its turn: name, keys and values."""
    turn = subject.turn([user(), ONE_CALL], TOOLS)
    lost = [word for word in ("get_weather", "city", "Lisbon") if word not in turn.said]
    if not lost:
        return subject.shown(True, "", turn.text, _place(turn, "get_weather"))
    if len(lost) == 3:
        words = "no call in the assistant's turn, which reads"
    else:
        words = f"lost from the call: {', '.join(lost)}"
    return _said(subject, False, words, turn)


def calls_in_format(subject: Subject) -> Finding:
    """The call can be read back in the format that is taught, and is the same."""
    turn = subject.turn([user(), ONE_CALL], TOOLS)
    name = subject.fmt.name
    if "get_weather" not in turn.said:
        return _said(subject, False, f"nothing to read in the {name} format", turn)
    attempts = subject.calls_in(turn.said)
    if not any(attempt.status != "spelled_out" for attempt in attempts):
        return _said(subject, False, f"not in the {name} format", turn)
    return _first_call_equals(subject, turn, ("get_weather", ARGUMENTS))


def arguments_as_object(subject: Subject) -> Finding:
    """Arguments given as an object are written as that object."""
    return _call_survives(subject, ("get_weather", ARGUMENTS), ARGUMENTS)


def arguments_as_string(subject: Subject) -> Finding:
    """Arguments given as a JSON string are written as an object, not encoded twice.

    A template that refuses them loses nothing in silence: servers and trainers hand it objects.
    """
    call = ("get_weather", json.dumps(ARGUMENTS))
    try:
        return _call_survives(subject, call, ARGUMENTS)
    except TemplateError as error:
        if not arguments_as_object(subject).ok:
            raise
        return Finding(True, f"{FOR_INFORMATION}refused, so give objects: {error.message}")


def call_without_arguments(subject: Subject) -> Finding:
    """A call that takes no arguments has an empty object."""
    return _call_survives(subject, ("get_time", {}), {})


def _call_survives(subject: Subject, call: tuple[str, Any], arguments: dict[str, Any]) -> Finding:
    turn = subject.turn([user(), calling(call)], TOOLS)
    if not in_other_grammar(subject, turn.said):
        return _first_call_equals(subject, turn, (call[0], arguments))
    plain = subject.turn([user(), calling((call[0], arguments))], TOOLS)
    if turn.said != plain.said:
        return _said(subject, False, "not as when given as an object", turn)
    lost = lost_from(turn.said, [call[0]]) + [key for key in arguments if key not in turn.said]
    if lost:
        return _said(subject, False, f"lost from the call: {', '.join(lost)}", turn)
    return _said(subject, True, WORDS_ONLY, turn)


def _first_call_equals(subject: Subject, turn: Turn, wanted: tuple[str, Any]) -> Finding:
    attempts = subject.calls_in(turn.said)
    if len(attempts) != 1:
        return _said(subject, False, f"{len(attempts)} calls instead of one", turn)
    read = attempts[0]
    place = _place(turn, read.raw[:20])
    if read.call is None:
        words = f"the call cannot be read ({read.status})"
        return subject.shown(False, words, turn.text, place)
    if (read.call.name, dict(read.call.arguments)) != wanted:
        return subject.shown(False, "read back as another call", turn.text, place)
    return subject.shown(True, "", turn.text, place)


def several_calls(subject: Subject) -> Finding:
    """Several calls of one turn are all there, in order, each in a block of its own."""
    turn = subject.turn([user(), TWO_CALLS], TOOLS)
    if in_other_grammar(subject, turn.said):
        lost = lost_from(turn.said, ["get_weather", "Lisbon", "get_time"])
        words = f"lost or out of order: {lost[0]}" if lost else WORDS_ONLY
        return _said(subject, not lost, words, turn)
    names = [attempt.call.name if attempt.call else "?" for attempt in subject.calls_in(turn.said)]
    if names != ["get_weather", "get_time"]:
        return _said(subject, False, f"instead of two calls: {names}", turn)
    return subject.shown(True, "", turn.text, _place(turn, "get_time"))


def content_beside_call(subject: Subject) -> Finding:
    """Text that stands beside a call is there, before it."""
    words = "I will look that up."
    turn = subject.turn([user(), calling(("get_time", {}), content=words)], TOOLS)
    opening = "get_time" if in_other_grammar(subject, turn.said) else subject.fmt.open or "get_time"
    if lost := lost_from(turn.said, [words, opening]):
        return _said(subject, False, f"lost or out of order: {lost[0]}", turn)
    return subject.shown(True, "", turn.text, _place(turn, words))


def reasoning_kept(subject: Subject) -> Finding:
    """`reasoning_content` is there, in an answer and beside a call."""
    thinking = {"reasoning_content": THOUGHT}
    turns = [assistant(**thinking), calling(("get_time", {}), **thinking)]
    for message in turns:
        turn = subject.turn([user(), message], TOOLS)
        if THOUGHT not in turn.said:
            if not subject.reasons:
                words = f"{FOR_INFORMATION}dropped, and the model has no <think> token"
                return _said(subject, True, words, turn)
            return _said(subject, False, "no reasoning in the turn, which reads", turn)
    chat = [user(), turns[0], user("And Porto?"), assistant("Also.")]
    text = subject.render(chat)
    place = text.find(THOUGHT)
    if place < 0:
        words = f"{FOR_INFORMATION}dropped from earlier turns; train turn by turn"
        return subject.shown(True, words, text, text.find(turns[0]["content"]))
    return subject.shown(True, "", text, place)


def in_other_grammar(subject: Subject, said: str) -> bool:
    """True if a call is there, and not as the format's delimiters and JSON.

    A body that begins as JSON does is held to the format: Python's repr is no other grammar.
    """
    if "get_weather" not in said and "get_time" not in said:
        return False
    attempts = [each for each in subject.calls_in(said) if each.status != "spelled_out"]
    if any(each.status == "ok" for each in attempts):
        return False
    bodies = [each.raw.removeprefix(subject.fmt.open).lstrip() for each in attempts]
    return not any(body.startswith(("{", "[")) for body in bodies)


def _place(turn: Turn, words: str) -> int:
    return max(turn.text.find(words, turn.start), turn.start)


def _said(subject: Subject, ok: bool, words: str, turn: Turn) -> Finding:
    """Evidence that begins with the turn itself."""
    finding = subject.shown(ok, words, turn.said)
    return finding._replace(at=subject.token_at(turn.text, turn.start))
