"""Evaluation cases: questions with their right answers.

In: held-out conversations, or a .jsonl of cases. Out: `EvalCase`. BFCL's come from `bfcl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from smollora.data.sources import Refused, read_conversation, read_tools
from smollora.errors import DataError
from smollora.types import Conversation, EvalCase, Message, Reject, Role, ToolCall


def starter_cases() -> list[EvalCase]:
    """The held-out starter conversations as cases: one a conversation, at its last decision."""
    return list(_starter_cases())


@cache
def _starter_cases() -> tuple[EvalCase, ...]:
    """Read once in a process: it takes a third of a second, and stages ask for them in turn."""
    from smollora.data.starter import build_general_rows, build_rows

    cases: list[EvalCase] = []
    records = [*build_rows("heldout"), *build_general_rows("heldout", with_tools=1)]
    for number, record in enumerate(records, 1):
        conversation = read_conversation(record, "starter-heldout", number)
        if isinstance(conversation, Reject):
            raise DataError(
                f"shipped case {record['id']}: {conversation.detail}", "please report this"
            )
        found = conversation_cases(conversation, record["subcategory"])
        cases.extend(replace(case, language=record["task"]) for case in found)
    return tuple(cases)


def probe_cases() -> list[EvalCase]:
    """What the held-out starter conversations do not ask: long and nested arguments, further
    languages, system prompts that training never saw.
    """
    with resources.as_file(resources.files(__package__) / "probe_cases.jsonl") as path:
        return read_cases(path)


def conversation_cases(conversation: Conversation, category: str) -> Iterator[EvalCase]:
    """Cases of one conversation.

    A single decision gives one case. A conversation that goes on gives one for its first decision
    and one for each later kind: `after_result` (answers, does not call again), `after_question`
    (calls once the missing argument is given), `multi_turn_call`.
    """
    messages = conversation.messages
    spoken = 0
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        spoken += 1
        before = messages[index - 1]
        name = category
        if spoken > 1 or category == "multi_turn":
            if before.role == "tool":
                name = "after_result"
            elif category == "missing":
                name = "after_question"
            elif message.calls:
                name = "multi_turn_call"
            else:
                name = "multi_turn_answer"
        yield EvalCase(
            f"{conversation.id}/{index}",
            name,
            messages[:index],
            conversation.tools,
            message.calls,
        )


def read_cases(path: Path) -> list[EvalCase]:
    """Cases of a .jsonl: id, category, messages, tools, expected (a list of {name, arguments}).

    Raises:
        DataError: missing, empty, or a broken row (named).
    """
    cases, broken = sort_rows(path)
    if broken:
        raise broken[0]
    return cases


def sort_rows(path: Path) -> tuple[list[EvalCase], list[DataError]]:
    """The cases of a .jsonl, and an error for each row that is none.

    Raises:
        DataError: missing, or without a single case.
    """
    from smollora.data.sources import Undecodable, read_rows

    cases: list[EvalCase] = []
    broken: list[DataError] = []
    for number, row in read_rows(path):
        try:
            if isinstance(row, Undecodable):
                raise Refused("bad_json", row.detail)
            cases.append(
                EvalCase(
                    str(row["id"]),
                    str(row["category"]),
                    tuple(_message(turn) for turn in row["messages"]),
                    tuple(read_tools(row.get("tools"))),
                    tuple(ToolCall(c["name"], c["arguments"]) for c in row.get("expected", ())),
                    str(row.get("language", "")),
                )
            )
        except (KeyError, TypeError, AttributeError, ValueError, Refused) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            broken.append(
                DataError(
                    f"row {number} of {path} is no case: {problem}",
                    "a case has id, category, messages, tools, expected",
                )
            )
    if not cases and broken:
        raise broken[0]
    if not cases:
        raise DataError(f"{path} holds no cases", "write one JSON object a line")
    return cases, broken


def _message(turn: Mapping[str, Any]) -> Message:
    """A turn in OpenAI's form; arguments may be an object or its JSON."""
    if turn["role"] not in get_args(Role):
        raise ValueError(f"no role is called {turn['role']!r}")
    calls = []
    for call in turn.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append(ToolCall(call["function"]["name"], arguments, call.get("id")))
    return Message(
        turn["role"],
        turn.get("content") or "",
        tuple(calls),
        turn.get("tool_call_id"),
        turn.get("name"),
    )


def limit_per_category(cases: Iterable[EvalCase], limit: int | None) -> list[EvalCase]:
    """At most `limit` cases of each category, spread evenly over it: domains stand in blocks."""
    by_category: dict[str, list[EvalCase]] = {}
    for case in cases:
        by_category.setdefault(case.category, []).append(case)
    kept: list[EvalCase] = []
    for group in by_category.values():
        count = len(group) if limit is None else min(limit, len(group))
        kept.extend(group[place * len(group) // count] for place in range(count))
    return kept
