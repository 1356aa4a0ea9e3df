"""Rendered text -> token ids, owners and labels.

In: a text with spans of characters, what the tokenizer made of it. Out: a `Rendered` row, or a
refusal where a token stands on both sides of the border between prompt and answer: no server would
send such a prompt. The surprise: some tokenizers (Llama 3's) leave the space of a token out of its
offsets, so an offset alone does not say where a token starts.
"""

from __future__ import annotations

from typing import Any

from smollora.templates.owners import Refusal
from smollora.templates.turns import RenderedText
from smollora.types import Rendered

TEMPLATE = -1
"""Owner of the template's own tokens."""


def columns(name: str, item: RenderedText, encoding: Any, backend: Any) -> Rendered | Refusal:
    """The columns of one text.

    Args:
        name: the conversation's id.
        item: the text and its spans.
        encoding: the text as `tokenizers` encodes it, with offsets.
        backend: the `tokenizers.Tokenizer` that did.
    """
    ids: list[int] = encoding.ids
    owner: tuple[int, ...] = ()
    trained: tuple[bool, ...] = ()
    for span in item.spans:
        start = _first_token(encoding, item.text, span.start)
        if span.trained and not _starts_at(encoding, start, span.start, backend):
            # the tokens of the prompt by itself settle it
            prompt = backend.encode(item.text[: span.start], add_special_tokens=False).ids
            start = len(prompt)
            if ids[:start] != prompt:
                before = item.text[: span.start][-20:]
                after = item.text[span.start : span.end][:20]
                return Refusal(
                    "boundary_inside_token",
                    "a token stands on both sides of the end of the generation prompt:"
                    f" {before!r} and {after!r}",
                )
        start = max(start, len(owner))
        end = max(_first_token(encoding, item.text, span.end), start)
        outside = start - len(owner)
        owner += (TEMPLATE,) * outside + (span.owner,) * (end - start)
        trained += (False,) * outside + (span.trained,) * (end - start)
    rest = len(ids) - len(owner)
    return Rendered(name, tuple(ids), owner + (TEMPLATE,) * rest, trained + (False,) * rest)


def _first_token(encoding: Any, text: str, position: int) -> int:
    """The first token that starts at a character or after it; their number if there is none."""
    token: int | None = None
    at = position
    while token is None and at < len(text):
        token = encoding.char_to_token(at)
        at += 1
    if token is None:
        return len(encoding)
    while token < len(encoding) and encoding.token_to_chars(token)[0] < position:
        token += 1
    return token


def _starts_at(encoding: Any, token: int, position: int, backend: Any) -> bool:
    """Whether a token starts exactly there; where there is a gap before it, its own text says how
    far it reaches.
    """
    if token >= len(encoding):
        return False
    start, end = encoding.token_to_chars(token)
    if start != position:
        return False
    if not token or encoding.token_to_chars(token - 1)[1] == start:
        return True
    said: str = backend.decode([encoding.ids[token]], skip_special_tokens=False)
    return bool(len(said) == end - start)
