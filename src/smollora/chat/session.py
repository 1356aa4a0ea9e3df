"""A conversation as a value: what was said, which tools are offered, how to answer.

Nothing here knows a model. `fit` decides what is no longer shown to one whose context is full. The
saved form is the one that `smollora template` and training sources read: `messages` and `tools` as
OpenAI writes them, and `settings` beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smollora.chat.settings import Settings, read_settings
from smollora.errors import ConfigError, DataError
from smollora.runs import write_json
from smollora.templates.given import as_openai
from smollora.types import Message, ToolCall, ToolSpec

KEEP = 0.75
"""When the context is full, exchanges are dropped until this share of the room is used: dropping
one at each turn would have the whole rest computed again at each turn.
"""


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation with its settings; functions below make the next one."""

    system: str = ""
    messages: tuple[Message, ...] = ()
    """Everything that was said, the system prompt excepted."""
    tools: tuple[ToolSpec, ...] = ()
    settings: Settings = field(default_factory=Settings)
    thinking: bool | None = None
    """`enable_thinking` for templates that read it; None: as the template does by itself."""
    start: int = 0
    """Messages before this one are no longer shown to the model."""

    @property
    def shown(self) -> tuple[Message, ...]:
        """What the model is shown: the system prompt and the messages from `start`."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.messages[self.start :])


def said(session: Session, *messages: Message) -> Session:
    """The session with further messages."""
    return replace(session, messages=(*session.messages, *messages))


def exchanges(messages: Sequence[Message]) -> list[int]:
    """Where exchanges begin: at each message of the user."""
    return [place for place, message in enumerate(messages) if message.role == "user"]


def undone(session: Session) -> Session:
    """The session without its last exchange: question, calls, results and answer."""
    starts = exchanges(session.messages)
    end = starts[-1] if starts else 0
    return replace(session, messages=session.messages[:end], start=min(session.start, end))


def emptied(session: Session) -> Session:
    """The session before anything was said; system prompt, tools and settings stay."""
    return replace(session, messages=(), start=0)


def fit(session: Session, count: Callable[[Session], int], room: int) -> Session:
    """The session with its oldest exchanges no longer shown, where all of it does not fit.

    Args:
        session: the last message is the one to be answered.
        count: how many tokens the prompt of a session has.
        room: how many it may have.

    Raises:
        DataError: the last exchange alone is too long.
    """
    length = count(session)
    if length <= room:
        return session
    for start in exchanges(session.messages):
        if start <= session.start:
            continue
        session = replace(session, start=start)
        length = count(session)
        if length <= KEEP * room:
            return session
    if length <= room:
        return session
    raise DataError(
        f"this message needs {length:,} tokens of prompt, and the context has room for {room:,}",
        "shorten it, lower max_new_tokens, or /reset",
    )


def room_for_prompt(context: int, settings: Settings) -> int:
    """Tokens of a context that a prompt may take: at most half is kept free for the answer."""
    return context - min(settings.max_new_tokens, context // 2)


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def as_record(session: Session) -> dict[str, Any]:
    """The saved form."""
    system = (Message("system", session.system),) if session.system else ()
    return {
        "messages": as_openai((*system, *session.messages)),
        "tools": [tool.as_openai() for tool in session.tools],
        "settings": session.settings.model_dump(exclude_unset=True),
    }


def save(session: Session, path: Path) -> None:
    """Write a conversation as JSON, whole or not at all.

    Raises:
        DataError: it cannot be written there.
    """
    try:
        write_json(path, as_record(session))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "choose another file") from error


def load(session: Session, path: Path) -> Session:
    """The conversation of a file; `session` gives the tools, and what the file does not say.

    Raises:
        DataError: not there, or no saved conversation.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "name a saved file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", "name a file of /save") from error
    record = {"messages": record} if isinstance(record, list) else record
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise DataError(f"{path} holds no messages", "name a file of /save")
    messages = [
        _read_message(turn, f"message {number} of {path}")
        for number, turn in enumerate(record["messages"], 1)
    ]
    system = session.system
    if messages and messages[0].role == "system":
        system = messages.pop(0).content
    found = replace(session, system=system, messages=tuple(messages), start=0)
    if isinstance(record.get("settings"), dict):
        try:
            found = replace(found, settings=read_settings(record["settings"]))
        except ConfigError as error:
            raise DataError(f"the settings in {path}: {error.message}", error.hint) from error
    return found


def _read_message(turn: Any, where: str) -> Message:
    def text(key: str) -> str:
        value = turn.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} is no text", "write it as a string")
        return value

    if not isinstance(turn, Mapping) or turn.get("role") not in (
        *("system", "user", "assistant", "tool"),
    ):
        raise DataError(f"{where} has no known role", 'write {"role": "user", "content": "..."}')
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls is no list", "name a file of /save")
    return Message(
        role=turn["role"],
        content=text("content"),
        calls=tuple(_read_call(call, where) for call in calls),
        call_id=text("tool_call_id") or None,
        name=text("name") or None,
        reasoning=text("reasoning_content"),
    )


def _read_call(call: Any, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: a call needs a name and arguments", "name a file of /save")
    identity = call.get("id")
    return ToolCall(function["name"], arguments, identity if isinstance(identity, str) else None)
