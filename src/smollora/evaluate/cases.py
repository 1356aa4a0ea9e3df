"""Evaluation cases: questions with their right answers.

In: held-out conversations, or a .jsonl of cases. Out: `EvalCase`. BFCL's come from `bfcl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from smollora.data.sources import Refused, read_conversation, read_tools
from smollora.errors import DataError
from smollora.types import Conversation, EvalCase, Message, Reject, ToolCall

CALLING = ("single", "parallel", "multi_turn_call", "after_question")
"""Categories of starter cases whose right answer is to call."""


def starter_cases(split: str = "heldout") -> list[EvalCase]:
    """The held-out starter conversations as cases: one a conversation, at its last decision."""
    from smollora.data.starter import build_general_rows, build_rows

    cases: list[EvalCase] = []
    records = [*build_rows("heldout"), *build_general_rows("heldout", with_tools=1)]
    for number, record in enumerate(records, 1):
        conversation = read_conversation(record, "starter-heldout", number)
        if isinstance(conversation, Reject):
            raise DataError(
                f"shipped case {record['id']}: {conversation.detail}", "please report this"
            )
        cases.extend(conversation_cases(conversation, record["subcategory"]))
    return cases


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
    from smollora.data.sources import Undecodable, read_rows

    cases = []
    for number, row in read_rows(path):
        try:
            if isinstance(row, Undecodable):
                raise Refused("bad_json", row.detail)
            cases.append(
                EvalCase(
                    str(row["id"]),
                    str(row["category"]),
                    tuple(Message(m["role"], m.get("content") or "") for m in row["messages"]),
                    tuple(read_tools(row.get("tools"))),
                    tuple(ToolCall(c["name"], c["arguments"]) for c in row.get("expected", ())),
                )
            )
        except (KeyError, TypeError, AttributeError, Refused) as error:
            raise DataError(
                f"row {number} of {path} is no case: {error}",
                "a case has id, category, messages, tools, expected",
            ) from error
    if not cases:
        raise DataError(f"{path} holds no cases", "write one JSON object a line")
    return cases


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
