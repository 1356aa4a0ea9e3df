"""Conversations that say what an earlier one said: word for word, nearly, or as its beginning.

In: conversations, each as a `Sketch` that is made of it alone (so that any worker can make it).
Out: which earlier row each one repeats. `Duplicates` keeps about a kilobyte a row and is fed in the
order of the rows. MinHash (Broder 1997) with locality-sensitive hashing, from `datasketch`.

The surprise: the same request under *other tools* is no duplicate. With the right tool on offer the
answer is a call, without it the answer is words, and the pair teaches the difference. Rows are
near duplicates only where the names of their tools are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, Literal
from zlib import crc32

from smollora.types import Conversation, Message

PERMUTATIONS = 128
"""The estimate of the similarity is off by 0.03 at 0.9 (one standard deviation)."""
SHINGLE = 3
"""Words that are compared together; with fewer, word order would not count."""
MOST_SHINGLES = 4_000
"""Of longer conversations, the first so many."""
WORD = re.compile(r"\w+")

Key = tuple[str, int]
"""(source, row)."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is compared of a conversation."""

    exact: bytes
    """Hash of its turns and tools."""
    beginnings: tuple[bytes, ...]
    """Hash of the turns up to each answer but the last, its tools included."""
    signature: Any = None
    """MinHash of its words; None where near duplicates are not looked for."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """An earlier row that says the same."""

    how: Literal["exact", "near", "beginning"]
    key: Key
    similarity: float = 1.0
    """Estimated share of three-word sequences that the two have in common."""


def sketch(conversation: Conversation, *, near: bool = True) -> Sketch:
    """What is compared of a conversation; `near` costs most of the time."""
    tools = [[tool.name, dict(tool.parameters)] for tool in conversation.tools]
    running = blake2b(_json(tools), digest_size=16)
    hashes: list[bytes] = []
    for message in conversation.messages:
        running.update(_json(_said(message)))
        if message.role == "assistant":
            hashes.append(running.digest())
    return Sketch(
        running.digest(),
        tuple(item for item in hashes if item != running.digest()),
        _signature(conversation) if near else None,
    )


def _said(message: Message) -> list[Any]:
    calls = [[call.name, dict(call.arguments)] for call in message.calls]
    return [message.role, message.content.strip(), message.reasoning, calls]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def shingles(conversation: Conversation) -> set[str]:
    """Sequences of three words of all that is said after the system text, calls included."""
    found: set[str] = set()
    for message in conversation.messages:
        if message.role == "system":
            continue
        calls = [f"{call.name} {json.dumps(dict(call.arguments))}" for call in message.calls]
        found.update(_shingles(" ".join((message.content, *calls))))
        if len(found) > MOST_SHINGLES:
            break
    return found


def _shingles(text: str) -> Iterator[str]:
    words = WORD.findall(text.casefold())[:MOST_SHINGLES]
    if words and len(words) < SHINGLE:
        yield " ".join(words)
    for place in range(len(words) - SHINGLE + 1):
        yield " ".join(words[place : place + SHINGLE])


@cache
def _blank() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=crc32)


def _signature(conversation: Conversation) -> Any:
    from datasketch import LeanMinHash

    # The names of the tools go into every shingle: with other tools, nothing is in common.
    names = "\n".join(sorted(tool.name for tool in conversation.tools))
    offered = crc32(names.encode(errors="replace"))
    made = _blank().copy()
    made.update_batch(
        [f"{offered} {item}".encode(errors="replace") for item in shingles(conversation)]
    )
    return LeanMinHash(made)


class Duplicates:
    """The rows so far, and which of them a new one repeats.

    Args:
        threshold: least estimated similarity of near duplicates; None: they are not looked for.
    """

    def __init__(self, threshold: float | None = 0.9) -> None:
        self.threshold = threshold
        self.exact: dict[bytes, Key] = {}
        self.beginnings: dict[bytes, Key] = {}
        self.signatures: dict[Key, Any] = {}
        self.index: Any = None
        if threshold is not None:
            from datasketch import MinHashLSH

            self.index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)

    def repeated(self, found: Sketch) -> Repeat | None:
        """The earlier row that this one repeats."""
        if found.exact in self.exact:
            return Repeat("exact", self.exact[found.exact])
        if found.signature is None or self.index is None:
            return None
        if found.exact in self.beginnings:
            return Repeat("beginning", self.beginnings[found.exact])
        likely = [
            (self.signatures[key].jaccard(found.signature), key)
            for key in self.index.query(found.signature)
        ]
        best = max(likely, default=None, key=lambda item: item[0])
        if best is None or best[0] < self.threshold:
            return None
        return Repeat("near", best[1], best[0])

    def add(self, found: Sketch, key: Key) -> None:
        """Remember a row that is kept."""
        self.exact.setdefault(found.exact, key)
        if self.index is None or found.signature is None:
            return
        for beginning in found.beginnings:
            self.beginnings.setdefault(beginning, key)
        self.index.insert(key, found.signature, check_duplication=False)
        self.signatures[key] = found.signature
