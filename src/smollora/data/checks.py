"""Checks on a conversation: what must not be trained is refused, with a reason that is counted.

In: a `Conversation` of any record form. Out: nothing, or `Refused`; `settle_arguments` alone
changes something, and notes it. Pure functions; duplicates and overlap, which need to see other
rows, are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.data.validation import schema_problem, value_problem
from smollora.types import Conversation, Message, ToolCall, ToolSpec


def settle_arguments(conversation: Conversation, notes: Notes) -> Conversation:
    """The conversation without nulls that no schema asked for.

    Arrow gives every struct of a column the same keys: in Parquet files and Hub data sets a call
    has the parameters of all other tools, each null. A null is dropped where the schema has no such
    parameter, or has one that is neither required nor may be null.
    """
    if not any(_holds_null(call.arguments) for m in conversation.messages for call in m.calls):
        return conversation
    tools = {tool.name: tool for tool in conversation.tools}
    messages = [
        replace(
            message, calls=tuple(_without_padding(call, tools, notes) for call in message.calls)
        )
        if message.calls
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=tuple(messages))


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(item is None or _holds_null(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_holds_null(item) for item in value)


def _without_padding(call: ToolCall, tools: Mapping[str, ToolSpec], notes: Notes) -> ToolCall:
    tool = tools.get(call.name)
    if tool is None:
        return call
    dropped: list[str] = []
    arguments = _drop_nulls(dict(call.arguments), tool.parameters, call.name, dropped)
    if not dropped:
        return call
    notes.add("null_arguments_dropped", ", ".join(dropped))
    return replace(call, arguments=arguments)


def _drop_nulls(value: Any, schema: Any, where: str, dropped: list[str]) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return [_drop_nulls(item, schema.get("items"), where, dropped) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, Mapping) or not isinstance(properties, Mapping):
        return value
    kept = {}
    for key, item in value.items():
        known = properties.get(key)
        if item is None and _is_padding(key, known, schema):
            dropped.append(f"{where}.{key}")
        else:
            kept[key] = _drop_nulls(item, known, f"{where}.{key}", dropped)
    return kept


def _is_padding(key: str, known: Any, schema: Mapping[str, Any]) -> bool:
    if known is None:
        return "additionalProperties" not in schema or schema["additionalProperties"] is False
    return key not in schema.get("required", ()) and value_problem(None, known) is not None


def check_conversation(conversation: Conversation) -> None:
    """Refuse what must not be trained.

    Raises:
        Refused: empty turns, roles out of order, calls to undeclared tools, arguments that break
            their schema, calls without a result, results without a call.
    """
    messages = conversation.messages
    tools = {tool.name: tool for tool in conversation.tools}
    spoken = [message for message in messages if message.role != "system"]
    if not any(message.role == "assistant" for message in messages):
        raise Refused("no_answer", "no assistant turn")
    if not spoken or spoken[0].role != "user":
        raise Refused("role_order", "the first turn after the system text is not the user's")
    if any(message.role == "system" for message in messages[messages.index(spoken[0]) :]):
        raise Refused("role_order", "a system turn after the conversation has begun")
    before: Message | None = None
    for message in spoken:
        if message.role == "assistant":
            if not message.content.strip() and not message.calls:
                raise Refused("empty_turn", "an assistant turn with neither text nor call")
            if before is not None and before.role == "assistant":
                raise Refused("role_order", "two assistant turns in a row")
        for call in message.calls:
            _check_call(call, tools)
        before = message
    _check_results(spoken)


def _check_call(call: ToolCall, tools: Mapping[str, ToolSpec]) -> None:
    if call.name not in tools:
        known = ", ".join(sorted(tools)) or "none"
        raise Refused("unknown_tool", f'calls "{call.name}"; offered: {known}')
    problem = schema_problem(call, tools[call.name])
    if problem:
        raise Refused("arguments_break_schema", f"{call.name}: {problem}")


def _check_results(spoken: Sequence[Message]) -> None:
    """Every call is answered before anyone speaks, unless the conversation ends with it."""
    open_calls: tuple[ToolCall, ...] = ()
    results: list[Message] = []
    for message in spoken:
        if message.role == "tool":
            if not open_calls:
                raise Refused("result_without_call", "a tool result that no call asked for")
            results.append(message)
            continue
        _check_answered(open_calls, results)
        open_calls, results = message.calls, []
    if results:  # of the last calls; none at all is an end like any other
        _check_answered(open_calls, results)


def _check_answered(calls: Sequence[ToolCall], results: Sequence[Message]) -> None:
    if len(results) < len(calls):
        raise Refused(
            "call_without_result",
            f"{len(results)} results for {len(calls)} calls, {calls[0].name} first",
        )
    if len(results) > len(calls):
        raise Refused("result_without_call", f"{len(results)} results for {len(calls)} calls")
    asked = {call.id for call in calls if call.id is not None}
    strangers = [m.call_id for m in results if m.call_id is not None and m.call_id not in asked]
    if asked and strangers:
        raise Refused("result_without_call", f"a result for the call {strangers[0]!r}, never made")
