"""Tools as chat templates take them, converted and written as JSON once.

In: the tools of a conversation. Out: an `Offer`: plain values, and a memo of their JSON. The same
tool is offered in many conversations, each of which is rendered several times, and most of a
rendering is the JSON of its tools. The surprise: the memo goes by `id`, so whoever holds it holds
the tools as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollora.templates.given import plain
from smollora.templates.sandbox import MemoKey
from smollora.types import ToolSpec

REMEMBERED = 4096
"""Tools that are remembered before all of them are forgotten: some kilobytes each."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one conversation."""

    tools: list[Any] | None
    """Plain values; None where the template is to see no tools at all."""
    kept: set[int]
    """`id`s of the tools and of what is in them."""
    json: dict[MemoKey, str]
    """The JSON of what is kept, filled while templates run."""
    list_json: dict[MemoKey, str] = field(default_factory=dict)
    """The JSON of `tools` as one list."""

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]] | None) -> Offer:
        """Tools that are offered once, in OpenAI form."""
        given = None if tools is None else [plain(tool) for tool in tools]
        return cls(given, {place for tool in given or () for place in _ids(tool)}, {})


class OfferedTools:
    """Remembers the tools of conversations that were rendered before."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        # new ones, for an offer that is still in use keeps its own
        self._known: dict[int, tuple[ToolSpec, dict[str, Any]]] = {}
        self._kept: set[int] = set()
        self._json: dict[MemoKey, str] = {}

    def offer(self, tools: Sequence[ToolSpec]) -> Offer:
        """The tools of a conversation; without any, None."""
        if len(self._known) + len(tools) > REMEMBERED:
            self._forget()
        return Offer([self._plain(tool) for tool in tools] or None, self._kept, self._json)

    def _plain(self, tool: ToolSpec) -> dict[str, Any]:
        known = self._known.get(id(tool))
        if known is None:
            known = self._known[id(tool)] = (tool, plain(tool.as_openai()))
            self._kept.update(_ids(known[1]))
        return known[1]


def _ids(tool: Any) -> list[int]:
    """`id`s of a tool, its function and what that holds, which templates write as JSON."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    found = [id(tool), id(function)]
    if isinstance(function, dict):
        found += map(id, function.values())
    return found
