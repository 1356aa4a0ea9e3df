"""Does what a tool answered reach the next turn, and as a tool's answer?"""

from __future__ import annotations

from smollora.templates.audit.samples import (
    LATER_RESULT,
    ONE_CALL,
    RESULT,
    TOOLS,
    TWO_CALLS,
    result,
    user,
)
from smollora.templates.audit.subject import Finding, Subject, lost_from


def results_rendered(subject: Subject) -> Finding:
    """What a tool answered is in the prompt of the next turn."""
    prompt = subject.render([user(), ONE_CALL, result()], TOOLS, add_generation_prompt=True)
    place = prompt.find(_core(prompt, RESULT))
    if place < 0:
        words = "the result is not in the prompt, which ends"
        return subject.shown(False, words, prompt, len(prompt))
    return subject.shown(True, "", prompt, place)


def results_unlike_user(subject: Subject) -> Finding:
    """A tool's answer does not look as if the user had typed it."""
    as_result = subject.render([user(), ONE_CALL, result()], TOOLS)
    as_user = subject.render([user(), ONE_CALL, user(RESULT)], TOOLS)
    place = max(as_result.rfind(RESULT), 0)
    if as_result == as_user:
        return subject.shown(False, "the same text as a user turn", as_result, place)
    return subject.shown(True, "", as_result, place)


def several_results(subject: Subject) -> Finding:
    """The answers to several calls are all there, in order and apart."""
    results = [result(), result(LATER_RESULT, 1, "get_time")]
    prompt = subject.render([user(), TWO_CALLS, *results], TOOLS, add_generation_prompt=True)
    first, second = _core(prompt, RESULT), _core(prompt, LATER_RESULT)
    if lost := lost_from(prompt, [first, second]):
        words = f"lost or out of order: {lost[0]}; the prompt ends"
        return subject.shown(False, words, prompt, len(prompt))
    between = prompt[prompt.find(first) + len(first) : prompt.find(second)]
    place = prompt.find(second)
    if between.strip():
        return subject.shown(True, "", prompt, place)
    return subject.shown(False, "nothing between the two results", prompt, place)


def _core(prompt: str, answer: str) -> str:
    """The answer as it is, or as the JSON string that some families write it as."""
    quoted = answer.replace('"', '\\"')
    return quoted if answer not in prompt and quoted in prompt else answer
