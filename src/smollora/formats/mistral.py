"""Mistral's two formats: a JSON list after [TOOL_CALLS], and, from v11 on, name[ARGS]{...} a call.

Source: mistral-common's instruct tokenizers; vLLM's parser mistral chooses between the two by
whether the tokenizer knows [ARGS]. Nothing closes a call. The surprise: [TOOL_CALLS] stands once
before all calls in the old form and before each call in the new one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollora.formats.grammar import (
    Block,
    CannotShow,
    CutShort,
    blocks,
    end_of_text,
    first_json,
    outside,
    place_of,
    show_json,
    single_id,
    spelled_out,
)
from smollora.formats.json_list import JsonListFormat
from smollora.types import CallStatus, ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer

MISTRAL = JsonListFormat("mistral", "[TOOL_CALLS]", "mistral", keeps_ids=True)

_NAME = re.compile(r"[^\s\[\]{}]+")


@dataclass(frozen=True)
class MistralNamedFormat:
    """`[TOOL_CALLS]name[ARGS]{...}`, a call after the other."""

    name: str = "mistral_v11"
    open: str = "[TOOL_CALLS]"
    close: str = ""
    inner: tuple[str, ...] = ("[ARGS]",)
    delimited: Delimited = "token"
    one_block: bool = False
    arguments_mark: str = "[ARGS]"
    vllm_parser: str = "mistral"

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`.

        Raises:
            CannotShow: a name with spaces, brackets or braces.
        """
        return "".join(self._show_one(call) for call in calls)

    def _show_one(self, call: ToolCall) -> str:
        if not _NAME.fullmatch(call.name):
            raise CannotShow(f"{call.name!r} cannot stand before [ARGS]")
        body = show_json(dict(call.arguments), (self.open, *self.inner))
        return f"{self.open}{call.name}{self.inner[0]}{body}"

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`; text after a call's JSON is not part of it."""
        open_id = single_id(tokenizer, self.open)
        args_id = single_id(tokenizer, self.inner[0])
        ids = list(token_ids[: end_of_text(token_ids, tokenizer, (open_id, args_id))])
        found = list(blocks(ids, open_id, None))
        attempts = [self._read(ids, block, args_id, tokenizer) for block in found]
        text = tokenizer.decode(outside(ids, found))
        bare = self.inner[0] in text
        return (*attempts, *spelled_out(text, self.open, bare))

    def _read(
        self, ids: Sequence[int], block: Block, args_id: int | None, tokenizer: Tokenizer
    ) -> ParsedCall:
        start, end = block.inside
        marks = [place for place in range(start, end) if ids[place] == args_id]
        stop = end
        call: ToolCall | None = None
        status: CallStatus = "bad_syntax"
        if not marks:
            status = "unclosed" if _NAME.fullmatch(_text(ids, start, end, tokenizer)) else status
        else:
            name = _text(ids, start, marks[0], tokenizer)
            body = tokenizer.decode(list(ids[marks[0] + 1 : end]))
            try:
                value, length = first_json(body)
            except CutShort:
                status = "unclosed"
            except ValueError:
                status = "bad_syntax"
            else:
                stop = marks[0] + 1 + place_of(ids[marks[0] + 1 : end], tokenizer, length)
                if not _NAME.fullmatch(name):
                    status = "bad_syntax" if name else "no_name"
                elif isinstance(value, dict):
                    status, call = "ok", ToolCall(name, value)
        raw = tokenizer.decode(list(ids[block.start : stop]))
        return ParsedCall(raw, status, call, (block.start, stop))


def _text(ids: Sequence[int], start: int, end: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(list(ids[start:end])).strip()


MISTRAL_V11 = MistralNamedFormat()
