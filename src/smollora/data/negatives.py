"""Irrelevance rows built from general ones: the same exchange, beside tools it has no use for.

In: a general conversation without tools, a pool of tools from the tool sources. Out: a second
conversation with some of those tools on offer and the same answer in words, so that a tool in the
prompt stops being a reason to call it. Built rows carry their source's name with ":built" and the
flag `built`. Which rows and which tools depends on the seed, the source and the record alone, not
on what ran before, so that any worker builds the same.

The surprise: *unrelated* is decided by shared words. A tool whose name or description shares a
content word with the request is left out; near misses have to be written by people.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from smollora.types import Conversation, ToolSpec

POOL_TOOLS = 400
"""So many different tools, the first of the tool sources, are offered beside general rows."""
MOST_OFFERED = 3
DRAWN = 40
"""So many tools of the pool are looked at for one row."""
SUFFIX = ":built"
WORD = re.compile(r"[^\W\d_]{4,}")
COMMON: frozenset[str] = frozenset(
    re.findall(
        r"\w+",
        """that this with from have what when where which will would your about into over some them
        they there their then than also been being could does each given want need make like just
        more most other only such very please tell write give using used based specific provided
        user""",
    )
)
"""Words that every other request and tool has; too few of them to relate two texts."""
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Negatives:
    """How irrelevance rows are built."""

    pool: tuple[ToolSpec, ...]
    share: float
    """Share of the general rows without tools that get a second row."""
    seed: int

    def of(self, conversation: Conversation, row: int) -> Conversation | None:
        """The built row of a general conversation; None if it has tools, was not drawn, or
        every tool that was looked at might be related to it.
        """
        if conversation.tools or conversation.has_calls or not self.pool:
            return None
        dice = random.Random(f"{self.seed}-{conversation.source}-{row}")
        if dice.random() >= self.share:
            return None
        said = words(" ".join(m.content for m in conversation.messages if m.role == "user"))
        wanted = dice.randint(1, MOST_OFFERED)
        offered: dict[str, ToolSpec] = {}
        for tool in dice.sample(self.pool, min(DRAWN, len(self.pool))):
            if len(offered) == wanted:
                break
            if tool.name not in offered and not said & tool_words(tool):
                offered[tool.name] = tool
        if not offered:
            return None
        return replace(
            conversation,
            id=f"{conversation.id}{SUFFIX}",
            source=f"{conversation.source}{SUFFIX}",
            tools=tuple(offered.values()),
        )


def words(text: str) -> frozenset[str]:
    """Content words, lower case, without a plural's s; camel case is taken apart."""
    found = WORD.findall(CAMEL.sub(" ", text.replace("_", " ")))
    return frozenset(word.casefold().removesuffix("s") for word in found) - COMMON


def tool_words(tool: ToolSpec) -> frozenset[str]:
    """Content words of a tool's name and description."""
    return words(f"{tool.name} {tool.description}")


def collect_pool(
    conversations: Iterable[Conversation], limit: int = POOL_TOOLS
) -> tuple[ToolSpec, ...]:
    """The first `limit` different tools (by name) of some conversations, in order."""
    pool: dict[str, ToolSpec] = {}
    for conversation in conversations:
        for tool in conversation.tools:
            pool.setdefault(tool.name, tool)
        if len(pool) >= limit:
            break
    return tuple(pool.values())[:limit]
