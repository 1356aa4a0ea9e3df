"""Where each turn of the model begins and ends, for any chat template.

In: a bound template, messages. Out: the text of the conversation with its spans, or a refusal. The
conversation is rendered up to each assistant turn with the generation prompt (P) and up to and
including it (T). What the model must produce is T after P, up to the first stop token, for there it
stops: not the header, not a think block that the prompt supplies, not what the template writes
after the stop token. If T is a prefix of the whole rendering the turn is trained there; a template
that rewrites history (thinking removed from earlier turns) gives one text per trained turn instead.
If P is not a prefix of T the conversation is refused; so it is where the template leaves out its
header in one prompt and writes it in the turn (Gemma 4 after a result): a model would learn to
write headers.

The surprise: some templates (GLM) write no stop token at all. Their models stop at the header of
whoever speaks next, so what the template writes there ends the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from smollora.errors import TemplateError
from smollora.templates.engine import BoundTemplate
from smollora.templates.owners import Refusal, Turns, common_length, find_owners

NextStop = Callable[[bool], str]
"""The stop token that the template writes after a turn without, or with, calls; "" if none."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendered text with one owner."""

    start: int
    end: int
    owner: int
    trained: bool


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A rendered conversation before tokenisation."""

    text: str
    spans: tuple[Span, ...]
    """In order, without overlaps."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of the model."""

    owner: int
    prompt: str
    text: str
    """The prompt, the turn and its stop token."""
    in_place: bool
    """True if the whole rendering begins so."""


def lay_out(
    bound: BoundTemplate,
    turns: Turns,
    stops: Sequence[str],
    *,
    tags: Sequence[str] = (),
    header: str = "",
    next_stop: NextStop,
) -> tuple[RenderedText, ...] | Refusal:
    """Texts with their spans: one for a stable template; for one that rewrites history, one more
    for each turn that is rewritten.

    Args:
        bound: the template with the tools of this conversation.
        turns: the messages as the template takes them.
        stops: texts of the stop tokens.
        tags: delimiters; whoever writes one must be known.
        header: what a generation prompt adds after a user's message.
        next_stop: what ends a turn that has no stop token of its own.

    Raises:
        TemplateError: the template refuses the conversation, fails, or runs past its limits.
    """
    whole = bound.render(turns)
    found: list[_Turn] = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = bound.render(turns[:index], add_generation_prompt=True)
        last = index + 1 == len(turns)
        until = whole if last else bound.render(turns[: index + 1])
        if header and until.startswith(prompt + header):
            return Refusal(
                "prompt_mismatch",
                f"message {index}: the trained turn starts with {header[:40]!r}, which the"
                " generation prompt leaves out here",
            )
        text = _turn_text(prompt, until, index, stops, partial(next_stop, "tool_calls" in turn))
        if isinstance(text, Refusal):
            return text
        found.append(_Turn(index, prompt, text, last or whole.startswith(text)))
    if not found:
        return Refusal("nothing_to_train", "no assistant turn")
    texts: list[RenderedText | Refusal] = [
        _with_spans(bound, turns, turn.text, [turn], (*stops, *tags))
        for turn in found
        if not turn.in_place
    ]
    kept = [turn for turn in found if turn.in_place]
    if kept:
        # a stop token that ends the last turn may not be written yet
        text = max(whole, kept[-1].text, key=len)
        texts.append(_with_spans(bound, turns, text, kept, (*stops, *tags), whole=whole))
    refused = next((text for text in texts if isinstance(text, Refusal)), None)
    return refused or tuple(text for text in texts if isinstance(text, RenderedText))


def _turn_text(
    prompt: str, until: str, index: int, stops: Sequence[str], next_stop: Callable[[], str]
) -> str | Refusal:
    """`until` up to and including the first stop token after the prompt."""
    if not until.startswith(prompt):
        same = common_length(prompt, until)
        return Refusal(
            "prompt_mismatch",
            f"message {index}: the generation prompt is not how the trained turn starts:"
            f" {prompt[same:][:40]!r} in the prompt, {until[same:][:40]!r} in the turn",
        )
    ends = [
        (place, -len(stop))
        for stop in stops
        if stop and (place := until.find(stop, len(prompt))) >= 0
    ]
    if not ends:
        written = next_stop()
        if not written:
            return Refusal(
                "no_stop_token", f"message {index}: the turn does not end with {' or '.join(stops)}"
            )
        return until + written
    place, length = min(ends)
    rest = until[place - length :]
    for stop in stops:
        rest = rest.replace(stop, "") if stop else rest
    if rest.strip():
        return Refusal(
            "text_after_stop",
            f"message {index}: the turn goes on after its stop token: {rest.strip()[:40]!r}",
        )
    return until[: place - length]


def _with_spans(
    bound: BoundTemplate,
    turns: Turns,
    text: str,
    trained: Sequence[_Turn],
    tags: Sequence[str],
    *,
    whole: str = "",
) -> RenderedText | Refusal:
    """The text with the trained spans, and those of the other messages."""
    last = trained[-1]
    ends_here = not whole or last.owner + 1 == len(turns)
    shown = turns[: last.owner] if ends_here else turns
    others = [index for index, turn in enumerate(shown) if turn["role"] != "assistant"]
    places = (
        find_owners(
            lambda marked: bound.render(marked, add_generation_prompt=ends_here),
            shown,
            last.prompt if ends_here else whole,
            others,
            tags,
        )
        if others
        else ()
    )
    if isinstance(places, Refusal):
        return places
    spans = [Span(start, end, owner, False) for start, end, owner in places]
    spans += [Span(len(turn.prompt), len(turn.text), turn.owner, True) for turn in trained]
    spans.sort(key=lambda span: span.start)
    for before, after in pairwise(spans):
        if after.start < before.end:
            return Refusal(
                "foreign_text_in_turn",
                f"the template writes text of message {before.owner} and of message {after.owner}"
                " in one place, and one of them is trained",
            )
    return RenderedText(text, tuple(spans))


def stop_between(bound: BoundTemplate, said: Turns, following: Turns, stops: Sequence[str]) -> str:
    """The stop token that the template writes between two turns, with the space before it; "" if it
    writes something else there.
    """
    try:
        until, longer = bound.render(said), bound.render([*said, *following])
    except TemplateError:
        return ""
    if not longer.startswith(until):
        return ""
    rest = longer[len(until) :]
    space = rest[: len(rest) - len(rest.lstrip())]
    named = [stop for stop in stops if stop and rest.startswith(stop, len(space))]
    return space + max(named, key=len) if named else ""
