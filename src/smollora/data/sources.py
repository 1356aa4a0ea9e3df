"""Rows of data sets -> Conversation | Reject.

In: one record as its file holds it. Out: a `Conversation`, or a `Reject` whose reason is counted.
Nothing is repaired in silence. Record forms: Hermes-Function-Calling-V1 (`conversations` with
from/value, `tools` as a JSON string) and messages (`messages` with role/content, optional `tools`
and `tool_calls`).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema

from smollora.errors import DataError
from smollora.types import Conversation, Message, Reject, Role, ToolCall, ToolSpec

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
MAX_DEPTH = 64
"""Deeper arguments and schemas are refused: no tool needs them, and recursion has limits."""
CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
TOOLS_BLOCK = re.compile(
    r"(You are a function calling AI model\.)?[^\n]*<tools>.*?</tools>"
    r"(.*<tool_call>.*</tool_call>)?\s*",
    re.DOTALL,
)


class Refused(Exception):
    """A row cannot be used; carries the slug that is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_conversation(record: Any, source: str, row: int) -> Conversation | Reject:
    """One record as a conversation, or why not.

    Args:
        record: the decoded row.
        source: name of the source, for ids and counts.
        row: its number, from 1.
    """
    try:
        if not isinstance(record, Mapping):
            raise Refused(
                "not_an_object", f"a row must be an object, found {type(record).__name__}"
            )
        if isinstance(record.get("conversations"), list):
            messages, tools = _read_hermes(record)
        elif isinstance(record.get("messages"), list):
            messages, tools = _read_messages(record)
        else:
            raise Refused(
                "unknown_form", f"neither conversations nor messages among {sorted(record)[:8]}"
            )
        identity = str(record.get("id") or f"{source}-{row}")
        identity = identity.encode(errors="backslashreplace").decode()
        conversation = Conversation(identity, source, tuple(messages), tuple(tools))
        check_plain(conversation)
        check_conversation(conversation)
        return conversation
    except Refused as refused:
        return Reject(source, row, refused.reason, refused.detail)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number, record) of a .jsonl or .json file; an undecodable line is an `Undecodable`.

    Raises:
        DataError: the file is missing, empty or not text.
    """
    if not path.is_file():
        raise DataError(f"data file {path} is not there", "check the path under prepare.sources")
    if path.stat().st_size == 0:
        raise DataError(f"data file {path} is empty", "it should hold one JSON object a line")
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is not valid JSON: {error}", "use .jsonl for one row a line"
            ) from error
        if not isinstance(rows, list):
            raise DataError(f"{path} holds no list of rows", "a .json data file is one JSON list")
        yield from enumerate(rows, 1)
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, Undecodable(f"line {number}: {error}")


class Undecodable:
    """A line that is not JSON."""

    def __init__(self, detail: str) -> None:
        self.detail = detail


def _read_hermes(record: Mapping[str, Any]) -> tuple[list[Message], list[ToolSpec]]:
    tools = read_tools(record.get("tools"))
    messages: list[Message] = []
    for turn in record["conversations"]:
        if not isinstance(turn, Mapping):
            raise Refused("bad_turn", "a turn must be an object")
        role = ROLES.get(str(turn.get("from")))
        value = turn.get("value")
        if role is None:
            raise Refused("unknown_role", f'role "{turn.get("from")}"')
        if not isinstance(value, str):
            raise Refused("bad_turn", f'the value of a "{turn.get("from")}" turn is not text')
        if role == "system":
            text = (
                TOOLS_BLOCK.sub("", value, count=1).strip() if "<tools>" in value else value.strip()
            )
            if text:
                messages.append(Message("system", text))
        elif role == "assistant":
            messages.append(_read_assistant_text(value))
        elif role == "tool":
            messages.extend(_read_result_text(value))
        else:
            messages.append(Message(role, value))
    return messages, tools


def _read_assistant_text(value: str) -> Message:
    calls = tuple(_read_call(body) for body in CALL.findall(value))
    rest = CALL.sub("", value)
    if "<tool_call>" in rest or "</tool_call>" in rest:
        raise Refused("unmatched_tag", "a <tool_call> without its </tool_call>, or the reverse")
    if not calls:
        return Message("assistant", value.strip())
    after = value[value.rindex("</tool_call>") + len("</tool_call>") :].strip()
    if after:
        raise Refused("text_after_call", f"after the call: {after[:80]!r}")
    return Message("assistant", rest.strip(), calls)


def _read_call(body: str) -> ToolCall:
    value = decode_object(body)
    if not isinstance(value, Mapping):
        raise Refused("bad_call", f"not an object: {body[:80]!r}")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str):
        raise Refused("call_without_name", f"{body[:80]!r}")
    return ToolCall(name, _read_arguments(name, arguments))


def _read_arguments(name: str, arguments: Any) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        arguments = decode_object(arguments)
    if not isinstance(arguments, Mapping):
        raise Refused("bad_arguments", f"{name}: arguments are not an object")
    return dict(arguments)


def decode_object(text: str) -> Any:
    """JSON, or a Python literal (as Hermes-V1 writes some calls); quotes are never replaced."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Refused("bad_call", f"neither JSON nor a Python literal: {text[:80]!r}") from None


def _read_result_text(value: str) -> list[Message]:
    bodies = RESULT.findall(value) or [value.strip()]
    messages = []
    for body in bodies:
        try:
            decoded = json.loads(body)
        except (ValueError, RecursionError):
            decoded = None
        if isinstance(decoded, Mapping) and set(decoded) >= {"name", "content"}:
            content = decoded["content"]
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            messages.append(Message("tool", text, name=str(decoded["name"])))
        else:
            messages.append(Message("tool", body))
    return messages


def _read_messages(record: Mapping[str, Any]) -> tuple[list[Message], list[ToolSpec]]:
    messages: list[Message] = []
    for turn in record["messages"]:
        if not isinstance(turn, Mapping):
            raise Refused("bad_turn", "a turn must be an object")
        role = ROLES.get(str(turn.get("role")))
        if role is None:
            raise Refused("unknown_role", f'role "{turn.get("role")}"')
        calls = []
        listed = turn.get("tool_calls") or ()
        if not isinstance(listed, (list, tuple)):
            raise Refused("bad_call", f"tool_calls is no list: {str(listed)[:80]}")
        for call in listed:
            function = call.get("function", call) if isinstance(call, Mapping) else {}
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise Refused("call_without_name", f"{str(call)[:80]}")
            arguments = _read_arguments(function["name"], function.get("arguments", {}))
            calls.append(ToolCall(function["name"], arguments, call.get("id")))
        messages.append(
            Message(
                role,
                _read_content(turn.get("content")),
                tuple(calls),
                call_id=turn.get("tool_call_id"),
                name=turn.get("name"),
                reasoning=str(turn.get("reasoning_content") or ""),
            )
        )
    return messages, read_tools(record.get("tools"))


def _read_content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise Refused("bad_content", "content is neither text nor a list of text parts")


def read_tools(value: Any) -> list[ToolSpec]:
    """Tools as a list, a JSON string of one, "null" or None."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Refused("bad_tools", f"tools are not JSON: {error}") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused("bad_tools", "tools are not a list")
    tools = []
    for item in value:
        function = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Refused("bad_tools", "a tool without a name")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise Refused("bad_tools", f"{function['name']}: parameters are not an object")
        tools.append(ToolSpec(function["name"], str(function.get("description") or ""), parameters))
    return tools


def check_plain(conversation: Conversation) -> None:
    """Refuse what JSON or UTF-8 cannot hold: the template or the tokenizer would fail on it later.

    Raises:
        Refused: sets, bytes, NaN, keys that are no text, deep nesting, half of a surrogate pair.
    """
    for message in conversation.messages:
        for text in (message.content, message.reasoning):
            _check_encodes(text)
        for call in message.calls:
            _check_json(dict(call.arguments), call.name)
    for tool in conversation.tools:
        _check_encodes(tool.name + tool.description)
        _check_json(dict(tool.parameters), tool.name)


def _check_encodes(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused("bad_unicode", f"half of a surrogate pair at {error.start}") from None


def _check_json(value: Any, where: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise Refused("too_deep", f"{where}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        _check_encodes(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused("not_json", f"{where}: the key {key!r} is no text")
            _check_encodes(key)
            _check_json(item, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise Refused("not_json", f"{where}: {value} is no JSON number")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise Refused("not_json", f"{where}: a {type(value).__name__} is nothing that JSON has")


def check_conversation(conversation: Conversation) -> None:
    """Refuse what must not be trained.

    Raises:
        Refused: empty turns, roles out of order, calls to undeclared tools, arguments that break
            their schema, results without a call.
    """
    messages = conversation.messages
    tools = {tool.name: tool for tool in conversation.tools}
    spoken = [message for message in messages if message.role != "system"]
    if not any(message.role == "assistant" for message in messages):
        raise Refused("no_answer", "no assistant turn")
    if not spoken or spoken[0].role != "user":
        raise Refused("role_order", "the first turn after the system text is not the user's")
    before: Message | None = None
    for message in spoken:
        if message.role == "assistant":
            if not message.content.strip() and not message.calls:
                raise Refused("empty_turn", "an assistant turn with neither text nor call")
            if before is not None and before.role == "assistant":
                raise Refused("role_order", "two assistant turns in a row")
        if message.role == "user" and before is not None and before.calls:
            raise Refused("call_without_result", "the user speaks before the call is answered")
        if message.role == "tool" and (
            before is None or not (before.calls or before.role == "tool")
        ):
            raise Refused("result_without_call", "a tool result that no call asked for")
        for call in message.calls:
            if call.name not in tools:
                known = ", ".join(sorted(tools)) or "none"
                raise Refused("unknown_tool", f'calls "{call.name}"; offered: {known}'[:300])
            problem = schema_problem(call, tools[call.name])
            if problem:
                raise Refused("arguments_break_schema", f"{call.name}: {problem}"[:300])
        before = message


def schema_problem(call: ToolCall, tool: ToolSpec) -> str | None:
    """Why the arguments break the tool's JSON Schema, or None. References to other documents are
    never followed.
    """
    try:
        validator = jsonschema.Draft202012Validator(dict(tool.parameters))
        error = next(iter(validator.iter_errors(dict(call.arguments))), None)
    except Exception as broken:  # a schema that is none: any of jsonschema's many exceptions
        return f"the schema cannot be used: {type(broken).__name__}"
    if error is not None:
        return str(error.message)
    declared = tool.parameters.get("properties")
    if isinstance(declared, Mapping) and tool.parameters.get("additionalProperties") is not True:
        extra = sorted(set(call.arguments) - set(declared))
        if extra:
            return f"undeclared arguments {', '.join(extra)}"
    return None
