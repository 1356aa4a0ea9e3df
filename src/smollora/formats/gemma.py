"""Gemma 4's and FunctionGemma's calls: `call:name{key:value}` with a token around every string.

The two share one grammar and differ in their tokens. Sources: the chat templates and Google's
formatting guide; vLLM's parsers gemma4 and functiongemma. Strings have no escapes: what stands
between two quote tokens is the string. The surprise: the quote is a *token*, so a quote that is
spelled with ordinary tokens is part of the text, and vLLM, which reads text, ends the string there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollora.formats.grammar import (
    CannotShow,
    blocks,
    outside,
    show_json,
    single_id,
    spelled_out,
    whole_json,
)
from smollora.types import CallStatus, ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer

_CALL = re.compile(r"\s*call:([^\s{}():\"]*)(\{.*\})\s*", re.DOTALL)
_BARE_CALL = re.compile(r"\s*call:[\w.\-]+\{")
_NAME = re.compile(r"[^\s{}():\"]+")
_KEY = re.compile(r"[^\s:,{}\[\]\"]+")
_ATOM = re.compile(r"[^\s:,{}\[\]\"]+")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class GemmaFormat:
    """`call:name{...}` between two tokens, one block per call."""

    name: str
    open: str
    close: str
    quote: str
    vllm_parser: str
    delimited: Delimited = "token"
    one_block: bool = False
    arguments_mark: str = "{"

    @property
    def inner(self) -> tuple[str, ...]:
        """The token around strings."""
        return (self.quote,)

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`.

        Raises:
            CannotShow: a string that holds one of the tokens, a name or key with punctuation of
                the grammar in it.
        """
        names = [self._plain(_NAME, call.name) for call in calls]
        return "".join(
            f"{self.open}call:{name}{self._show(call.arguments)}{self.close}"
            for name, call in zip(names, calls, strict=True)
        )

    def _show(self, value: Any) -> str:
        if isinstance(value, Mapping):
            pairs = (f"{self._plain(_KEY, key)}:{self._show(item)}" for key, item in value.items())
            return "{" + ",".join(pairs) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(self._show(item) for item in value) + "]"
        if not isinstance(value, str):
            return show_json(value)
        if found := next((t for t in (self.open, self.close, self.quote) if t in value), None):
            raise CannotShow(f"a text holds {found}, which has no escape here")
        return f"{self.quote}{value}{self.quote}"

    def _plain(self, pattern: re.Pattern[str], word: str) -> str:
        """A name or key, if it can stand there without quotes."""
        tokens = (self.open, self.close, self.quote)
        if not pattern.fullmatch(word) or any(token in word for token in tokens):
            raise CannotShow(f"{word!r} holds punctuation of the grammar")
        return word

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`, in order; spelled-out ones after the real ones."""
        quote = single_id(tokenizer, self.quote)
        found = list(
            blocks(token_ids, single_id(tokenizer, self.open), single_id(tokenizer, self.close))
        )
        attempts: list[ParsedCall] = []
        for block in found:
            status: CallStatus = "unclosed"
            call: ToolCall | None = None
            if block.closed:
                status, call = self._read(token_ids[slice(*block.inside)], quote, tokenizer)
            raw = tokenizer.decode(list(token_ids[block.start : block.stop]))
            attempts.append(ParsedCall(raw, status, call, (block.start, block.stop)))
        text = tokenizer.decode(outside(token_ids, found))
        return (*attempts, *spelled_out(text, self.open, bool(_BARE_CALL.match(text))))

    def _read(
        self, ids: Sequence[int], quote: int | None, tokenizer: Tokenizer
    ) -> tuple[CallStatus, ToolCall | None]:
        try:
            match = _CALL.fullmatch(_quoted(ids, quote, tokenizer))
            if match is None:
                return "bad_syntax", None
            name, body = match.groups()
            if not name:
                return "no_name", None
            value, end = _value(body, 0)
            if end != len(body):
                return "bad_syntax", None
        except (ValueError, RecursionError):
            return "bad_syntax", None
        return "ok", ToolCall(name, value)


# ── reading ───────────────────────────────────────────────────────────────────────────────────


def _quoted(ids: Sequence[int], quote: int | None, tokenizer: Tokenizer) -> str:
    """The text with every string between two quote tokens as a JSON string, and no other quotes.

    Raises:
        ValueError: an odd number of quote tokens, or a quotation mark outside of strings.
    """
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == quote:
            pieces.append([])
        else:
            pieces[-1].append(token)
    if len(pieces) % 2 == 0:
        raise ValueError("a string is not closed")
    texts = [tokenizer.decode(piece) if piece else "" for piece in pieces]
    if any('"' in text for text in texts[::2]):
        raise ValueError("a quotation mark outside of strings")
    return "".join(json.dumps(text) if at % 2 else text for at, text in enumerate(texts))


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value at `at`, and where it ends; ValueError where there is none."""
    at = _skip(text, at)
    if text.startswith("{", at):
        return _mapping(text, at)
    if text.startswith("[", at):
        return _list(text, at)
    if text.startswith('"', at):
        string, end = json.decoder.scanstring(text, at + 1)  # type: ignore[attr-defined]
        return string, end
    atom = _ATOM.match(text, at)
    if atom is None:
        raise ValueError("no value")
    return whole_json(atom[0]), atom.end()


def _mapping(text: str, at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        return found, at + 1
    while True:
        key, at = _key(text, at)
        if key in found or not text.startswith(":", at):
            raise ValueError("a key twice, or without a value")
        found[key], at = _value(text, at + 1)
        at = _skip(text, at)
        if text.startswith("}", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise ValueError("a comma is missing")
        at = _skip(text, at + 1)


def _key(text: str, at: int) -> tuple[str, int]:
    if text.startswith('"', at):
        value, end = _value(text, at)
        return str(value), end
    match = _KEY.match(text, at)
    if match is None:
        raise ValueError("no key")
    return match[0], match.end()


def _list(text: str, at: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        return found, at + 1
    while True:
        value, at = _value(text, at)
        found.append(value)
        at = _skip(text, at)
        if text.startswith("]", at):
            return found, at + 1
        if not text.startswith(",", at):
            raise ValueError("a comma is missing")
        at += 1


GEMMA4 = GemmaFormat("gemma4", "<|tool_call>", "<tool_call|>", '<|"|>', "gemma4")
FUNCTIONGEMMA = GemmaFormat(
    "functiongemma",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "functiongemma",
)
