"""The hermes format: one JSON object per call between <tool_call> and </tool_call>.

Used by Hermes 2 Pro and 3, Qwen 2.5 and 3, Granite 4, SmolLM3, and the starter model. Spec:
NousResearch/Hermes-Function-Calling. The surprise: vLLM's parser of this name matches *strings*, so
a call spelled with ordinary tokens still parses there; here a call counts only when the delimiter
**ids** are there, and a spelled one is an attempt with status "spelled_out".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smollora.formats.grammar import (
    blocks,
    looks_like_json_call,
    outside,
    read_call,
    show_json,
    single_id,
    spelled_out,
    whole_json,
)
from smollora.types import CallStatus, ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer


@dataclass(frozen=True)
class HermesFormat:
    """JSON object in tags; name first, arguments second, one block per call."""

    name: str = "hermes"
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    inner: tuple[str, ...] = ()
    delimited: Delimited = "token"
    one_block: bool = False
    arguments_mark: str = '"arguments"'
    vllm_parser: str = "hermes"

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`."""
        return "\n".join(f"{self.open}\n{self._body(call)}\n{self.close}" for call in calls)

    def _body(self, call: ToolCall) -> str:
        """One call as JSON, name first (arguments first corrupts vLLM's streaming)."""
        body = {"name": call.name, "arguments": dict(call.arguments)}
        return show_json(body, (self.open, self.close))

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`, in order; spelled-out ones after the real ones.

        Args:
            token_ids: what the model produced, prompt excluded, stop token optional.
            tokenizer: the model's own.
            tools: not needed; the JSON says each value's type.
        """
        found = list(
            blocks(token_ids, single_id(tokenizer, self.open), single_id(tokenizer, self.close))
        )
        attempts: list[ParsedCall] = []
        for block in found:
            status, call = read_body(tokenizer.decode(list(token_ids[slice(*block.inside)])))
            attempts.append(
                ParsedCall(
                    raw=tokenizer.decode(list(token_ids[block.start : block.stop])),
                    status=status if block.closed else "unclosed",
                    call=call if block.closed else None,
                    span=(block.start, block.stop),
                )
            )
        text = tokenizer.decode(outside(token_ids, found)).replace("<|im_end|>", "")
        return (*attempts, *spelled_out(text, self.open, looks_like_json_call(text)))


def read_body(body: str) -> tuple[CallStatus, ToolCall | None]:
    """A block's JSON as (status, call); strict: nothing is repaired."""
    try:
        value = whole_json(body)
    except ValueError:
        return "bad_syntax", None
    status, call = read_call(value)
    return status, None if call is None else ToolCall(call.name, call.arguments)


HERMES = HermesFormat()
