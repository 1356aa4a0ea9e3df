"""Which message each stretch of a rendered text comes from.

In: a way to render, the messages, the text. Out: spans, or a refusal. Looking for a message's words
in the text finds them in the wrong place sooner or later: "user" stands in every header. So the
conversation is rendered once more with an invisible mark before and after each message's content;
where taking the marks out gives the very text, they stood where the content stands, also where the
template wrote it as JSON or left a part of it out.

Some templates look at the content (is it /no_think?), and marks would change what they write. Such
a message is tried alone, then with a single mark inside. If that fails too it owns nothing, and the
row is refused if the message holds a delimiter, which must never pass for the template's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from smollora.errors import TemplateError

Turns = list[dict[str, Any]]
Place = tuple[int, int, int]
"""Characters [start, end) and the index of the message that they come from."""

_FIRST = 0xE000
_PRIVATE = 0xF8FF - _FIRST
_BEYOND = 0xF0000
"""Private-use characters: first those of two bytes, which keep the text small."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a conversation cannot be labelled."""

    reason: str
    detail: str


def content_of(turn: Mapping[str, Any]) -> str:
    """The text of a message, whichever form its content has."""
    content = turn.get("content", "")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return str(content)


def with_content(turn: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The message with another text, in the same form."""
    parts = isinstance(turn.get("content"), list)
    return {**turn, "content": [{"type": "text", "text": text}] if parts else text}


def find_owners(
    render: Callable[[Turns], str],
    turns: Turns,
    text: str,
    owners: Sequence[int],
    tags: Sequence[str],
) -> tuple[Place, ...] | Refusal:
    """Where the contents of the messages `owners` stand in `text`, in order.

    Args:
        render: renders messages as `text` was rendered.
        turns: the messages that `text` is the rendering of.
        text: their rendering without marks.
        owners: indices of the messages that are looked for.
        tags: delimiters and stop tokens, whose owner must be known.
    """
    wanted = [index for index in owners if content_of(turns[index]).strip()]
    places = _framed(render, turns, text, wanted)
    if places is None:
        places = []
        for index in wanted:
            alone = _framed(render, turns, text, [index])
            if alone is None:
                alone = _pinned(render, turns, text, index)
            if alone is None and any(tag in content_of(turns[index]) for tag in tags):
                return Refusal(
                    "owner_unclear",
                    f"message {index} holds a delimiter, and the template changes what it writes"
                    " when the message is marked, so nothing says where its text stands",
                )
            places += alone or []
    places.sort()
    for (_, end, left), (start, _, right) in pairwise(places):
        if start < end:
            return Refusal("owner_unclear", f"messages {left} and {right} stand in one place")
    return tuple(places)


def _mark(place: int) -> str:
    return chr(_FIRST + place if place < _PRIVATE else _BEYOND + place - _PRIVATE)


def _framed(
    render: Callable[[Turns], str], turns: Turns, text: str, owners: Sequence[int]
) -> list[Place] | None:
    """With a mark on both sides of each content, inside the space around it, which templates
    strip.
    """
    marked = list(turns)
    for place, index in enumerate(owners):
        content = content_of(turns[index])
        core = content.strip()
        before, _, after = content.partition(core)
        framed = f"{before}{_mark(2 * place)}{core}{_mark(2 * place + 1)}{after}"
        marked[index] = with_content(turns[index], framed)
    found = _read_marks(render, marked, text, 2 * len(owners))
    if found is None:
        return None
    places: list[Place] = []
    opened: dict[int, int] = {}
    for position, mark in found:
        owner = owners[mark // 2]
        if mark % 2 == 0:
            opened[owner] = position
        elif owner not in opened:
            return None
        else:
            places.append((opened.pop(owner), position, owner))
    return None if opened else [place for place in places if place[0] < place[1]]


def _pinned(
    render: Callable[[Turns], str], turns: Turns, text: str, index: int
) -> list[Place] | None:
    """With one mark inside the content, and as much around it as reads the same."""
    content = content_of(turns[index]).strip()
    for cut in (len(content) // 2, 1):
        left, right = content[:cut], content[cut:]
        marked = list(turns)
        marked[index] = with_content(turns[index], f"{left}{_mark(0)}{right}")
        found = _read_marks(render, marked, text, 1)
        if found is not None:
            return [
                (
                    position - common_length(reversed(left), reversed(text[:position])),
                    position + common_length(right, text[position:]),
                    index,
                )
                for position, _ in found
            ]
    return None


def common_length(left: Iterable[str], right: Iterable[str]) -> int:
    """How many characters two texts share from their beginning."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _read_marks(
    render: Callable[[Turns], str], marked: Turns, text: str, count: int
) -> list[tuple[int, int]] | None:
    """(position in `text`, number) of each mark; None if the marks changed what was written."""
    try:
        written = render(marked)
    except TemplateError:
        return None
    found: list[tuple[int, int]] = []
    for place in range(count):
        position = written.find(_mark(place))
        while position >= 0:
            found.append((position, place))
            position = written.find(_mark(place), position + 1)
    found.sort()
    pieces, before = [], 0
    for position, _ in found:
        pieces.append(written[before:position])
        before = position + 1
    pieces.append(written[before:])
    if "".join(pieces) != text:
        return None
    return [(position - shift, place) for shift, (position, place) in enumerate(found)]
