"""Texts -> token ids; words and long lines that come again are encoded once.

In: texts and a fast tokenizer. Out: the ids that encoding each text whole gives. Most of what is
tokenised in a set of tool rows was tokenised before: the same tool is offered in many rows, the
same instructions in all, the same words everywhere. Texts are cut only where the tokenizer never
looks across, which its own description says (`words_of`); else they are encoded whole.

The surprise: a tokenizer spends most of its time on dividing a text into words. For ASCII text
Python's own regular expressions divide it alike, in a quarter of the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

LONG = 100
"""Characters of a line that is remembered."""
MOST = 1_000
"""Characters of several short lines that are remembered."""
REMEMBERED = 32_000_000
"""Bytes, about, that remembered lines take before the older half is forgotten."""
ENTRY = 200
"""Bytes of a remembered line beside its letters and ids."""
WORDS = 100_000
"""Words that are remembered before all are forgotten: some 20 MB."""
WORD = 48
"""Characters of a word that is remembered."""

_PRINTED = frozenset(map(chr, range(0x21, 0x7F)))
_AFTER = _PRINTED - {"/"}
"""GPT-4o's pattern takes slashes after a line end into the token before it."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MIDDLE = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT_FORMS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|", "'(?i:[sdmt]|ll|ve|re)|")
PATTERNS = frozenset(
    {_GPT2, *(f + _MIDDLE % n for f in _SHORT_FORMS for n in (r"\p{N}{1,3}", r"\p{N}"))}
)
"""How GPT-2, Llama 3 and Qwen 2 and 3 divide text into words.

Each match is a word, and a word by itself is divided as it is in its text: no alternative looks at
what stands before it, and the one that looks ahead (`\\s+(?!\\S)`) takes a run of space at the end
of a text whole, as `\\s+` takes what it leaves before a word. No alternative matches a line end and
a printed character after it: such a place is the border of two words, whatever stands around.
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text and its tokens."""

    start: int
    """Its first character in the text."""
    token: int
    """Its first token in the text."""
    text: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's tokens, and the pieces that they were encoded in."""

    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]


class PieceEncoder:
    """Encodes with one tokenizer; remembers words and long lines. Threads may share it."""

    def __init__(self, backend: Any) -> None:
        """Args: a `tokenizers.Tokenizer`."""
        self.backend = backend
        self._young: dict[str, tuple[int, ...]] = {}
        self._old: dict[str, tuple[int, ...]] = {}
        self._size = 0
        self._words: dict[str, tuple[int, ...]] = {}

    @cached_property
    def pattern(self) -> str | None:
        """What divides texts into words; None where they are not cut at all."""
        return words_of(self.backend)

    @cached_property
    def _divide(self) -> Callable[[str], list[str]]:
        return ascii_words(self.pattern or "")

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """Added tokens, which are found before a text is divided: the longest at each place."""
        added = self.backend.get_added_tokens_decoder().values()
        texts = sorted((token.content for token in added), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, texts)) or '(?!)'})")

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """What each text is encoded as."""
        if self.pattern is None:
            made = self._by_backend(texts)
            pairs = zip(texts, made, strict=True)
            return [Encoded(ids, (Piece(0, 0, text, ids),)) for text, ids in pairs]
        plans: list[list[tuple[str, tuple[int, ...] | None]]] = []
        wanted: dict[str, bool] = {}
        for text in texts:
            plan: list[tuple[str, tuple[int, ...] | None]] = []
            for piece, again in cut(text):
                known = self._known(piece) if again else None
                plan.append((piece, known))
                if known is None:
                    wanted[piece] = again
            plans.append(plan)
        found = self._encode_pieces(list(wanted))
        for piece, again in wanted.items():
            if again:
                self._remember(piece, found[piece])
        return [_joined(plan, found) for plan in plans]

    def _by_backend(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def _encode_pieces(self, pieces: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The ids of each piece: by its words, or, where it is not ASCII, by the tokenizer."""
        divided = {piece: self._words_in(piece) for piece in pieces if piece.isascii()}
        if len(self._words) > WORDS:
            self._words = {}
        words = self._words  # it only grows, also while another thread adds to it
        others = [piece for piece in pieces if piece not in divided]
        missing = [w for w in set(chain.from_iterable(divided.values())) if w not in words]
        asked = [*others, *missing]
        found = dict(zip(asked, self._by_backend(asked), strict=True))
        words.update((word, found[word]) for word in missing if len(word) <= WORD)
        for piece, parts in divided.items():
            try:
                ids = tuple(chain.from_iterable(map(words.__getitem__, parts)))
            except KeyError:  # a long word
                each = (words.get(word) or found[word] for word in parts)
                ids = tuple(chain.from_iterable(each))
            found[piece] = ids
        return found

    def _words_in(self, piece: str) -> list[str]:
        """The words of an ASCII text, added tokens among them."""
        parts = self._added.split(piece)
        if len(parts) == 1:
            return self._divide(piece)
        words: list[str] = []
        for place, part in enumerate(parts):
            words += (part,) if place % 2 else self._divide(part)
        return words

    def _known(self, piece: str) -> tuple[int, ...] | None:
        found = self._young.get(piece)
        if found is None:
            found = self._old.get(piece)
            if found is not None:
                self._remember(piece, found)
        return found

    def _remember(self, piece: str, ids: tuple[int, ...]) -> None:
        self._young[piece] = ids
        # the ids of words are shared, those of other pieces are objects of their own
        letter, token = (1, 8) if piece.isascii() else (4, 40)
        self._size += ENTRY + letter * len(piece) + token * len(ids)
        if self._size > REMEMBERED // 2:
            self._old, self._young, self._size = self._young, {}, 0


def _joined(
    plan: Sequence[tuple[str, tuple[int, ...] | None]], found: Mapping[str, tuple[int, ...]]
) -> Encoded:
    ids: list[int] = []
    pieces: list[Piece] = []
    at = 0
    for text, known in plan:
        tokens = found[text] if known is None else known
        pieces.append(Piece(at, len(ids), text, tokens))
        ids += tokens
        at += len(text)
    return Encoded(tuple(ids), tuple(pieces))


def cut(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, in order, and whether each may come again: long lines, and what stands
    before one (headers, instructions), but not what follows the last one.

    A line stands alone where single line ends between printed ASCII characters border it; what is
    between such lines is one piece.
    """
    lines = text.split("\n")
    last = len(lines) - 1
    start = at = 0
    for number, line in enumerate(lines):
        after = at + len(line) + 1
        if (
            len(line) >= LONG
            and number < last
            and line[0] in _AFTER
            and line[-1] in _PRINTED
            and lines[number + 1][:1] in _AFTER
            and (number == 0 or lines[number - 1][-1:] in _PRINTED)
        ):
            if start < at:
                yield text[start:at], at - start < MOST
            yield text[at:after], True
            start = after
        at = after
    if start < len(text) or not text:
        yield text[start:], False


def words_of(backend: Any) -> str | None:
    """The pattern by which a tokenizer divides texts into words that it encodes apart.

    None unless that is all it does: byte-level BPE over the words of a known pattern, without a
    normalizer (or with NFC, which changes no ASCII), and with added tokens that are simply found.
    """
    if backend.truncation is not None or backend.padding is not None:
        return None
    added = list(backend.get_added_tokens_decoder().values())
    for token in added:
        if token.lstrip or token.rstrip or token.single_word or "\n" in token.content:
            return None
    if len({token.normalized for token in added}) > 1 or backend.encode_special_tokens:
        return None
    if type(backend.normalizer).__name__ not in ("NoneType", "NFC"):
        return None
    if type(backend.model).__name__ != "BPE":
        return None
    if backend.model.dropout or backend.pre_tokenizer is None:
        return None
    return _pattern(json.loads(backend.pre_tokenizer.__getstate__()))


def _pattern(found: Any) -> str | None:
    """The pattern of a pre-tokenizer, as tokenizer.json describes it."""
    *before, last = found.get("pretokenizers", [found])
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if before else _GPT2
    if len(before) != 1 or before[0].get("type") != "Split":
        return None
    split = before[0]
    pattern = split["pattern"].get("Regex")
    whole = split["behavior"] == "Isolated" and not split["invert"]
    return pattern if whole and pattern in PATTERNS else None


def ascii_words(pattern: str) -> Callable[[str], list[str]]:
    """Divides ASCII text into words as one of `PATTERNS` does; of Unicode's letters and numbers
    only those are asked for.
    """
    for found, meant in (
        (r"[^\r\n\p{L}\p{N}]", r"[^\r\nA-Za-z0-9]"),
        (r"[^\s\p{L}\p{N}]", r"[^\sA-Za-z0-9]"),
        (r"\p{L}", "[A-Za-z]"),
        (r"\p{N}", "[0-9]"),
    ):
        pattern = pattern.replace(found, meant)
    return re.compile(pattern, re.ASCII).findall
