"""Conversations and answers in the JSON form of OpenAI-compatible servers.

In: `Message`s; the JSON of answers and of streamed deltas. Out: request messages; `ChatAnswer`s,
with calls as the server gave them. The surprise: over the wire arguments are a JSON *string*, and
every call needs an id that its result repeats; templates want a mapping and rarely look at ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollora.templates.given import as_openai
from smollora.types import Message


@dataclass(frozen=True, slots=True)
class ServedCall:
    """A call as the server gives it, nothing decoded."""

    name: str
    arguments: str
    """JSON, if the server did its work; whatever it sent, if not."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """One answer of a chat completion."""

    content: str
    calls: tuple[ServedCall, ...]
    finish_reason: str | None
    prompt_token_ids: tuple[int, ...] | None = None
    """None where the server gives no ids."""
    token_ids: tuple[int, ...] | None = None
    """What the model produced, stop token included; None where the server gives no ids."""
    reasoning: str = ""
    deltas: tuple[dict[str, Any], ...] = ()
    """The deltas of a streamed answer as they came; the other fields are put together from them."""


def with_call_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` in which every call has an id (nine letters, as Mistral's templates demand) and
    every result bears the id of its call, in order where nothing else says which.
    """
    made: list[Message] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        if message.calls:
            calls = []
            for call in message.calls:
                count += 1
                calls.append(call if call.id else replace(call, id=f"call{count:05d}"))
            waiting = [call.id or "" for call in calls]
            message = replace(message, calls=tuple(calls))
        elif message.role == "tool" and waiting:
            call_id = message.call_id if message.call_id in waiting else waiting[0]
            waiting.remove(call_id or "")
            message = replace(message, call_id=call_id)
        made.append(message)
    return tuple(made)


def request_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a request holds them: arguments as JSON strings. Dicts are taken to be so."""
    given = list(messages)
    ours = with_call_ids([message for message in given if isinstance(message, Message)])
    made = iter(as_openai(ours))
    turns = [next(made) if isinstance(each, Message) else dict(each) for each in given]
    for turn in turns:
        for call in turn.get("tool_calls") or ():
            function = call["function"]
            if not isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return turns


def reassemble(
    deltas: Iterable[Mapping[str, Any]],
) -> tuple[str, str, tuple[ServedCall, ...]]:
    """Content, reasoning and calls of a stream, put together as OpenAI's own client does: texts are
    joined, calls are told apart by `index`.
    """
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        content.append(delta.get("content") or "")
        reasoning.append(delta.get("reasoning") or delta.get("reasoning_content") or "")
        for place, part in enumerate(delta.get("tool_calls") or ()):
            call = calls.setdefault(
                part.get("index", place), {"name": "", "arguments": "", "id": None}
            )
            function = part.get("function") or {}
            call["id"] = part.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
    made = (ServedCall(**calls[index]) for index in sorted(calls))
    return "".join(content), "".join(reasoning), tuple(made)


def read_answer(found: Any) -> ChatAnswer:
    """A complete answer. Raises KeyError, TypeError, IndexError or AttributeError: not one."""
    choice = found["choices"][0]
    said = choice["message"]
    calls = tuple(
        ServedCall(
            str(call["function"]["name"]),
            read_text(call["function"].get("arguments")),
            call.get("id"),
        )
        for call in said.get("tool_calls") or ()
    )
    return ChatAnswer(
        content=read_text(said.get("content")),
        calls=calls,
        finish_reason=choice.get("finish_reason"),
        prompt_token_ids=read_ids(found.get("prompt_token_ids")),
        token_ids=read_ids(choice.get("token_ids")),
        reasoning=read_text(said.get("reasoning") or said.get("reasoning_content")),
    )


def read_events(events: Iterable[Mapping[str, Any]]) -> ChatAnswer:
    """A streamed answer. Raises as `read_answer`."""
    prompt: tuple[int, ...] | None = None
    token_ids: list[int] | None = None
    deltas: list[dict[str, Any]] = []
    finish: str | None = None
    for event in events:
        prompt = read_ids(event.get("prompt_token_ids")) or prompt
        for choice in event.get("choices") or ():
            some = read_ids(choice.get("token_ids"))
            if some is not None:
                token_ids = [*(token_ids or ()), *some]
            finish = choice.get("finish_reason") or finish
            deltas.append(choice.get("delta") or {})
    content, reasoning, calls = reassemble(deltas)
    return ChatAnswer(
        content=content,
        calls=calls,
        finish_reason=finish,
        prompt_token_ids=prompt,
        token_ids=None if token_ids is None else tuple(token_ids),
        reasoning=reasoning,
        deltas=tuple(deltas),
    )


def read_text(value: Any) -> str:
    """A text; "" for null; JSON for what should have been a text and is not."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_ids(value: Any) -> tuple[int, ...] | None:
    """Token ids; None where none were sent."""
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        return None
    return tuple(value)
