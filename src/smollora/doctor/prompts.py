"""Is the prompt that the server renders the prompt that the model was taught?

In: the ids that the server rendered, our own rendering of the same conversation, the conversation.
Out: `PromptFault`s: where the two part, and what of the conversation is not in the served prompt at
all. Both questions matter: two equal prompts can both lose a call, and a different one may lose
nothing. The surprise: a lost call is invisible in ids; what was said is looked for in the text, in
its order, as it is or escaped as in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smollora.doctor.reference import Reference
from smollora.types import Message, ToolSpec

PromptCause = Literal[
    "tools_lost",
    "calls_lost",
    "results_lost",
    "messages_lost",
    "result_as_user",
    "other_template",
    "other_tokens",
    "added_tokens",
    "cut",
]
TEMPLATE_CAUSES: tuple[PromptCause, ...] = (
    *("tools_lost", "calls_lost", "results_lost", "messages_lost"),
    *("result_as_user", "other_template"),
)
"""The template's doing; the others are the prompt's: encoded otherwise, added to, cut."""
AROUND = 24
"""Tokens of evidence."""


@dataclass(frozen=True, slots=True)
class PromptFault:
    """One thing that is wrong with a served prompt."""

    cause: PromptCause
    says: str
    at: int | None = None
    """Token position in the served prompt."""
    served: str = ""
    """What stands there."""
    ours: str = ""
    """What stands there in our rendering; "" where the two are equal."""
    served_ids: tuple[int, ...] = ()
    differs: bool = False
    """Whether the served prompt differs from our rendering at all."""


def prompt_faults(
    reference: Reference,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    served: Sequence[int],
    rendered: Sequence[int] | None,
) -> Iterator[PromptFault]:
    """What is wrong with a served prompt, the worst first; nothing for a sound one."""
    text = reference.decode(served)
    differs = rendered is not None and tuple(served) != tuple(rendered)
    at, ours = None, ""
    if differs and rendered is not None:
        at = _common(served, rendered)
        ours = _piece(reference, rendered, at)
    found = False
    for cause, says, place in (
        *_lost(text, messages, tools),
        *_results_as_user(text, messages, reference),
    ):
        found = True
        where = _token_at(reference, text, place) if at is None else at
        yield PromptFault(
            cause,
            says,
            where,
            _piece(reference, served, where),
            ours,
            tuple(served[where : where + AROUND]),
            differs,
        )
    if differs and not found and rendered is not None and at is not None:
        cause, says = _difference(reference, served, rendered, at)
        here = tuple(served[at : at + AROUND])
        yield PromptFault(cause, says, at, _piece(reference, served, at), ours, here, True)


def _difference(
    reference: Reference, served: Sequence[int], rendered: Sequence[int], at: int
) -> tuple[PromptCause, str]:
    """Why two prompts that hold the same things are not the same."""
    extra = len(served) - len(rendered)
    if reference.decode(served) == reference.decode(rendered):
        return "other_tokens", "the same text, encoded to other ids: another tokenizer"
    if extra > 0 and tuple(served[extra:]) == tuple(rendered):
        return "added_tokens", (
            f"{extra} token(s) stand before the prompt: {reference.decode(served[:extra])!r}"
        )
    if extra < 0 and tuple(rendered[-len(served) :]) == tuple(served):
        return "cut", f"the first {-extra} tokens of the prompt are cut off"
    if extra < 0 and at == len(served):
        return "cut", f"the last {-extra} tokens of the prompt are cut off"
    return "other_template", f"the server renders another prompt from token {at} on"


# ── what was said and is not there ────────────────────────────────────────────────────────────


def _lost(
    text: str, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> Iterator[tuple[PromptCause, str, int]]:
    names = [tool.name for tool in tools]
    parts = [key for tool in tools for key in tool.parameters.get("properties", ())]
    if gone := [name for name in (*names, *parts) if name not in text]:
        what = f"tool {gone[0]}" if gone[0] in names else f"parameter {gone[0]}"
        yield "tools_lost", f"{what} is not in the prompt ({len(gone)} of its names are not)", 0
    pointer = 0
    for message in messages:
        said = message.content.strip()
        if message.role == "assistant" and message.calls:
            for call in message.calls:
                ends = _in_order(text, pointer, [call.name, *_leaves(call.arguments)])
                if ends is None:
                    yield "calls_lost", f"the earlier call of {call.name} is not there", pointer
                    continue
                pointer = ends
            continue
        if not said:
            continue
        ends = _in_order(text, pointer, [said])
        if ends is not None:
            pointer = ends
        elif message.role == "tool":
            if _in_order(text, 0, _leaves_of_text(said)) is None:
                yield "results_lost", f"the result {said[:60]!r} is not in the prompt", pointer
        elif message.role in ("user", "system") and not any(
            _find(text, line.strip(), 0) for line in said.splitlines() if line.strip()
        ):  # a template may take a switch such as /no_think out of it
            yield "messages_lost", f"the {message.role}'s {said[:60]!r} is not there", pointer


def _in_order(text: str, start: int, pieces: Sequence[str]) -> int | None:
    """Where the last of `pieces` ends, one after another from `start`; None if one is missing.

    The order of a call's arguments is left to the template: they are looked for after the name.
    """
    first, *rest = pieces
    found = _find(text, first, start)
    if found is None:
        return None
    ends = [found]
    for piece in rest:
        after = _find(text, piece, found)
        if after is None:
            return None
        ends.append(after)
    return max(ends)


def _find(text: str, piece: str, start: int) -> int | None:
    """Where `piece` ends, as it is or as strings of JSON, of a page's JSON or of Python hold it."""
    as_json = json.dumps(piece, ensure_ascii=False)[1:-1]
    for_pages = as_json.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&'"})
    for form in (piece, as_json, json.dumps(piece)[1:-1], for_pages, repr(piece)[1:-1]):
        place = text.find(form, start)
        if place >= 0:
            return place + len(form)
    return None


def _leaves(value: Any) -> list[str]:
    """The texts in a call's arguments; numbers are written in too many ways."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


def _leaves_of_text(said: str) -> list[str]:
    """A result that is JSON may be written otherwise: then its texts are looked for."""
    try:
        return _leaves(json.loads(said)) or [said]
    except (ValueError, RecursionError):
        return [said]


def _results_as_user(
    text: str, messages: Sequence[Message], reference: Reference
) -> Iterator[tuple[PromptCause, str, int]]:
    """A result that stands behind the very header of a user's turn."""
    added = sorted(reference.tokenizer.get_added_vocab(), key=len, reverse=True)
    tokens = re.compile("|".join(map(re.escape, added))) if added else None
    said = next((m.content.strip() for m in messages if m.role == "user" and m.content), "")
    asked = text.find(said) if said else -1
    if tokens is None or asked < 0:
        return
    header = _header(text, asked, tokens)
    for message in messages:
        result = message.content.strip()
        place = text.rfind(result) if message.role == "tool" and result else -1
        if place > asked and header and _header(text, place, tokens) == header:
            yield (
                "result_as_user",
                f"a tool's result stands behind {header!r}, as if the user had typed it",
                place,
            )
            return


def _header(text: str, place: int, tokens: re.Pattern[str]) -> str:
    """From the last added token before `place` up to it."""
    starts = [found.start() for found in tokens.finditer(text, 0, place)]
    return text[starts[-1] : place] if starts else ""


# ── evidence ──────────────────────────────────────────────────────────────────────────────────


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _piece(reference: Reference, token_ids: Sequence[int], at: int) -> str:
    return reference.decode(token_ids[max(0, at - 4) : at + AROUND])


def _token_at(reference: Reference, text: str, character: int) -> int:
    return len(reference.encode(text[:character]))
