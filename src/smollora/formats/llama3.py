"""Llama 3.1's and 3.2's JSON calls: the whole answer is `{"name": ..., "parameters": {...}}`.

Source: Meta's prompt format and chat template; vLLM's parser llama3_json. There is no delimiter:
the answer is a call or it is not. `<|python_tag|>` may stand before it, as a token. The surprise:
vLLM reads a JSON object *anywhere* in a complete answer, and only at the beginning when it streams;
an object after words is therefore an attempt with bad syntax here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollora.formats.grammar import (
    CutShort,
    end_of_text,
    first_json,
    place_of,
    read_call,
    show_json,
    single_id,
)
from smollora.types import ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer

PYTHON_TAG = "<|python_tag|>"
BETWEEN = "; "
"""Between calls; vLLM skips exactly two characters."""
_CALL_LIKE = re.compile(r"""\{\s*["'](?:name|function|parameters|arguments)["']\s*:""")
"""An object that is meant as a call, and no JSON that was asked for."""


@dataclass(frozen=True)
class Llama3Format:
    """Bare JSON objects with the keys name and parameters, separated by `; `."""

    name: str = "llama3_json"
    open: str = ""
    close: str = ""
    inner: tuple[str, ...] = (PYTHON_TAG,)
    """May stand before the first call."""
    delimited: Delimited = "none"
    one_block: bool = False
    arguments_mark: str = '"parameters"'
    vllm_parser: str = "llama3_json"

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`. Llama 3's own template renders one call a
        turn and refuses more.
        """
        bodies = ({"name": call.name, "parameters": dict(call.arguments)} for call in calls)
        return BETWEEN.join(show_json(body, (PYTHON_TAG,)) for body in bodies)

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`: an answer that begins as a call, or holds one later."""
        tag = single_id(tokenizer, PYTHON_TAG)
        start = 1 if tag is not None and token_ids and token_ids[0] == tag else 0
        ids = list(token_ids[start : end_of_text(token_ids, tokenizer, (tag,))])
        text = tokenizer.decode(ids)
        if text.lstrip().startswith(PYTHON_TAG):
            return (ParsedCall(text, "spelled_out"),)
        if not _CALL_LIKE.search(text) and not start:
            return ()
        if not text.lstrip().startswith("{"):
            return (ParsedCall(text, "bad_syntax", None, (0, start + len(ids))),)
        return tuple(self._read(text, ids, start, tokenizer))

    def _read(
        self, text: str, ids: Sequence[int], start: int, tokenizer: Tokenizer
    ) -> list[ParsedCall]:
        attempts: list[ParsedCall] = []
        position = 0

        def attempt(end: int, attempted: ParsedCall) -> None:
            first = start + max(0, place_of(ids, tokenizer, position + 1) - 1) if position else 0
            span = (first, start + place_of(ids, tokenizer, end))
            attempts.append(ParsedCall(text[position:end], attempted.status, attempted.call, span))

        while position < len(text):
            try:
                value, length = first_json(text[position:])
            except CutShort:
                attempt(len(text), ParsedCall("", "unclosed"))
                break
            except ValueError:
                attempt(len(text), ParsedCall("", "bad_syntax"))
                break
            status, call = read_call(value, ("parameters", "arguments"))
            if call is not None:
                call = ToolCall(call.name, call.arguments)
            attempt(position + length, ParsedCall("", status, call))
            position += length
            if not text[position:].lstrip().startswith(";"):
                if _CALL_LIKE.search(text, position):
                    attempt(len(text), ParsedCall("", "bad_syntax"))
                break
            position = text.index(";", position) + 1
            position += len(text[position:]) - len(text[position:].lstrip())
        return attempts


LLAMA3_JSON = Llama3Format()
