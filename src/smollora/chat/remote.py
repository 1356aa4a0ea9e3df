"""A model behind an OpenAI-compatible server that answers.

The server renders, samples and parses; what it does not tell (ids, the prompt) is said to be
unknown. Settings that were never set by hand are left to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smollora.chat.answerer import Answer, Tell
from smollora.chat.session import Session, exchanges
from smollora.endpoint import Endpoint, EndpointError
from smollora.endpoint.chat_form import ChatAnswer, ServedCall, reassemble
from smollora.types import Message, ParsedCall, ToolCall

TOO_LONG = ("context length", "maximum context", "context size", "too long")
"""How servers say that a prompt does not fit."""


class EndpointAnswerer:
    """Answers with one model of one server."""

    samples_here = False
    reads_thinking = True  # the template is the server's: the key is sent, and read or not

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def prompt_text(self, session: Session) -> str:
        """See `Answerer`."""
        ids = self.endpoint.tokenize(session.shown, session.tools)
        count = "" if ids is None else f" ({len(ids):,} tokens)"
        return f"the server formats the prompt{count}; it does not send its text"

    def notes(self, session: Session) -> list[str]:
        """See `Answerer`."""
        return []

    def tokens(self, ids: tuple[int, ...]) -> list[tuple[int, str, str]]:
        """See `Answerer`."""
        return []

    def answer(self, session: Session, tell: Tell) -> Answer:
        """See `Answerer`; a prompt that the server finds too long loses its oldest exchange."""
        while True:
            try:
                return self._answer(session, tell)
            except EndpointError as error:
                starts = [s for s in exchanges(session.messages) if s > session.start]
                long = error.kind == "refused" and any(w in str(error).lower() for w in TOO_LONG)
                if not long or not starts:
                    raise
                session = replace(session, start=starts[0])

    def _answer(self, session: Session, tell: Tell) -> Answer:
        start = time.monotonic()
        first: list[float] = []
        deltas: list[Mapping[str, Any]] = []
        calling: list[bool] = []

        def heard(delta: dict[str, Any]) -> None:
            deltas.append(delta)
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if delta.get("content") or thought or delta.get("tool_calls"):
                first.append(time.monotonic() - start)
            if thought:
                tell("thought", str(thought))
            if delta.get("content"):
                tell("text", str(delta["content"]))
            if delta.get("tool_calls") and not calling:
                calling.append(True)
                tell("call", "")

        finish = "stop"
        try:
            found = self.endpoint.chat(
                session.shown,
                session.tools,
                stream=True,
                max_tokens=session.settings.max_new_tokens,
                on_delta=heard,
                **_sampling(session),
            )
            finish = "length" if found.finish_reason == "length" else "stop"
        except KeyboardInterrupt:
            content, reasoning, _ = reassemble(deltas)
            found = ChatAnswer(content, (), None, reasoning=reasoning)
            finish = "interrupted"
        read = [_read(call) for call in found.calls]
        calls = tuple(attempt.call for attempt in read if attempt.call is not None)
        message = Message("assistant", found.content, calls, reasoning=found.reasoning)
        return Answer(
            message,
            tuple(read),
            finish,  # type: ignore[arg-type]
            found.prompt_token_ids,
            found.token_ids,
            first[0] if first else None,
            time.monotonic() - start,
            session,
        )


def _sampling(session: Session) -> dict[str, Any]:
    """What was set by hand, under the names that servers know; temperature None leaves it to it."""
    settings = session.settings
    names = ("top_p", "repetition_penalty", "seed")
    given = {name: getattr(settings, name) for name in names if name in settings.model_fields_set}
    given = {name: value for name, value in given.items() if value is not None}
    chosen = "temperature" in settings.model_fields_set
    given["temperature"] = settings.temperature if chosen else None
    if "do_sample" in settings.model_fields_set and not settings.do_sample:
        given["temperature"] = 0.0
    if session.thinking is not None:
        given["chat_template_kwargs"] = {"enable_thinking": session.thinking}
    return given


def _read(call: ServedCall) -> ParsedCall:
    raw = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return ParsedCall(raw, "bad_syntax")
    if not call.name:
        return ParsedCall(raw, "no_name")
    return ParsedCall(raw, "ok", ToolCall(call.name, arguments, call.id))
