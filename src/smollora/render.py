"""Conversation -> token ids, owners and the loss mask; the chat template is the only renderer.

In: `Conversation`, a compiled `ChatTemplate`, a fast tokenizer, `TokenFacts`. Out: `Rendered` rows,
or a reason why not.

How the mask is found, for any template: the conversation is rendered up to each assistant turn with
the generation prompt (P) and up to and including it (T). What the model must produce is T after P,
up to its stop token: not the header, not a think block that the prompt supplies, not the newline
after the stop token. If T is a prefix of the whole rendering the turn is trained there; a template
that rewrites history (thinking removed from earlier turns) gives one row per trained turn instead.
If P is not a prefix of T the row is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smollora.errors import TemplateError
from smollora.templates.engine import ChatTemplate
from smollora.tokens import TokenFacts
from smollora.types import Conversation, Message, Reject, Rendered, ToolSpec

TEMPLATE = -1
"""Owner of the template's own tokens."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendered text with one owner."""

    start: int
    end: int
    owner: int
    trained: bool


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A rendered conversation before tokenisation."""

    text: str
    spans: tuple[Span, ...]


def as_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form that chat templates take (arguments as objects)."""
    return [_message_as_openai(message) for message in messages]


def _message_as_openai(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                **({"id": call.id} if call.id else {}),
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.calls
        ]
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.name:
        turn["name"] = message.name
    return turn


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
        self._date = date
        self._variables = {
            "bos_token": facts.bos_text,
            "eos_token": facts.eos_text,
            **(variables or {}),
        }

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> str:
        """The prompt that a server would render: messages and the generation prompt."""
        return self._render(as_openai(messages), tools, prompt=True)

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()
    ) -> tuple[int, ...]:
        """Token ids of `prompt_text`."""
        text = self.prompt_text(messages, tools)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _render(
        self, turns: list[dict[str, Any]], tools: Sequence[ToolSpec], prompt: bool = False
    ) -> str:
        return self.template.render(
            turns,
            [tool.as_openai() for tool in tools] or None,
            add_generation_prompt=prompt,
            date=self._date,
            **self._variables,
        )

    def text(self, conversation: Conversation) -> tuple[RenderedText, ...] | Reject:
        """Rendered text with its spans: one for a stable template, one per trained turn for one
        that rewrites history.
        """
        tag = self._tag_in_answers(conversation)
        if tag is not None:
            return _refuse(conversation, "tag_in_answer", f"an answer holds {tag} as text")
        turns = as_openai(conversation.messages)
        try:
            return self._text(conversation, turns)
        except TemplateError as error:
            return _refuse(conversation, "template_error", error.message)

    def _tag_in_answers(self, conversation: Conversation) -> str | None:
        """A delimiter or stop token that an answer spells: it would become the real token."""
        own = (self.facts.open, self.facts.close, *self.facts.inner)
        delimiters = [tag.text for tag in own] if self.facts.delimited == "token" else []
        tags = (*delimiters, *self.facts.stop_texts)
        for message in conversation.messages:
            if message.role != "assistant":
                continue
            said = [message.content, message.reasoning]
            said += [json.dumps(dict(call.arguments), ensure_ascii=False) for call in message.calls]
            found = next((tag for tag in tags for text in said if tag and tag in text), None)
            if found is not None:
                return found
        return None

    def _text(
        self, conversation: Conversation, turns: list[dict[str, Any]]
    ) -> tuple[RenderedText, ...] | Reject:
        tools = conversation.tools
        whole = self._render(turns, tools)
        spans: list[Span] = []
        alone: list[RenderedText] = []
        owned = first = 0
        for index, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            prompt = self._render(turns[:index], tools, prompt=True)
            until = whole if index + 1 == len(turns) else self._render(turns[: index + 1], tools)
            if not until.startswith(prompt):
                return _refuse(
                    conversation,
                    "prompt_mismatch",
                    f"message {index}: the generation prompt is not how the trained turn starts",
                )
            end = self._end_of_turn(until, len(prompt))
            if end is None:
                return _refuse(
                    conversation,
                    "no_stop_token",
                    f"message {index}: the turn does not end with"
                    f" {' or '.join(self.facts.stop_texts)}",
                )
            if whole.startswith(until[:end]):
                spans.extend(
                    _owners(whole, owned, len(prompt), conversation.messages, first, index)
                )
                spans.append(Span(len(prompt), end, index, True))
                owned, first = end, index + 1
            else:
                before = _owners(until, 0, len(prompt), conversation.messages, 0, index)
                span = Span(len(prompt), end, index, True)
                alone.append(RenderedText(until[:end], (*before, span)))
        if not spans and not alone:
            return _refuse(conversation, "nothing_to_train", "no assistant turn")
        texts = list(alone)
        if spans:
            texts.append(RenderedText(whole, tuple(spans)))
        return tuple(texts)

    def _end_of_turn(self, text: str, start: int) -> int | None:
        """Where the last stop token of `text` after `start` ends."""
        ends = [
            found + len(stop)
            for stop in self.facts.stop_texts
            if (found := text.rfind(stop, start)) >= 0
        ]
        return max(ends, default=None)

    def rows(
        self, conversations: Sequence[Conversation], *, batch: int = 512
    ) -> Iterator[tuple[Rendered, ...] | Reject]:
        """Rendered rows of each conversation, in order; tokenised in batches (the tokenizer's
        threads do the work).
        """
        for start in range(0, len(conversations), batch):
            part = conversations[start : start + batch]
            texts = [self.text(conversation) for conversation in part]
            flat = [item.text for result in texts if isinstance(result, tuple) for item in result]
            encodings = iter(
                self.tokenizer.backend_tokenizer.encode_batch(flat, add_special_tokens=False)
            )
            for conversation, result in zip(part, texts, strict=True):
                if isinstance(result, Reject):
                    yield result
                    continue
                rows = [_columns(conversation, item, next(encodings)) for item in result]
                wrong = next((row for row in rows if isinstance(row, Reject)), None)
                yield wrong or tuple(row for row in rows if isinstance(row, Rendered))

    def row(self, conversation: Conversation) -> tuple[Rendered, ...] | Reject:
        """`rows` for one conversation."""
        return next(self.rows([conversation]))


def _refuse(conversation: Conversation, reason: str, detail: str) -> Reject:
    return Reject(conversation.source, 0, reason, f"{conversation.id}: {detail}")


def _owners(
    text: str, start: int, end: int, messages: Sequence[Message], first: int, stop: int
) -> Iterator[Span]:
    """Spans of the contents of messages[first:stop], found in order in text[start:end]."""
    position = start
    for index, message in enumerate(messages[first:stop], first):
        content = message.content.strip()
        if message.role == "assistant" or not content:
            continue
        found = text.find(content, position, end)
        if found >= 0:
            yield Span(found, found + len(content), index, False)
            position = found + len(content)


def _columns(conversation: Conversation, item: RenderedText, encoding: Any) -> Rendered | Reject:
    """Token columns of a rendered text; refused where a trained span does not begin and end between
    two tokens.
    """
    offsets: list[tuple[int, int]] = encoding.offsets
    owner = [TEMPLATE] * len(offsets)
    trained = [False] * len(offsets)
    position = 0
    for span in item.spans:
        while position < len(offsets) and offsets[position][0] < span.start:
            position += 1
        if span.trained and position and offsets[position - 1][1] > span.start:
            return _refuse(
                conversation,
                "boundary_inside_token",
                f"token {position - 1} stands on both sides of the end of the generation prompt",
            )
        while position < len(offsets) and offsets[position][0] < span.end:
            owner[position] = span.owner
            trained[position] = span.trained
            position += 1
    return Rendered(conversation.id, tuple(encoding.ids), tuple(owner), tuple(trained))
