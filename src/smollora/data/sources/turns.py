"""Turns with `from` and `value`: what Hermes-V1 and ShareGPT have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.data.sources.calls import read_call_list, read_results, read_tagged_answer
from smollora.data.sources.tools import read_tools
from smollora.types import Message, Role, ToolSpec

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    "developer": "system",
}
CALL_ROLES = frozenset(("function_call", "tool_call"))
"""Turns that are nothing but calls, in JSON."""
HEADINGS = ("You are a function calling AI model.", "# Tools\n")
"""How the tools block of a system text begins: Hermes-V1's, Qwen's."""


def read_role(name: Any) -> Role:
    """Our name of a role.

    Raises:
        Refused: nobody of that name speaks in a conversation.
    """
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Refused("unknown_role", f'role "{str(name)[:80]}"')
    return role


def read_turn(name: Any, value: Any, notes: Notes) -> list[Message]:
    """The messages of one turn of text; a tool's turn may hold several results."""
    if name in CALL_ROLES:
        if not isinstance(value, str):
            raise Refused("bad_turn", f'the value of a "{name}" turn is not text')
        return [Message("assistant", "", read_call_list(value, notes))]
    role = read_role(name)
    if not isinstance(value, str):
        raise Refused("bad_turn", f'the value of a "{name}" turn is not text')
    if role == "system":
        text = without_tools_text(value)
        return [Message("system", text)] if text else []
    if role == "assistant":
        return [read_tagged_answer(value, notes)]
    if role == "tool":
        return read_results(value)
    return [Message(role, value)]


def read_turns(turns: list[Any], notes: Notes) -> list[Message]:
    """Turns with from and value, or with role and content."""
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise Refused("bad_turn", "a turn must be an object")
        if "from" in turn:
            messages += read_turn(turn["from"], turn.get("value"), notes)
        else:
            messages += read_turn(turn.get("role"), turn.get("content"), notes)
    return messages


def read_offered(
    record: Mapping[str, Any], system: str, notes: Notes, *, arrow: bool
) -> list[ToolSpec]:
    """The tools of a record; where it has none, those that its system text lists."""
    tools = read_tools(record.get("tools"), notes, arrow=arrow)
    if not tools and "<tools>" in system:
        text = tools_text(system)
        if text:
            tools = read_tools(_as_list(text), notes)
            if tools:
                notes.add("tools_from_system_text", ", ".join(tool.name for tool in tools))
    return tools


def _as_list(text: str) -> str:
    """Tools one a line, as some system texts have them, as a JSON list."""
    if text.startswith("["):
        return text
    return "[" + ",".join(line for line in text.split("\n") if line.strip()) + "]"


def tools_text(system: str) -> str:
    """What stands between the last <tools> and </tools>: the first pair is often just named."""
    end = system.rfind("</tools>")
    start = system.rfind("<tools>", 0, end) if end >= 0 else -1
    return system[start + len("<tools>") : end].strip() if start >= 0 else ""


def without_tools_text(system: str) -> str:
    """A system text without its tools block: the template writes the tools.

    The block goes from the sentence that names <tools> (in Hermes-V1: "You are a function calling
    AI model.") to the </tool_call> of the example behind it, or to </tools>.
    """
    end = system.rfind("</tools>")
    first = system.find("<tools>")
    if first < 0 or end < first:
        return system.strip()
    start = max(system.rfind(heading, 0, first) for heading in HEADINGS)
    if start < 0:
        start = system.rfind("\n", 0, first) + 1
    stop = end + len("</tools>")
    example = system.rfind("</tool_call>")
    if example > stop:
        stop = example + len("</tool_call>")
    before, after = system[:start].rstrip(), system[stop:].lstrip()
    return f"{before}\n\n{after}".strip() if before and after else (before or after).strip()
