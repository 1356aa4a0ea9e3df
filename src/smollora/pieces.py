"""Texts -> token ids; long lines that come again (tools, instructions) are encoded once.

In: texts and a fast tokenizer. Out: the ids that encoding each text whole gives. Most of what is
tokenised in a set of tool rows was tokenised before: the same tool is offered in many rows, the
same instructions in all. Texts are cut where a line ends only if the tokenizer never looks across
that place, which its own description says (`never_looks_across`); else they are encoded whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LONG = 64
"""Characters of a line that is remembered."""
MOST = 1_000
"""Characters of several short lines that are remembered."""
REMEMBERED = 2_000_000
"""Characters that are remembered before the older half is forgotten: some tens of megabytes."""

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

None of their alternatives matches a line end and a printed character after it, and none looks at
what stands before a match. One looks ahead (`\\s+(?!\\S)`), and decides nothing about a single line
end after a printed character. So such a place is the border of two words, whatever stands around.
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
    """Encodes with one tokenizer; remembers long lines. Threads may share it."""

    def __init__(self, backend: Any) -> None:
        """Args: a `tokenizers.Tokenizer`."""
        self.backend = backend
        self._young: dict[str, tuple[int, ...]] = {}
        self._old: dict[str, tuple[int, ...]] = {}
        self._size = 0

    @cached_property
    def divides(self) -> bool:
        """Whether texts are cut at all."""
        return never_looks_across(self.backend)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """What each text is encoded as."""
        plans: list[list[tuple[str, tuple[int, ...] | int]]] = []
        wanted: dict[str, int] = {}
        lines: list[str] = []
        for text in texts:
            plan: list[tuple[str, tuple[int, ...] | int]] = []
            for piece, long in cut(text) if self.divides else ((text, False),):
                known = self._known(piece) if long else None
                if known is not None:
                    plan.append((piece, known))
                    continue
                if long and piece not in wanted:
                    lines.append(piece)
                plan.append((piece, wanted.setdefault(piece, len(wanted))))
            plans.append(plan)
        encodings = self.backend.encode_batch_fast(list(wanted), add_special_tokens=False)
        made = [tuple(encoding.ids) for encoding in encodings]
        for piece in lines:
            self._remember(piece, made[wanted[piece]])
        return [_joined(plan, made) for plan in plans]

    def _known(self, piece: str) -> tuple[int, ...] | None:
        found = self._young.get(piece)
        if found is None:
            found = self._old.get(piece)
            if found is not None:
                self._remember(piece, found)
        return found

    def _remember(self, piece: str, ids: tuple[int, ...]) -> None:
        self._young[piece] = ids
        self._size += len(piece)
        if self._size > REMEMBERED // 2:
            self._old, self._young, self._size = self._young, {}, 0


def _joined(
    plan: Sequence[tuple[str, tuple[int, ...] | int]], made: Sequence[tuple[int, ...]]
) -> Encoded:
    ids: list[int] = []
    pieces: list[Piece] = []
    at = 0
    for text, found in plan:
        tokens = made[found] if isinstance(found, int) else found
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


def never_looks_across(backend: Any) -> bool:
    """Whether a single line end between two printed ASCII characters always ends a token, so that
    both sides can be encoded apart.

    True for byte-level BPE over the words of a known pattern, without a normalizer (or with NFC,
    which changes no ASCII character), and without added tokens that take in the space around them.
    """
    if backend.truncation is not None or backend.padding is not None:
        return False
    for added in backend.get_added_tokens_decoder().values():
        if added.lstrip or added.rstrip or added.single_word or "\n" in added.content:
            return False
    if type(backend.normalizer).__name__ not in ("NoneType", "NFC"):
        return False
    if type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return False
    return _divides_into_words(_described(backend.pre_tokenizer))


def _described(part: Any) -> Any:
    """A part of a tokenizer as tokenizer.json describes it."""
    return {} if part is None else json.loads(part.__getstate__())


def _divides_into_words(found: Any) -> bool:
    steps = found.get("pretokenizers", [found])
    *before, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:
        return all(step.get("type") == "Digits" for step in before)
    return (
        len(before) == 1
        and before[0].get("type") == "Split"
        and before[0]["behavior"] == "Isolated"
        and not before[0]["invert"]
        and before[0]["pattern"].get("Regex") in PATTERNS
    )
