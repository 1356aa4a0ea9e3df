"""Training rows that hold an evaluation's questions or tools: what was trained on measures nothing.

In: the cases of evaluations. Out: for a conversation, which case it overlaps with, if any. A
question overlaps when all its words stand in one user turn in the same order, or, from eight words
on, when most of its five-word sequences do. A tool overlaps when name and parameters are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from smollora.data.duplicates import WORD, word_shingles
from smollora.types import Conversation, EvalCase, ToolSpec

SHINGLE = 5
LEAST_WORDS = 4
"""Shorter questions ("Hello there!") are everyone's."""
LONG_ENOUGH = 8
"""Words from which on most of the question is enough."""
MOST = 0.8

ToolKey = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Overlapping:
    """What a conversation has in common with an evaluation."""

    what: Literal["prompt", "tool"]
    case: str
    """Id of the case."""
    detail: str


class Overlap:
    """The questions and tools of evaluations, ready to be looked up. Can be pickled.

    Args:
        cases: of the evaluations.
        remove: whether rows that overlap are rejected, or kept and noted.
    """

    def __init__(self, cases: Iterable[EvalCase], *, remove: bool = True) -> None:
        self.remove = remove
        self.prompts: dict[str, str] = {}
        self.tools: dict[ToolKey, str] = {}
        self.places: dict[int, list[int]] = {}
        self.questions: list[tuple[str, int]] = []
        for case in cases:
            for tool in case.tools:
                key = tool_key(tool)
                if key[1]:
                    self.tools.setdefault(key, case.id)
            for message in case.messages:
                if message.role == "user":
                    self._add(message.content, case.id)

    def _add(self, question: str, case: str) -> None:
        words = WORD.findall(question.casefold())
        if len(words) < LEAST_WORDS:
            return
        text = " ".join(words)
        if text in self.prompts:
            return
        self.prompts[text] = case
        if len(words) >= LONG_ENOUGH:
            found = {crc32(item.encode()) for item in word_shingles(question, SHINGLE)}
            for shingle in found:
                self.places.setdefault(shingle, []).append(len(self.questions))
            self.questions.append((case, len(found)))

    def of(self, conversation: Conversation) -> Overlapping | None:
        """The first overlap of a conversation, questions before tools."""
        for message in conversation.messages:
            if message.role == "user":
                case = self._asked(message.content)
                if case is not None:
                    return Overlapping("prompt", case, f"{message.content[:80]!r}")
        for tool in conversation.tools:
            case = self.tools.get(tool_key(tool))
            if case is not None:
                return Overlapping("tool", case, tool.name)
        return None

    def _asked(self, text: str) -> str | None:
        words = " ".join(WORD.findall(text.casefold()))
        if words in self.prompts:
            return self.prompts[words]
        hits: dict[int, int] = {}
        for shingle in {crc32(item.encode()) for item in word_shingles(text, SHINGLE)}:
            for question in self.places.get(shingle, ()):
                hits[question] = hits.get(question, 0) + 1
        for question, count in hits.items():
            case, size = self.questions[question]
            if count >= MOST * size:
                return case
        return None


def tool_key(tool: ToolSpec) -> ToolKey:
    """What makes two tools the same: the name, and the names of the parameters."""
    properties = tool.parameters.get("properties")
    return tool.name.casefold(), tuple(sorted(properties or ()))
