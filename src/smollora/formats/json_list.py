"""JSON lists: all calls of a turn as one list after an opening mark, with nothing that closes it.

Granite 3.0 (`<|tool_call|>`, a token), Granite 3.1 (`<tool_call>`, ordinary text) and Phi-4-mini
(`functools`, ordinary text). Sources: the models' chat templates and vLLM's parsers granite and
phi4_mini_json. The surprise: where the mark is ordinary text there is nothing but text to tell a
call by, so "spelled_out" does not exist there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollora.formats.grammar import (
    Block,
    CutShort,
    blocks,
    end_of_text,
    first_json,
    looks_like_json_call,
    outside,
    place_of,
    read_call,
    show_json,
    single_id,
    spelled_out,
)
from smollora.types import ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer


@dataclass(frozen=True)
class JsonListFormat:
    """An opening mark, then `[{"name": ..., "arguments": {...}}, ...]`."""

    name: str
    open: str
    vllm_parser: str
    delimited: Delimited = "token"
    close: str = ""
    inner: tuple[str, ...] = ()
    one_block: bool = True
    arguments_mark: str = '"arguments"'
    keeps_ids: bool = False
    """True where the family writes each call's id into the list."""

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`; nothing for none."""
        if not calls:
            return ""
        return self.open + show_json([self._object(call) for call in calls], (self.open,))

    def _object(self, call: ToolCall) -> dict[str, object]:
        body: dict[str, object] = {"name": call.name, "arguments": dict(call.arguments)}
        return body | ({"id": call.id} if self.keeps_ids and call.id is not None else {})

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`; calls of one list share its span. Text after the list is
        not part of it.
        """
        open_id = single_id(tokenizer, self.open)
        ids = list(token_ids[: end_of_text(token_ids, tokenizer, (open_id,))])
        if self.delimited == "text":
            return self._read_text(ids, tokenizer)
        found = list(blocks(ids, open_id, None))
        attempts: list[ParsedCall] = []
        for block in found:
            attempts.extend(self._read_block(ids, block, tokenizer))
        text = tokenizer.decode(outside(ids, found))
        return (*attempts, *spelled_out(text, self.open, looks_like_json_call(text)))

    def _read_block(
        self, ids: Sequence[int], block: Block, tokenizer: Tokenizer
    ) -> list[ParsedCall]:
        start, end = block.inside
        body = tokenizer.decode(list(ids[start:end]))
        attempts, length = self._read_list(body)
        stop = start + place_of(ids[start:end], tokenizer, length)
        raw = tokenizer.decode(list(ids[block.start : stop]))
        return [ParsedCall(raw, a.status, a.call, (block.start, stop)) for a in attempts]

    def _read_text(self, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[ParsedCall, ...]:
        text = tokenizer.decode(list(ids))
        attempts: list[ParsedCall] = []
        position = text.find(self.open)
        while position >= 0:
            body = position + len(self.open)
            if self._is_call(text[body:]):
                read, length = self._read_list(text[body:])
                first = max(0, place_of(ids, tokenizer, position + 1) - 1)
                span = (first, place_of(ids, tokenizer, body + length))
                raw = text[position : body + length]
                attempts.extend(ParsedCall(raw, a.status, a.call, span) for a in read)
                body += length
            position = text.find(self.open, body)
        return tuple(attempts)

    def _is_call(self, after: str) -> bool:
        """Whether the mark begins a call, or is a word of the answer."""
        return after.lstrip().startswith("[") or not after.strip()

    def _read_list(self, body: str) -> tuple[list[ParsedCall], int]:
        """The attempts in a list, and how many characters it takes."""
        try:
            value, length = first_json(body)
        except CutShort:
            return [ParsedCall(body, "unclosed")], len(body)
        except ValueError:
            return [ParsedCall(body, "bad_syntax")], len(body)
        if not isinstance(value, list) or not value:
            return [ParsedCall(body, "bad_syntax")], length
        attempts = []
        for item in value:
            status, call = read_call(item)
            if call is not None and not self.keeps_ids:
                call = ToolCall(call.name, call.arguments)
            attempts.append(ParsedCall(body, status, call))
        return attempts, length


GRANITE = JsonListFormat("granite", "<|tool_call|>", "granite")
GRANITE_31 = JsonListFormat("granite_31", "<tool_call>", "granite", delimited="text")
PHI4_MINI = JsonListFormat("phi4_mini", "functools", "phi4_mini_json", delimited="text")
