"""Conversations that say what another one says: word for word, nearly, or as its beginning.

In: a `Sketch` of each conversation, made of it alone, so that any worker can make it. Out: which
row repeats which, found at the end over all sketches; the same whoever made them. MinHash (Broder
1997) from `datasketch`, compared in bands; memory is some 200 bytes a row.

The surprise: the same request under *other tools* is no duplicate. With the right tool on offer the
answer is a call, without it the answer is words, and the pair teaches the difference. Rows are
near duplicates only where the names of their tools are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, Literal
from zlib import crc32

from smollora.types import Conversation, Message

PERMUTATIONS = 128
"""The estimate of the similarity is off by 0.03 at 0.9 (one standard deviation)."""
BANDS = 16
"""Of 8 permutations each: of pairs at similarity 0.9, 1 in 8,000 is missed; at 0.8, 1 in 19."""
SHINGLE = 3
"""Words that are compared together; with fewer, word order would not count."""
MOST_SHINGLES = 4_000
"""Of longer conversations, the first so many."""
MOST_COMPARED = 64
"""Rows of one bucket that a row is compared with."""
DIGEST = 16
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Sketch:
    """What is compared of a conversation."""

    exact: bytes
    """Hash of its turns and tools."""
    beginnings: tuple[bytes, ...] = ()
    """The same for the turns up to each answer but the last."""
    signature: bytes = b""
    """MinHash of its words, 32-bit numbers; empty where near duplicates are not looked for."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A row that repeats another."""

    index: int
    of: int
    how: Literal["exact", "near", "beginning"]
    similarity: float = 1.0
    """Estimated share of three-word sequences that the two have in common."""


def sketch(conversation: Conversation, *, near: bool = True) -> Sketch:
    """What is compared of a conversation; `near` takes most of the time."""
    tools = [[tool.name, dict(tool.parameters)] for tool in conversation.tools]
    running = blake2b(_json(tools), digest_size=DIGEST)
    hashes: list[bytes] = []
    for message in conversation.messages:
        running.update(_json(_said(message)))
        if near and message.role == "assistant":
            hashes.append(running.digest())
    exact = running.digest()
    beginnings = tuple(item for item in hashes if item != exact)
    return Sketch(exact, beginnings, _signature(conversation) if near else b"")


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
        found.update(word_shingles(" ".join((message.content, *calls)), SHINGLE))
        if len(found) > MOST_SHINGLES:
            break
    return found


def word_shingles(text: str, size: int) -> Iterator[str]:
    """Sequences of `size` words; of a shorter text, all its words."""
    words = WORD.findall(text.casefold())[:MOST_SHINGLES]
    if words and len(words) < size:
        yield " ".join(words)
    for place in range(len(words) - size + 1):
        yield " ".join(words[place : place + size])


@cache
def _blank() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=crc32)


def _signature(conversation: Conversation) -> bytes:
    # The names of the tools go into every shingle: with other tools, nothing is in common.
    names = "\n".join(sorted(tool.name for tool in conversation.tools))
    offered = crc32(names.encode(errors="replace"))
    made = _blank().copy()
    made.update_batch(
        [f"{offered} {item}".encode(errors="replace") for item in shingles(conversation)]
    )
    return bytes(made.hashvalues.astype("<u4").tobytes())


# ── over all rows ────────────────────────────────────────────────────────────────────────────────


def bands(signatures: Sequence[bytes]) -> Any:
    """One 64-bit number for each band of each signature: an array (rows, BANDS).

    Rows without a signature get numbers of their own, which nothing else has.
    """
    import numpy as np

    blank = b"\0" * (4 * PERMUTATIONS)
    flat = np.frombuffer(b"".join(item or blank for item in signatures), "<u4")
    parts = flat.reshape(-1, BANDS, PERMUTATIONS // BANDS).astype(np.uint64)
    mixed = np.zeros(parts.shape[:2], np.uint64)
    for place in range(parts.shape[2]):
        mixed = (mixed ^ parts[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def find_repeats(
    exact: bytes,
    beginnings: Sequence[tuple[int, bytes]],
    banded: Any,
    signatures: Callable[[Sequence[int]], Sequence[bytes]],
    threshold: float,
) -> list[Repeat]:
    """The rows that repeat another one, which itself stays; in order.

    Args:
        exact: the hashes of all rows, one after the other.
        beginnings: (row, hash) of every beginning of every row.
        banded: `bands` of all rows; None: only equal rows are looked for.
        signatures: gives the signatures of some rows, in their order.
        threshold: least estimated similarity of near duplicates.
    """
    import numpy as np

    hashes = np.frombuffer(exact, np.dtype((np.uint64, 2))).copy()
    _, first, group = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    origin = first[group.reshape(-1)]
    found = {
        int(row): Repeat(int(row), int(origin[row]), "exact")
        for row in np.flatnonzero(origin != np.arange(len(origin)))
    }
    if banded is None:
        return [found[row] for row in sorted(found)]
    longer = {value: int(origin[row]) for row, value in reversed(beginnings)}
    if longer:
        for row in range(len(origin)):
            of = longer.get(exact[row * DIGEST : (row + 1) * DIGEST])
            if of is not None and row not in found:
                found[row] = Repeat(row, of, "beginning")
    holders = {repeat.of for repeat in found.values() if repeat.how == "beginning"}
    for repeat in _near(banded, signatures, threshold, set(found), holders):
        found[repeat.index] = repeat
    return [found[row] for row in sorted(found)]


def _near(
    banded: Any,
    signatures: Callable[[Sequence[int]], Sequence[bytes]],
    threshold: float,
    gone: set[int],
    holders: set[int],
) -> Iterator[Repeat]:
    """Near duplicates among the rows that are not gone. Rows that hold another come first, and so
    stay: what was taken out for their sake would go with them.
    """
    import numpy as np

    rows = np.array([row for row in range(len(banded)) if row not in gone], np.int64)
    if not len(rows):
        return
    shared = np.zeros((len(rows), BANDS), bool)
    for band in range(BANDS):
        _, group, count = np.unique(banded[rows, band], return_inverse=True, return_counts=True)
        shared[:, band] = count[group] > 1
    likely = np.flatnonzero(shared.any(axis=1))
    wanted = [int(row) for row in rows[likely]]
    flat = np.frombuffer(b"".join(signatures(wanted)), "<u4").reshape(-1, PERMUTATIONS)
    buckets: dict[tuple[int, int], list[int]] = {}
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place] not in holders):
        row = wanted[place]
        keys = [
            (int(band), int(banded[row, band])) for band in np.flatnonzero(shared[likely[place]])
        ]
        others = sorted({other for key in keys for other in buckets.get(key, ())})
        if others:
            similar = (flat[others] == flat[place]).mean(axis=1)
            best = int(similar.argmax())
            if similar[best] >= threshold:
                yield Repeat(row, wanted[others[best]], "near", float(similar[best]))
                continue
        for key in keys:
            bucket = buckets.setdefault(key, [])
            if len(bucket) < MOST_COMPARED:
                bucket.append(place)
