"""Would the right tokens be trained, and can a person forge one?"""

from __future__ import annotations

from typing import Any

from smollora.errors import TemplateError
from smollora.templates.audit.samples import ONE_CALL, TOOLS, Chat, assistant, result, user
from smollora.templates.audit.subject import (
    FOR_INFORMATION,
    Finding,
    Subject,
    excerpt,
)
from smollora.templates.owners import common_length


def generation_prompt_matches(subject: Subject) -> Finding:
    """The generation prompt is how the trained turn begins, with and without thinking."""
    text = ""
    for mode in subject.modes:
        prompt = subject.render([user()], TOOLS, add_generation_prompt=True, **mode)
        bare = subject.render([user()], TOOLS, **mode)
        if prompt == bare:
            return subject.shown(False, "there is no generation prompt", prompt, len(prompt))
        for message in (assistant(), ONE_CALL):
            whole = subject.render([user(), message], TOOLS, **mode)
            if not whole.startswith(prompt):
                place = common_length(prompt, whole)
                words = f"the prompt ends {excerpt(prompt, len(prompt))}, the turn begins "
                return Finding(
                    False, words + excerpt(whole[place:]), subject.token_at(whole, place)
                )
        text = text or prompt
    return subject.shown(True, "", text, len(text))


def stop_token_trained(subject: Subject) -> Finding:
    """The turn ends with the token that stops generation, inside the markers if there are any."""
    stop = subject.tokenizer.eos_token
    if not stop:
        return Finding(False, "the tokenizer has no eos_token")
    text, end = "", 0
    for message in (assistant(), ONE_CALL):
        text, start, end = _turn(subject, [user(), message], stop)
        if end < 0:
            return subject.shown(False, f"no {stop} at the end of the turn", text, start)
        spans = _spans(subject, [user(), message])
        if spans and not any(left < end <= right for left, right in spans):
            detail = f"{stop} is outside of {{% generation %}}: {excerpt(text[:end], end)}"
            return Finding(False, detail, subject.token_at(text, end) - 1)
    return Finding(True, excerpt(text[:end], end), subject.token_at(text, end) - 1)


def generation_markers_exact(subject: Subject) -> Finding:
    """`{% generation %}` covers what the model must produce: no header, no newline after."""
    if not subject.template.has_generation_markers:
        words = "no {% generation %}; turns are found by the prompt"
        return Finding(True, FOR_INFORMATION + words)
    stop = subject.tokenizer.eos_token or ""
    text, left = "", 0
    for mode in subject.modes:
        for message in (assistant(), ONE_CALL):
            messages = [user(), assistant("Gladly."), user(), message]
            text, start, end = _turn(subject, messages, stop, **mode)
            spans = _spans(subject, messages, **mode)
            if len(spans) != 2:
                words = f"{len(spans)} marked places for 2 assistant turns"
                return subject.shown(False, words, text, start)
            left, right = spans[-1]
            if (left, right) != (start, end):
                wrong = _misplaced(text, (start, end), (left, right))
                return Finding(False, wrong, subject.token_at(text, left))
    return subject.shown(True, "", text, left)


def _misplaced(text: str, wanted: tuple[int, int], marked: tuple[int, int]) -> str:
    """In words, by what the marked place differs from the wanted one."""
    found = []
    for name, right_place, place in zip(("begins", "ends"), wanted, marked, strict=True):
        if place != right_place:
            piece = excerpt(text[min(place, right_place) : max(place, right_place)])
            early = "early" if place < right_place else "late"
            found.append(f"{name} too {early}, by {piece}")
    return "{% generation %} " + " and ".join(found)


def _turn(subject: Subject, messages: Chat, stop: str, **mode: Any) -> tuple[str, int, int]:
    """(text, start, end): the last turn from the end of its prompt to its stop token, or -1."""
    text, start = subject.turn(messages, TOOLS, **mode)
    found = text.find(stop, start)
    return text, start, found + len(stop) if found >= 0 else -1


def _spans(subject: Subject, messages: Chat, **mode: Any) -> tuple[tuple[int, int], ...]:
    options = {**subject.special_tokens, **mode}
    return subject.template.render_marked(messages, TOOLS, **options).spans


def delimiter_injection(subject: Subject) -> Finding:
    """For information: whether a delimiter typed by a user or returned by a tool becomes the real
    token. It does in every server that encodes rendered text; no template can help, and a call is
    told from it by whose turn it stands in.
    """
    opening = subject.fmt.open
    if not opening:
        return Finding(True, f"{subject.fmt.name} has no delimiter that could be typed")
    words = f"What does {opening} mean?"
    token, *more = subject.tokenizer.encode(opening, add_special_tokens=False)
    chats = {
        "typed by a user": [user(words)],
        "returned by a tool": [user(), ONE_CALL, result(words)],
    }
    forged: dict[str, tuple[str, int]] = {}
    for who, chat in chats.items():
        try:
            prompt = subject.render(chat, TOOLS, add_generation_prompt=True)
        except TemplateError:
            continue  # results_rendered says so
        place = prompt.find(words)
        ids = subject.tokenizer.encode(
            prompt[place:] if place >= 0 else "", add_special_tokens=False
        )
        if not more and token in ids:
            forged[who] = (prompt, place + words.find(opening))
    if not forged:
        return Finding(True, f"{opening} typed by a user or returned by a tool stays ordinary text")
    said = f"{FOR_INFORMATION}injection risk: {opening} {' or '.join(forged)} becomes token {token}"
    prompt, place = next(iter(forged.values()))
    return subject.shown(True, f"{said}, as it does on servers", prompt, place)
