"""Conversation -> token ids, owners and the loss mask; the chat template is the only renderer.

In: `Conversation`, a compiled `ChatTemplate`, a fast tokenizer, `TokenFacts`. Out: `Rendered` rows,
or a reason why not. Where a turn begins and ends in the text is found by `templates.turns`, for any
template; `columns` makes tokens of it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from smollora.columns import TEMPLATE, TokenColumns
from smollora.errors import TemplateError
from smollora.pieces import Encoded
from smollora.templates.engine import BoundTemplate, ChatTemplate
from smollora.templates.given import as_openai, plain_message
from smollora.templates.offer import OfferedTools
from smollora.templates.owners import Refusal, Turns, with_content
from smollora.templates.turns import RenderedText, lay_out, stop_between
from smollora.tokens import TokenFacts
from smollora.types import Conversation, Message, Reject, Rendered, ToolCall, ToolSpec

BATCH = 128
"""Conversations that are tokenised together."""
AHEAD = 2
"""Batches that wait for the tokenizer: its threads never wait for the next one to be rendered."""

_PROBE = "Where does this stand?"

__all__ = ["TEMPLATE", "Renderer", "as_openai"]


class Renderer:
    """Renders conversations with one template and one tokenizer."""

    def __init__(
        self,
        template: str,
        tokenizer: Any,
        facts: TokenFacts,
        *,
        date: str | None = None,
        variables: dict[str, Any] | None = None,
    ) -> None:
        """Args: template source; fast tokenizer; its facts; date for `strftime_now` (ISO); further
        template variables.
        """
        self.template = ChatTemplate(template)
        self.tokenizer = tokenizer
        self.facts = facts
        self._columns = TokenColumns(tokenizer.backend_tokenizer)
        self._tools = OfferedTools()
        self._date = date
        self._variables = {
            "bos_token": facts.bos_text,
            "eos_token": facts.eos_text,
            **(variables or {}),
        }
        own = (facts.open, facts.close, *facts.inner) if facts.delimited == "token" else ()
        self._tags = tuple(text for text in (*(d.text for d in own), *facts.stop_texts) if text)
        self._next_stops: dict[bool, str] = {}

    @cached_property
    def takes_parts(self) -> bool:
        """True for a template (of a vision model) that reads content only as a list of parts, which
        is how a server then hands it over.
        """
        return not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    def _shows(self, content: Any) -> bool:
        try:
            return _PROBE in self._bind().render([{"role": "user", "content": content}])
        except TemplateError:
            return False

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> str:
        """The prompt that a server would render: messages and the generation prompt."""
        return self._bind(tools).render(self._given(messages), add_generation_prompt=True)

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()
    ) -> tuple[int, ...]:
        """Token ids of `prompt_text`."""
        text = self.prompt_text(messages, tools)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _bind(self, tools: Sequence[ToolSpec] = ()) -> BoundTemplate:
        return self.template.bind(self._tools.offer(tools), date=self._date, **self._variables)

    def _given(self, messages: Sequence[Message]) -> Turns:
        turns = [plain_message(turn) for turn in as_openai(messages)]
        if not self.takes_parts:
            return turns
        listed = [{**turn, "content": []} for turn in turns]
        return [
            with_content(turn, message.content)
            for turn, message in zip(listed, messages, strict=True)
        ]

    @cached_property
    def _header(self) -> str:
        """What a generation prompt adds after a user's message."""
        bound, asked = self._bind(), self._given([Message("user", _PROBE)])
        try:
            text, prompt = bound.render(asked), bound.render(asked, add_generation_prompt=True)
        except TemplateError:
            return ""
        return prompt[len(text) :] if prompt.startswith(text) else ""

    def _next_stop(self, called: bool) -> str:
        """What ends a turn for which the template writes no stop token: the one it writes next."""
        if called not in self._next_stops:
            call = ToolCall("look", {"at": "it"}, "call00001")
            answer = (
                Message("assistant", calls=(call,)) if called else Message("assistant", "Good day.")
            )
            following = (
                Message("tool", "42", call_id="call00001", name="look")
                if called
                else Message("user", "And then?")
            )
            said = [Message("user", "Hello?"), answer]
            self._next_stops[called] = stop_between(
                self._bind(), self._given(said), self._given([following]), self.facts.stop_texts
            )
        return self._next_stops[called]

    def text(self, conversation: Conversation) -> tuple[RenderedText, ...] | Reject:
        """Rendered text with its spans: one for a stable template, one per trained turn for one
        that rewrites history.
        """
        tag = self._tag_in_answers(conversation)
        if tag is not None:
            return _refuse(conversation, "tag_in_answer", f"an answer holds {tag} as text")
        try:
            bound, turns = self._bind(conversation.tools), self._given(conversation.messages)
            texts = lay_out(
                bound,
                turns,
                self.facts.stop_texts,
                tags=self._tags,
                header=self._header,
                next_stop=self._next_stop,
            )
        except TemplateError as error:
            return _refuse(conversation, "template_error", error.message)
        if isinstance(texts, Refusal):
            return _refuse(conversation, texts.reason, texts.detail)
        return texts

    def _tag_in_answers(self, conversation: Conversation) -> str | None:
        """A delimiter or stop token that an answer spells: it would become the real token."""
        for message in conversation.messages:
            if message.role != "assistant":
                continue
            said = [message.content, message.reasoning]
            said += [json.dumps(dict(call.arguments), ensure_ascii=False) for call in message.calls]
            found = next((tag for tag in self._tags for text in said if tag in text), None)
            if found is not None:
                return found
        return None

    def rows(
        self, conversations: Sequence[Conversation], *, batch: int = BATCH
    ) -> Iterator[tuple[Rendered, ...] | Reject]:
        """Rendered rows of each conversation, in order.

        Batches are tokenised by the tokenizer's own threads while the next one is being rendered,
        unless it has a single one, as in workers that share a machine.
        """
        parts = [conversations[at : at + batch] for at in range(0, len(conversations), batch)]
        if len(parts) == 1 or os.environ.get("RAYON_NUM_THREADS") == "1":
            for part in parts:
                texts = [self.text(conversation) for conversation in part]
                yield from self._finish(part, texts, self._encode(texts))
            return
        with ThreadPoolExecutor(max_workers=AHEAD) as workers:
            waiting: deque[tuple[Sequence[Conversation], list[Any], Future[list[Encoded]]]] = (
                deque()
            )
            for part in parts:
                texts = [self.text(conversation) for conversation in part]
                waiting.append((part, texts, workers.submit(self._encode, texts)))
                if len(waiting) > AHEAD:
                    done, made, encodings = waiting.popleft()
                    yield from self._finish(done, made, encodings.result())
            for done, made, encodings in waiting:
                yield from self._finish(done, made, encodings.result())

    def _encode(self, texts: Sequence[tuple[RenderedText, ...] | Reject]) -> list[Encoded]:
        return self._columns.encode(
            [item.text for result in texts if isinstance(result, tuple) for item in result]
        )

    def _finish(
        self,
        conversations: Sequence[Conversation],
        texts: Sequence[tuple[RenderedText, ...] | Reject],
        encodings: list[Encoded],
    ) -> Iterator[tuple[Rendered, ...] | Reject]:
        left = iter(encodings)
        for conversation, result in zip(conversations, texts, strict=True):
            if isinstance(result, Reject):
                yield result
                continue
            rows = [self._columns.columns(conversation.id, item, next(left)) for item in result]
            wrong = next((row for row in rows if isinstance(row, Refusal)), None)
            if wrong is None:
                yield tuple(row for row in rows if isinstance(row, Rendered))
            else:
                yield _refuse(conversation, wrong.reason, wrong.detail)

    def row(self, conversation: Conversation) -> tuple[Rendered, ...] | Reject:
        """`rows` for one conversation."""
        return next(self.rows([conversation]))


def _refuse(conversation: Conversation, reason: str, detail: str) -> Reject:
    return Reject(conversation.source, 0, reason, f"{conversation.id}: {detail}")
