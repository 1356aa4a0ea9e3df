"""A scripted model for `fake_server`: it reads its prompt and answers a case in token ids.

It calls the tools that the case expects if its prompt tells it of them, answers in words once the
result stands in the prompt as a tool's, and asks again if it cannot see one: a model that does
well on a sound prompt and badly on a lossy one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from smollora.types import EvalCase, ToolCall

Write = Callable[[Any, Sequence[ToolCall]], list[int]]
"""(tokenizer, calls) to the ids of an answer, without the stop token."""


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def canonical_text(calls: Sequence[ToolCall]) -> str:
    bodies = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return "\n".join(_block(json.dumps(body, ensure_ascii=False)) for body in bodies)


def canonical(tokenizer: Any, calls: Sequence[ToolCall]) -> list[int]:
    return encode(tokenizer, canonical_text(calls))


def spelled(tokenizer: Any, calls: Sequence[ToolCall]) -> list[int]:
    return [token for letter in canonical_text(calls) for token in encode(tokenizer, letter)]


def arguments_first(tokenizer: Any, calls: Sequence[ToolCall]) -> list[int]:
    bodies = [{"arguments": dict(call.arguments), "name": call.name} for call in calls]
    text = "\n".join(_block(json.dumps(body, ensure_ascii=False)) for body in bodies)
    return encode(tokenizer, text)


def broken(tokenizer: Any, calls: Sequence[ToolCall]) -> list[int]:
    """Python's repr instead of JSON."""
    bodies = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    return encode(tokenizer, "\n".join(_block(repr(body)) for body in bodies))


def silent(tokenizer: Any, calls: Sequence[ToolCall]) -> list[int]:
    return encode(tokenizer, "It is sunny, I should think.")


class Scripted:
    """The model: call it with the ids of a prompt."""

    def __init__(
        self,
        tokenizer: Any,
        cases: Sequence[EvalCase],
        *,
        write: Write = canonical,
        stop: int,
        after_stop: Sequence[int] = (),
        needs_result_tag: bool = True,
    ) -> None:
        self.tokenizer, self.cases, self.write = tokenizer, cases, write
        self.stop, self.after_stop = stop, list(after_stop)
        self.needs_result_tag = needs_result_tag

    def __call__(self, prompt: Sequence[int]) -> Iterator[int]:
        text = self.tokenizer.decode(list(prompt))
        case = max(self.cases, key=lambda each: _fits(each, text))
        calls = list(case.expected)
        results = [message for message in case.messages if message.role == "tool"]
        if results and not calls and self.needs_result_tag and "<tool_response>" not in text:
            calls = [call for message in case.messages for call in message.calls]
        if calls and all(f'"{call.name}"' in text for call in calls):
            yield from self.write(self.tokenizer, calls)
        else:
            yield from encode(self.tokenizer, "I can tell you that without a tool.")
        while self.after_stop:
            yield self.stop
            yield from self.after_stop
        yield self.stop


def _fits(case: EvalCase, text: str) -> tuple[int, int]:
    """How much of a case stands in a prompt: all of it beats more of another that goes on."""
    said = [m.content.strip() for m in case.messages if m.role == "user" and m.content.strip()]
    if not all(each in text for each in said):
        return (-1, 0)
    results = [m.content.strip() for m in case.messages if m.role == "tool"]
    here = sum(each in text or json.dumps(each)[1:-1] in text for each in results)
    return (sum(map(len, said)) + 40 * here, here - len(results))
