"""What is under the lens: a template with its tokenizer, and how evidence is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from smollora.formats import ToolFormat, tokens_of
from smollora.formats.hermes import HERMES
from smollora.templates.audit.letters import LetterTokenizer
from smollora.templates.audit.samples import CLOCK, WEATHER, Chat
from smollora.templates.engine import ChatTemplate
from smollora.templates.owners import common_length
from smollora.types import ParsedCall

FOR_INFORMATION = "for information: "
"""Begins the detail of a check that holds although there is something to know."""


class Tokenizer(Protocol):
    """What the audit needs of a tokenizer (any transformers fast tokenizer has it)."""

    @property
    def eos_token(self) -> str | None: ...
    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def get_added_vocab(self) -> Mapping[str, int]: ...


class Finding(NamedTuple):
    """What a check answers."""

    ok: bool
    detail: str = ""
    at: int | None = None
    """Token position of the evidence in the rendering that shows it."""


class Turn(NamedTuple):
    """The last turn of a rendered conversation."""

    text: str
    """The whole rendering."""
    start: int
    """Character at which the turn leaves its generation prompt."""

    @property
    def said(self) -> str:
        """What the turn adds to the prompt before it."""
        return self.text[self.start :]


@dataclass(frozen=True)
class Subject:
    """A template with its tokenizer and the format its model should write."""

    template: ChatTemplate
    tokenizer: Tokenizer
    fmt: ToolFormat = HERMES
    without_tools: ChatTemplate | None = None
    """The template that a server takes when no tools are given, where it is another one."""

    def render(self, messages: Chat, tools: Any = None, **options: Any) -> str:
        """The text of a conversation, with the tokenizer's special tokens at hand."""
        return self.template.render(messages, tools, **{**self.special_tokens, **options})

    @property
    def special_tokens(self) -> dict[str, Any]:
        """`bos_token` and its kind, as transformers hands them to a template."""
        return {name: token for name, token in self.tokenizer.special_tokens_map.items() if token}

    def turn(self, messages: Chat, tools: Any = None, **options: Any) -> Turn:
        """The last message as the model would have to say it."""
        prompt = self.render(messages[:-1], tools, add_generation_prompt=True, **options)
        whole = self.render(messages, tools, **options)
        return Turn(whole, self.turn_start(prompt, whole))

    def turn_start(self, prompt: str, whole: str) -> int:
        """Where a turn leaves its generation prompt; before a token that only begins alike."""
        place = common_length(prompt, whole)
        if place < len(prompt):
            for found in self.token_pattern.finditer(whole):
                if found.start() < place < found.end():
                    return found.start()
        return place

    def calls_in(self, text: str) -> tuple[ParsedCall, ...]:
        """Every attempt to call in a text, whatever the tokenizer makes of the delimiters."""
        letters = LetterTokenizer([*tokens_of(self.fmt), *self.tokenizer.get_added_vocab()])
        if self.fmt.delimited != "token":  # the answer alone is read, without what ends the turn
            text = text.strip().removesuffix(self.tokenizer.eos_token or "")
        return self.fmt.parse(letters.encode(text), letters, (WEATHER, CLOCK))

    def shown(self, ok: bool, words: str, text: str, place: int = 0) -> Finding:
        """A finding with its evidence: words, an excerpt of `text` there, the token position."""
        said = f"{words}: " if words else ""
        return Finding(ok, said + excerpt(text, place), self.token_at(text, place))

    def token_at(self, text: str, character: int) -> int:
        """How many tokens stand before a character."""
        return len(self.tokenizer.encode(text[:character], add_special_tokens=False))

    def added_tokens_in(self, text: str) -> list[str]:
        """The added tokens that occur in a text, in order."""
        added = self.tokenizer.get_added_vocab()
        return [token for token in self.token_pattern.findall(text) if token in added]

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """Finds added tokens and delimiters, the longest first."""
        names = {*self.tokenizer.get_added_vocab(), *tokens_of(self.fmt)}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    @property
    def modes(self) -> tuple[dict[str, bool], ...]:
        """The ways to ask for an answer: as it comes, and without thinking if that is a switch."""
        can_switch = "enable_thinking" in self.template.source
        return ({}, {"enable_thinking": False}) if can_switch else ({},)

    @property
    def reasons(self) -> bool:
        """True if the model thinks aloud: it has a token for it, or its template speaks of it."""
        return "<think>" in self.template.source or "<think>" in self.tokenizer.get_added_vocab()


def excerpt(text: str, around: int = 0, width: int = 90) -> str:
    """A piece of evidence on one line."""
    start = max(0, min(around - width // 3, len(text) - width))
    piece = text[start : start + width]
    dots = ("..." if start else "", "..." if start + width < len(text) else "")
    return dots[0] + piece.replace("\n", "\\n") + dots[1]


def lost_from(text: str, wanted: Iterable[str]) -> list[str]:
    """Which of the wanted pieces are not in a text, in the order of a reading."""
    position, lost = 0, []
    for piece in wanted:
        found = text.find(piece, position)
        if found < 0:
            lost.append(piece)
        else:
            position = found + len(piece)
    return lost
