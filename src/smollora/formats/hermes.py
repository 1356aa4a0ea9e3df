"""The hermes format: one JSON object per call between <tool_call> and </tool_call>.

Used by Hermes 2 Pro and 3, Qwen 2.5 and 3, SmolLM3, and the starter model. Spec:
NousResearch/Hermes-Function-Calling. The surprise: vLLM's parser of this name matches *strings*, so
a call spelled with ordinary tokens still parses there; here a call counts only when the delimiter
**ids** are there, and a spelled one is an attempt with status "spelled_out".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollora.types import CallStatus, ParsedCall, ToolCall

if TYPE_CHECKING:
    from smollora.formats import Tokenizer


@dataclass(frozen=True)
class HermesFormat:
    """JSON object in tags; name first, arguments second, one block per call."""

    name: str = "hermes"
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    vllm_parser: str = "hermes"

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`."""
        return "\n".join(f"{self.open}\n{show_body(call)}\n{self.close}" for call in calls)

    def parse(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`, in order; spelled-out ones after the real ones.

        Args:
            token_ids: what the model produced, prompt excluded, stop token optional.
            tokenizer: the model's own.
        """
        open_id = single_id(tokenizer, self.open)
        close_id = single_id(tokenizer, self.close)
        attempts: list[ParsedCall] = []
        text: list[int] = []
        position = 0
        while position < len(token_ids):
            if token_ids[position] != open_id:
                text.append(token_ids[position])
                position += 1
                continue
            end = position + 1
            while end < len(token_ids) and token_ids[end] not in (open_id, close_id):
                end += 1
            body = tokenizer.decode(list(token_ids[position + 1 : end]))
            closed = end < len(token_ids) and token_ids[end] == close_id
            stop = end + 1 if closed else end
            status, call = read_body(body)
            attempts.append(
                ParsedCall(
                    raw=tokenizer.decode(list(token_ids[position:stop])),
                    status=status if closed else "unclosed",
                    call=call if closed else None,
                    span=(position, stop),
                )
            )
            position = stop
        attempts.extend(self._spelled_out(tokenizer.decode(text)))
        return tuple(attempts)

    def _spelled_out(self, text: str) -> list[ParsedCall]:
        """Attempts written with ordinary tokens: a spelled opening tag, or the bare JSON of a
        call.
        """
        if self.open in text:
            pieces = text.split(self.open)[1:]
            return [ParsedCall(self.open + piece, "spelled_out") for piece in pieces]
        stripped = text.replace("<|im_end|>", "").strip().removeprefix("```json").strip("`\n ")
        if stripped.startswith(("{", "[{")) and '"name"' in stripped and '"arguments"' in stripped:
            return [ParsedCall(stripped, "spelled_out")]
        return []


def single_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of `text` if it is one token here, else None (many tokenizers answer unk for what they
    do not know).
    """
    token = tokenizer.convert_tokens_to_ids(text)
    return token if token is not None and tokenizer.decode([token]) == text else None


def show_body(call: ToolCall) -> str:
    """One call as JSON, name first (arguments first corrupts vLLM's streaming)."""
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)


def read_body(body: str) -> tuple[CallStatus, ToolCall | None]:
    """A block's JSON as (status, call); strict: nothing is repaired."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "bad_syntax", None
    if not isinstance(value, Mapping):
        return "bad_syntax", None
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return "no_name", None
    if not isinstance(arguments, Mapping):
        return "bad_syntax", None
    return "ok", ToolCall(name=name, arguments=arguments)


HERMES = HermesFormat()
