"""Two worked examples in the prompt: turns in which tools are called, rendered by the template in
the model's own form.

In: a case. Out: the case with the examples' turns before its own and their tools beside its own,
where it offers tools; a case without tools stays as it is, as a server would leave it. A third,
short exchange needs no tool: examples that only ever call teach a model to call for everything.
"""

from __future__ import annotations

import json
from dataclasses import replace

from smollora.types import EvalCase, Message, ToolCall, ToolSpec

LIBRARY = ToolSpec(
    "library_hours",
    "Opening hours of a branch of the city library on one day.",
    {
        "type": "object",
        "properties": {
            "branch": {"type": "string", "description": "Name of the branch"},
            "day": {"type": "string", "description": "Day of the week"},
        },
        "required": ["branch", "day"],
    },
)
FERRY = ToolSpec(
    "book_ferry",
    "Book seats on a ferry.",
    {
        "type": "object",
        "properties": {
            "route": {"type": "string", "description": "From where to where"},
            "seats": {"type": "integer", "description": "Number of seats"},
        },
        "required": ["route", "seats"],
    },
)
EXAMPLE_TOOLS = (LIBRARY, FERRY)


def _worked(
    request: str, number: int, name: str, arguments: dict[str, object], result: object, answer: str
) -> tuple[Message, ...]:
    call_id = f"example{number:02d}"
    return (
        Message("user", request),
        Message("assistant", calls=(ToolCall(name, arguments, call_id),)),
        Message("tool", json.dumps(result), call_id=call_id, name=name),
        Message("assistant", answer),
    )


EXAMPLES = (
    *_worked(
        "Is the Riverside library open on Saturday?",
        1,
        "library_hours",
        {"branch": "Riverside", "day": "Saturday"},
        {"open": "10:00", "close": "16:00"},
        "Yes: the Riverside library is open on Saturday from 10:00 to 16:00.",
    ),
    *_worked(
        "Three seats on the ferry from Largs to Cumbrae, please.",
        2,
        "book_ferry",
        {"route": "Largs to Cumbrae", "seats": 3},
        {"booked": True, "reference": "LC-207"},
        "Booked: three seats from Largs to Cumbrae, reference LC-207.",
    ),
    Message("user", "Thanks! Do I need to print anything?"),
    Message("assistant", "No, showing the reference on your phone is usually enough."),
)


def with_examples(case: EvalCase) -> EvalCase:
    """The case after the examples; the system turns stay first."""
    if not case.tools:
        return case
    start = next(
        (place for place, turn in enumerate(case.messages) if turn.role != "system"),
        len(case.messages),
    )
    own = {tool.name for tool in case.tools}
    return replace(
        case,
        messages=(*case.messages[:start], *EXAMPLES, *case.messages[start:]),
        tools=(*(tool for tool in EXAMPLE_TOOLS if tool.name not in own), *case.tools),
    )
