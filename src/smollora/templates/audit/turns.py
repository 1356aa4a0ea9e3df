"""Are the turns where they belong, and do they stay: system turns, days, earlier turns, servers?"""

from __future__ import annotations

import re
from typing import Any

from smollora.templates.audit.samples import (
    ARGUMENTS,
    LATER_RESULT,
    ONE_CALL,
    TOOLS,
    Chat,
    assistant,
    calling,
    result,
    system,
    user,
)
from smollora.templates.audit.subject import (
    FOR_INFORMATION,
    Finding,
    Subject,
    excerpt,
    lost_from,
)
from smollora.templates.owners import common_length

THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
"""A block of reasoning, empty or not, that templates take out once a turn is history."""


def system_closed_with_tools(subject: Subject) -> Finding:
    """With tools, the system turn ends before the user's begins."""
    return _system_closed(subject, TOOLS)


def system_closed_without_tools(subject: Subject) -> Finding:
    """Without tools, the system turn ends before the user's begins."""
    return _system_closed(subject, None)


def _system_closed(subject: Subject, tools: Any) -> Finding:
    """Compares what stands before the first user turn with how this template closes a turn."""
    question = user("Which way is north?")
    asked = question["content"]
    plain = subject.render([question])
    after = plain.partition(asked)[2]
    closing = next(iter(subject.added_tokens_in(after)), None)
    if closing is None:
        detail = f"{FOR_INFORMATION}this template closes no turn but the assistant's"
        return subject.shown(True, detail, plain, plain.find(asked))
    history = [user(), assistant(), question]
    header = subject.render(history).partition(asked)[0].rpartition(closing)[2].strip()
    for messages in ([system(), question], [question]):
        text = subject.render(messages, tools).partition(asked)[0]
        before = text.rstrip()
        if not before.endswith(header):
            detail = f"{FOR_INFORMATION}system text is part of the first user turn"
            return subject.shown(True, detail, text, len(text))
        before = before.removesuffix(header).rstrip()
        bos = str(subject.special_tokens.get("bos_token", ""))  # which needs no closing
        words_before = subject.token_pattern.sub("", before.removeprefix(bos)).strip()
        if words_before and not before.endswith(closing):
            return subject.shown(False, f"no {closing} in", text, len(before))
    text = subject.render([system(), question], tools)
    return subject.shown(True, "", text, text.find(asked))


def second_system_message(subject: Subject) -> Finding:
    """A system message further on is there, in its place."""
    later = system("From here on, answer in verse.")
    text = subject.render([system(), user(), assistant(), later, user("And Porto?")])
    lost = lost_from(text, [assistant()["content"], later["content"], "And Porto?"])
    if lost:
        return subject.shown(False, f"lost or out of place: {lost[0]}", text, len(text))
    return subject.shown(True, "", text, text.find(later["content"]))


def date_stable(subject: Subject) -> Finding:
    """The text does not depend on the day, or a `date_string` says which day it is."""
    days = ("2025-01-02", "2031-12-30")
    first, second = (subject.render([user()], TOOLS, date=day) for day in days)
    if first == second:
        return subject.shown(True, "the same on two days", first)
    place = common_length(first, second)
    set_by_hand = {subject.render([user()], TOOLS, date=d, date_string="1 May 2026") for d in days}
    if len(set_by_hand) == 1:
        detail = f"{FOR_INFORMATION}says the day; pass date_string to say which"
        return subject.shown(True, detail, first, place)
    return subject.shown(False, "the clock decides, and no date_string does", first, place)


def history_stable(subject: Subject) -> Finding:
    """Turns stay as they were when later ones are added."""
    chat = [system(), user(), calling(("get_weather", ARGUMENTS), content="One moment."), result()]
    chat += [assistant(), user("What time is it there?"), calling(("get_time", {}))]
    chat += [result(LATER_RESULT, 0, "get_time"), assistant("Five past two."), user("Thanks!")]
    whole = subject.render(chat, TOOLS)
    for length in range(2, len(chat)):
        earlier = subject.render(chat[:length], TOOLS)
        if not whole.startswith(earlier):
            place = common_length(earlier, whole)
            if THINKING.sub("", whole).startswith(THINKING.sub("", earlier)):
                words = (
                    f"{FOR_INFORMATION}thinking is taken out of earlier turns; train turn by turn"
                )
                return subject.shown(True, words, whole, place)
            words = f"after {length} of {len(chat)} messages it read {excerpt(earlier, place)}, "
            return subject.shown(False, words + "at the end", whole, place)
    return subject.shown(True, "", whole)


def serving_prompt_same(subject: Subject) -> Finding:
    """A server that is given the same conversation renders the same prompt.

    A training row holds empty content beside a call and the tool's name beside its result; a
    request in OpenAI form holds neither. And of named templates a server takes one when there are
    tools and another when there are none.
    """
    chat = [system(), user(), ONE_CALL, result()]
    trained = subject.render(chat, TOOLS, add_generation_prompt=True)
    for what, messages in _as_requests(chat):
        served = subject.render(messages, TOOLS, add_generation_prompt=True)
        if served != trained:
            place = common_length(trained, served)
            words = f"with {what}, a request renders {excerpt(served, place)}, a training row"
            return subject.shown(False, words, trained, place)
    if subject.without_tools is not None:
        plain = [system(), user(), assistant()]
        served = subject.without_tools.render(plain, None, **subject.special_tokens)
        trained = subject.render(plain)
        if served != trained:
            place = common_length(trained, served)
            words = "of its named templates a server takes another one without tools, which reads "
            words += f"{excerpt(served, place)} instead of"
            return subject.shown(False, words, trained, place)
    return subject.shown(True, "", trained, len(trained))


def _as_requests(chat: Chat) -> list[tuple[str, Chat]]:
    """The conversation as it reaches a server's template, one difference at a time."""

    def without(key: str, role: str) -> Chat:
        return [
            {name: value for name, value in message.items() if name != key}
            if message["role"] == role
            else message
            for message in chat
        ]

    return [
        ("no content beside a call", without("content", "assistant")),
        ("no tool name in a result", without("name", "tool")),
    ]
