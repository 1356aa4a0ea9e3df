"""Rendered text -> token ids, owners and labels.

In: texts with spans of characters, a fast tokenizer. Out: `Rendered` rows, or a refusal where a
token stands on both sides of the border between prompt and answer: no server would send such a
prompt. The surprise: asking a tokenizer for offsets costs a fifth of its time. In a byte-level
vocabulary each token has a length of its own, and the sum of the lengths says where it starts; the
offsets are asked for only where that sum is not the length of the text. Texts come in pieces
(`pieces`), and only those are measured in which something begins or ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from smollora.pieces import Encoded, Piece, PieceEncoder
from smollora.templates.owners import Refusal
from smollora.templates.turns import RenderedText
from smollora.types import Rendered

TEMPLATE = -1
"""Owner of the template's own tokens."""


class TokenColumns:
    """Turns texts into columns with one tokenizer."""

    def __init__(self, backend: Any) -> None:
        """Args: a `tokenizers.Tokenizer`."""
        self.backend = backend
        self._encoder = PieceEncoder(backend)

    @cached_property
    def lengths(self) -> list[int] | None:
        """Bytes of each token; None where a vocabulary does not say (SentencePiece)."""
        if type(self.backend.decoder).__name__ != "ByteLevel":
            return None
        added = {token: str(one.content) for token, one in self._added().items()}
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        lengths = [0] * (max(vocabulary.values()) + 1)
        for text, token in vocabulary.items():
            lengths[token] = len(text)  # a letter is a byte
        for token, text in added.items():
            lengths[token] = len(text.encode())
        return lengths

    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self.backend.get_added_tokens_decoder()
        return added

    @cached_property
    def _normalizes(self) -> bool:
        return self.backend.normalizer is not None

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of the texts."""
        return self._encoder.encode(texts)

    def columns(self, name: str, item: RenderedText, encoding: Encoded) -> Rendered | Refusal:
        """The columns of one text.

        Args:
            name: the conversation's id.
            item: the text and its spans.
            encoding: what `encode` made of the text.
        """
        ids = encoding.ids
        borders = {place for span in item.spans for place in (span.start, span.end)}
        first = self._by_length(encoding, borders) or self._by_offset(item.text)
        owner: list[int] = []
        trained: list[bool] = []
        for span in item.spans:
            start, exact = first(span.start)
            if span.trained and not exact:
                # offsets may leave out space; the prompt's own tokens settle it
                prompt = self._full(item.text[: span.start]).ids
                start = len(prompt)
                if list(ids[:start]) != prompt:
                    before = item.text[: span.start][-20:]
                    after = item.text[span.start : span.end][:20]
                    return Refusal(
                        "boundary_inside_token",
                        "a token stands on both sides of the end of the generation prompt:"
                        f" {before!r} and {after!r}",
                    )
            start = max(start, len(owner))
            end = max(first(span.end)[0], start)
            outside = start - len(owner)
            owner += [TEMPLATE] * outside + [span.owner] * (end - start)
            trained += [False] * outside + [span.trained] * (end - start)
        rest = len(ids) - len(owner)
        owner += [TEMPLATE] * rest
        trained += [False] * rest
        return Rendered(name, ids, tuple(owner), tuple(trained))

    def _full(self, text: str) -> Any:
        return self.backend.encode(text, add_special_tokens=False)

    def _by_length(
        self, encoding: Encoded, borders: Iterable[int]
    ) -> Callable[[int], tuple[int, bool]] | None:
        """The first token that starts at a character or after it, and whether exactly there; None
        if lengths do not say.
        """
        if self.lengths is None:
            return None
        pieces = encoding.pieces
        firsts = [piece.start for piece in pieces]
        starts: dict[int, list[int]] = {}
        found: dict[int, tuple[int, bool]] = {}
        for position in borders:
            place = bisect_right(firsts, position) - 1
            piece = pieces[place]
            inside = position - piece.start
            if place not in starts:
                if (measured := self._starts(piece)) is None:
                    return None
                starts[place] = measured
            at = inside if piece.text.isascii() else len(piece.text[:inside].encode())
            token = bisect_left(starts[place], at)
            exact = token < len(piece.ids) and starts[place][token] == at
            found[position] = piece.token + token, exact
        return found.__getitem__

    def _starts(self, piece: Piece) -> list[int] | None:
        """Where each token of a piece begins, in bytes, and where the last one ends; None if the
        lengths of the tokens are not the length of the text (one takes in the space around it).
        """
        plain = piece.text.isascii()
        if self.lengths is None or (self._normalizes and not plain):
            return None
        starts = list(accumulate(map(self.lengths.__getitem__, piece.ids), initial=0))
        return starts if starts[-1] == len(piece.text if plain else piece.text.encode()) else None

    def _by_offset(self, text: str) -> Callable[[int], tuple[int, bool]]:
        """The same, from offsets."""
        encoding = self._full(text)

        def first(position: int) -> tuple[int, bool]:
            token: int | None = None
            at = position
            while token is None and at < len(text):
                token = encoding.char_to_token(at)
                at += 1
            if token is None:
                return len(encoding), False
            while token < len(encoding) and encoding.token_to_chars(token)[0] < position:
                token += 1
            return token, self._starts_at(encoding, token, position)

        return first

    def _starts_at(self, encoding: Any, token: int, position: int) -> bool:
        """Some tokenizers (Llama 3's) leave the space of a token out of its offsets: where there is
        a gap before the token, its own text says how far it reaches.
        """
        if token >= len(encoding) or encoding.token_to_chars(token)[0] != position:
            return False
        start, end = encoding.token_to_chars(token)
        if not token or encoding.token_to_chars(token - 1)[1] == start:
            return True
        said: str = self.backend.decode([encoding.ids[token]], skip_special_tokens=False)
        return bool(len(said) == end - start)
