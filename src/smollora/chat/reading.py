"""What the model says, read from its ids as they come, and once more when it has ended.

In: token ids. Out: pieces to show; at the end the message, with calls that are told by ids alone.
The surprise: a call that is spelled with ordinary tokens is text here, and shown as such, though
the parser of a server might take it for a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smollora.chat.answerer import PieceKind
from smollora.formats import ToolFormat
from smollora.tokens import TokenFacts
from smollora.types import Message, ParsedCall, ToolSpec

THINK, THOUGHT = "<think>", "</think>"


class Reading:
    """Pieces of text from ids, one at a time."""

    def __init__(self, tokenizer: Any, facts: TokenFacts, *, thinks: bool = False) -> None:
        """Args: a fast tokenizer; its facts; whether the prompt ends inside a think block."""
        from tokenizers.decoders import DecodeStream

        self._backend = tokenizer.backend_tokenizer
        self._decoded = DecodeStream(skip_special_tokens=False)
        self._facts = facts
        self._thinks = thinks
        self._calls = False

    def feed(self, token: int) -> tuple[PieceKind, str] | None:
        """What `token` adds; None for nothing to show."""
        facts = self._facts
        if token in facts.stop_ids:
            return None
        if facts.has_delimiters and token == facts.open.id:
            again, self._calls = self._calls, True
            return None if again else ("call", "")
        if self._calls:
            if token == facts.close.id:
                self._calls = False
            return None
        text = self._decoded.step(self._backend, token)
        if not text:
            return None
        if text.strip() in (THINK, THOUGHT):
            self._thinks = text.strip() == THINK
            return None
        return ("thought" if self._thinks else "text", text)


def read_message(
    ids: Sequence[int],
    tokenizer: Any,
    facts: TokenFacts,
    fmt: ToolFormat,
    tools: Sequence[ToolSpec],
    *,
    whole: bool,
    thinks: bool = False,
) -> tuple[Message, tuple[ParsedCall, ...]]:
    """(message, attempts) of an answer's ids.

    A call that cannot be read stays in the content as it was written: the model is shown its own
    mistake. So does everything that was interrupted.

    Args:
        ids: what was generated, stop token included.
        tokenizer: the model's own.
        facts: about it.
        fmt: how it writes calls.
        tools: those that were offered.
        whole: False for an answer that was interrupted: nothing in it is called.
        thinks: whether the prompt ends inside a think block.
    """
    body = [token for token in ids if token not in facts.stop_ids]
    attempts = fmt.parse(tuple(ids), tokenizer, tools)
    good = [a for a in attempts if a.status == "ok" and a.call is not None] if whole else []
    spans = [a.span for a in good if a.span is not None]
    taken = {place for start, end in spans for place in range(start, end)}
    left = [t for place, t in enumerate(ids) if place not in taken and t not in facts.stop_ids]
    text = tokenizer.decode(left if good else body)
    reasoning = ""
    if thinks or THINK in text:
        before, mark, after = text.partition(THOUGHT)
        if mark or thinks:
            reasoning = before.replace(THINK, "", 1).strip()
            text = after.lstrip("\n")
    calls = tuple(a.call for a in good if a.call is not None)
    return Message("assistant", text.strip() if calls else text, calls, reasoning=reasoning), (
        attempts
    )


def ends_in_thought(prompt: str) -> bool:
    """Whether a prompt ends inside a think block that it opened itself."""
    tail = prompt[-200:]
    return tail.rfind(THINK) > tail.rfind(THOUGHT)
