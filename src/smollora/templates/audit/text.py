"""Does text come through as it was: lists of parts, quotes, braces, all alphabets?"""

from __future__ import annotations

from smollora.templates.audit.calls import in_other_grammar
from smollora.templates.audit.samples import (
    NASTY,
    ONE_CALL,
    TOOLS,
    assistant,
    calling,
    result,
    system,
    user,
)
from smollora.templates.audit.subject import FOR_INFORMATION, Finding, Subject, lost_from


def list_content(subject: Subject) -> Finding:
    """Content given as a list of text parts reads as its text."""
    parts = [{"type": "text", "text": "North "}, {"type": "text", "text": "or south?"}]
    seen = ("", 0)
    for messages in ([user(parts)], [user(), assistant(parts)], [system(parts), user()]):
        text = subject.render(messages)
        role = next(m["role"] for m in messages if m["content"] is parts)
        if lost := lost_from(text, ["North ", "or south?"]):
            return subject.shown(False, f"lost from the {role} message: {lost[0]!r}", text)
        place = text.find("North ")
        if "text" in text[place : text.find("or south?")]:
            return subject.shown(False, f"the {role} message shows its parts", text, place)
        seen = (text, place)
    return subject.shown(True, "", *seen)


def text_survives(subject: Subject) -> Finding:
    """Quotes, braces, newlines and letters of all alphabets come through unchanged."""
    chat = [user(NASTY), assistant(NASTY), user(NASTY), ONE_CALL, result(NASTY)]
    text = subject.render([system(NASTY), *chat], TOOLS)
    seen = text.count(NASTY)
    place = max(text.find("naïve"), 0)
    if seen < 5:
        return subject.shown(False, f"whole in {seen} of 5 places", text, place)
    arguments = {"city": NASTY}
    turn = subject.turn([user(), calling(("get_weather", arguments))], TOOLS)
    attempts = subject.calls_in(turn.said)
    if not attempts or in_other_grammar(subject, turn.said):
        words = f"{FOR_INFORMATION}seen in text only, for no call of this format can be read"
        return subject.shown(True, words, text, place)
    read = attempts[0].call
    if len(attempts) != 1 or read is None or dict(read.arguments) != arguments:
        place = max(turn.text.find("get_weather", turn.start), turn.start)
        return subject.shown(False, "changed in a call's arguments", turn.text, place)
    return subject.shown(True, "", text, place)
