"""DeepSeek V3's and V3.1's calls: a token around all calls, one around each, one inside.

V3 and R1 write `function<sep>name`, a newline and the arguments as fenced JSON; V3.1 writes
`name<sep>{...}`. Sources: the chat templates; vLLM's parsers deepseek_v3 and deepseek_v31. The
surprise: the letters in the tokens are U+FF5C and U+2581, not | and _.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

CALL, SEPARATOR, END_OF_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_NAME = re.compile(r"[^\s<>]+")
_FENCED = re.compile(r"(.*?)\n```json\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True)
class DeepSeekFormat:
    """Calls with delimiters of their own within one pair of delimiters."""

    name: str
    vllm_parser: str
    fenced: bool
    arguments_mark: str
    open: str = "<｜tool▁calls▁begin｜>"
    close: str = "<｜tool▁calls▁end｜>"
    inner: tuple[str, ...] = (CALL, SEPARATOR, END_OF_CALL)
    delimited: Delimited = "token"
    one_block: bool = True

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`; nothing for none.

        Raises:
            CannotShow: a name with spaces or angle brackets.
        """
        if not calls:
            return ""
        between = "\n" if self.fenced else ""
        return f"{self.open}{between.join(self._show_one(call) for call in calls)}{self.close}"

    def _show_one(self, call: ToolCall) -> str:
        if not _NAME.fullmatch(call.name):
            raise CannotShow(f"{call.name!r} cannot stand beside {SEPARATOR}")
        body = show_json(dict(call.arguments), (self.open, self.close, *self.inner))
        if self.fenced:
            return f"{CALL}function{SEPARATOR}{call.name}\n```json\n{body}\n```{END_OF_CALL}"
        return f"{CALL}{call.name}{SEPARATOR}{body}{END_OF_CALL}"

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`; all are unclosed without the outer closing token."""
        found = list(
            blocks(token_ids, single_id(tokenizer, self.open), single_id(tokenizer, self.close))
        )
        call_id, separator, end_id = (single_id(tokenizer, text) for text in self.inner)
        attempts: list[ParsedCall] = []
        for block in found:
            start, end = block.inside
            inner = list(blocks(token_ids[start:end], call_id, end_id))
            if not inner:
                raw = tokenizer.decode(list(token_ids[block.start : block.stop]))
                status: CallStatus = "bad_syntax" if block.closed else "unclosed"
                attempts.append(ParsedCall(raw, status, None, (block.start, block.stop)))
            for number, one in enumerate(inner):
                ids = token_ids[start + one.inside[0] : start + one.inside[1]]
                call: ToolCall | None = None
                if block.closed and one.closed:
                    status, call = self._read(ids, separator, tokenizer)
                else:
                    status = "unclosed"
                first = block.start if number == 0 else start + one.start
                stop = block.stop if number + 1 == len(inner) else start + one.stop
                raw = tokenizer.decode(list(token_ids[first:stop]))
                attempts.append(ParsedCall(raw, status, call, (first, stop)))
        text = tokenizer.decode(outside(token_ids, found))
        return (*attempts, *spelled_out(text, self.open, CALL in text))

    def _read(
        self, ids: Sequence[int], separator: int | None, tokenizer: Tokenizer
    ) -> tuple[CallStatus, ToolCall | None]:
        places = [place for place, token in enumerate(ids) if token == separator]
        if len(places) != 1:
            return "bad_syntax", None
        left = tokenizer.decode(list(ids[: places[0]]))
        right = tokenizer.decode(list(ids[places[0] + 1 :]))
        name, body = left, right
        if self.fenced:
            fenced = _FENCED.fullmatch(right)
            if fenced is None or left != "function":
                return "bad_syntax", None
            name, body = fenced.groups()
        if not _NAME.fullmatch(name):
            return ("bad_syntax" if name else "no_name"), None
        try:
            value = whole_json(body)
        except ValueError:
            return "bad_syntax", None
        return ("ok", ToolCall(name, value)) if isinstance(value, dict) else ("bad_syntax", None)


DEEPSEEK_V3 = DeepSeekFormat("deepseek_v3", "deepseek_v3", True, "```json")
DEEPSEEK_V31 = DeepSeekFormat("deepseek_v31", "deepseek_v31", False, SEPARATOR)
