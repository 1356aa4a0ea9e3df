"""The same conversations to a served model in every way that it can be asked.

In: cases, an `Endpoint`, a `Reference`. Out: an `Exchange` a case: the complete answer, the
streamed one, the continuation of our own prompt by ids, the prompt's ids as the server renders
them, and what failed on the way. Nothing is judged here.

A conversation that goes on (`follow_up`) hands the server's own call back to it with a result, as a
client would: that is where arguments get encoded twice and results become user turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from smollora.doctor.reference import Reference
from smollora.endpoint import Completion, Endpoint, EndpointError
from smollora.endpoint.chat_form import ChatAnswer, with_call_ids
from smollora.endpoint.wire import HOPELESS
from smollora.errors import TemplateError
from smollora.types import EvalCase, Message, ToolCall

Way = Literal["complete", "streamed", "by ids"]
WAYS: tuple[Way, ...] = ("complete", "streamed", "by ids")
GIVE_UP_AFTER = 5
"""Conversations without any answer, and none with one: the server will not come round."""
NOT_OFFERED = ("not_found", "refused")
"""How a server says that it takes no prompts as ids; no harness error."""
RESULT = "The answer is 4711 and the lamp is green."
"""What the made-up result of a follow-up says."""


@dataclass(slots=True)
class Exchange:
    """One conversation and everything that came back."""

    case: EvalCase
    messages: tuple[Message, ...]
    """Of the case, with ids on calls and results."""
    rendered: tuple[int, ...] | None = None
    """The prompt by our own rendering; None where the template refuses the conversation."""
    refused: str = ""
    """Why, in the template's words."""
    served: tuple[int, ...] | None = None
    """The prompt as the server renders it; None where it does not tell."""
    complete: ChatAnswer | None = None
    streamed: ChatAnswer | None = None
    by_ids: Completion | None = None
    failures: dict[Way, EndpointError] = field(default_factory=dict)

    @property
    def refuses_tools(self) -> bool:
        """True if the server was started without a tool-call parser, and says so."""
        error = self.failures.get("complete")
        if error is None or error.kind != "refused":
            return False
        return "tool choice" in error.message or "tool-call-parser" in error.message

    @property
    def answered(self) -> bool:
        """True if there is something to judge by."""
        return bool(self.complete or self.streamed or self.by_ids or self.refuses_tools)


def ask_all(
    endpoint: Endpoint,
    reference: Reference,
    cases: Sequence[EvalCase],
    *,
    max_tokens: int,
    concurrency: int = 8,
    on_done: Callable[[int], None] | None = None,
) -> list[Exchange]:
    """Every case in every way, in the order of `cases`.

    Raises:
        EndpointError: nobody there, another kind of server, or no answer to the first few.
    """
    made: dict[int, Exchange] = {}
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        waiting = {
            pool.submit(ask, endpoint, reference, case, max_tokens): place
            for place, case in enumerate(cases)
        }
        for future in as_completed(waiting):
            exchange = made[waiting[future]] = future.result()
            if len(made) >= min(GIVE_UP_AFTER, len(cases)) and not any(
                each.answered for each in made.values()
            ):
                raise next(iter(exchange.failures.values()))
            if on_done:
                on_done(len(made))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return [made[place] for place in range(len(cases))]


def ask(endpoint: Endpoint, reference: Reference, case: EvalCase, max_tokens: int) -> Exchange:
    """One case in every way. A request that fails for a reason that the next would meet too ends
    the exchange, so that a slow server costs one timeout and not four.
    """
    exchange = Exchange(case, with_call_ids(case.messages))
    try:
        exchange.rendered = reference.prompt_ids(exchange.messages, case.tools)
    except TemplateError as error:
        exchange.refused = error.message
    for way in WAYS:
        if way == "by ids" and exchange.rendered is None:
            continue
        try:
            _ask_one(endpoint, reference, exchange, way, max_tokens)
        except EndpointError as error:
            if way == "by ids" and error.kind in NOT_OFFERED:
                continue
            exchange.failures[way] = error
            if way == "complete" and error.kind in HOPELESS:
                raise
            if error.kind in ("timeout", "down"):
                break
    return exchange


def _ask_one(
    endpoint: Endpoint, reference: Reference, exchange: Exchange, way: Way, max_tokens: int
) -> None:
    messages, tools = exchange.messages, exchange.case.tools
    if way == "complete":
        exchange.complete = endpoint.chat(messages, tools, max_tokens=max_tokens)
        exchange.served = exchange.complete.prompt_token_ids or endpoint.tokenize(messages, tools)
    elif way == "streamed":
        exchange.streamed = endpoint.chat(messages, tools, stream=True, max_tokens=max_tokens)
    elif exchange.rendered is not None:
        exchange.by_ids = endpoint.complete(
            exchange.rendered, max_tokens, stop_token_ids=sorted(reference.ends)
        )


def follow_up(endpoint: Endpoint, reference: Reference, exchange: Exchange) -> Exchange | None:
    """The conversation one step further: the server's own call, as it gave it, and a result.

    None where there is no call to hand back, or the server does not tell its prompts. Only the
    prompts are compared; nothing is generated that is looked at.
    """
    answer = exchange.complete
    if answer is None or not answer.calls or exchange.served is None:
        return None
    calls: list[ToolCall] = []
    for place, call in enumerate(answer.calls):
        arguments = decoded(call.arguments)
        if not isinstance(arguments, dict):
            return None
        calls.append(ToolCall(call.name, arguments, call.id or f"call{place:05d}"))
    results = [Message("tool", RESULT, call_id=call.id, name=call.name) for call in calls]
    messages = (
        *exchange.messages,
        Message("assistant", answer.content, tuple(calls)),
        *results,
    )
    case = replace(
        exchange.case, id=f"{exchange.case.id}, next turn", messages=messages, expected=()
    )
    further = Exchange(case, messages)
    try:
        further.rendered = reference.prompt_ids(messages, case.tools)
        further.served = endpoint.tokenize(messages, case.tools)
        if further.served is None:
            asked = endpoint.chat(messages, case.tools, max_tokens=1)
            further.served = asked.prompt_token_ids
    except TemplateError as error:
        further.refused = error.message
    except EndpointError as error:
        further.failures["complete"] = error
    return further


def decoded(arguments: str) -> Any:
    """The JSON value of a served call's arguments; None if they are not JSON."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return None
