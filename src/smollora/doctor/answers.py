"""What one answer came to, in one word.

In: what the model produced (ids, or text where the server gives none) and the calls that the server
made of it. Out: an `Outcome`. Three words must never be mixed up: "parser lost" (the model made a
call, the server lost it), "malformed" (the call's JSON is broken) and "no call" (the model made
none). Without ids the model's delimiters cannot be told from text that looks like them, and a
call whose arguments are no JSON may be the model's doing or the parser's; both are said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smollora.doctor.asking import decoded
from smollora.doctor.reference import Reference
from smollora.endpoint import Completion
from smollora.endpoint.chat_form import ChatAnswer, ServedCall
from smollora.types import EvalCase, ParsedCall, ToolCall

Word = Literal[
    "call",
    "parser lost",
    "invented",
    "malformed",
    "spelled out",
    "no call",
    "false call",
    "silent",
    "cut off",
    "harness error",
]
WORDS: dict[Word, str] = {
    "call": "the model called and the call arrived",
    "silent": "no call was wanted and none was made",
    "parser lost": "the model made a call, the server lost or changed it",
    "invented": "the server gave a call that the model never made",
    "malformed": "the model's call is broken JSON",
    "spelled out": "the model spelled the delimiters with ordinary tokens",
    "no call": "the model never made the call that was wanted",
    "false call": "the model called where no call was wanted",
    "cut off": "the answer reached the limit of tokens inside a call",
    "harness error": "no answer came; counted here and in no rate",
}
"""Every word of the tables with what it means."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer, read."""

    word: Word
    cause: str = ""
    """Of "parser lost": lost | corrupt | changed | encoded_twice."""
    attempts: tuple[ParsedCall, ...] = ()
    """What the model attempted."""
    served: tuple[ServedCall, ...] = ()
    token_ids: tuple[int, ...] | None = None
    """None: the server gave no ids, and `attempts` were read from its text."""
    raw: str = ""
    """What the model wrote, as far as it is known."""
    ran_on_at: int | None = None
    """Position of an end-of-turn id behind which the answer goes on."""
    never_ended: bool = False
    """The answer reached the limit of tokens without an end-of-turn id."""
    finish_wrong: str = ""
    """The finish_reason of an answer whose calls arrived, where it is not "tool_calls"."""

    @property
    def attempted(self) -> bool:
        """True if the model opened a call by its delimiter's id."""
        return any(attempt.status != "spelled_out" for attempt in self.attempts)


def read_chat(reference: Reference, case: EvalCase, answer: ChatAnswer) -> Outcome:
    """A chat answer, complete or put together from a stream."""
    token_ids = answer.token_ids
    read = reference.encode(answer.content) if token_ids is None else token_ids
    attempts = reference.attempts(read, case.tools)
    finished = answer.finish_reason == "length"
    word, cause = _chat_word(case, attempts, answer, finished, ids=token_ids is not None)
    ended = _ended(reference, token_ids, finished)
    wrong = ""
    if answer.calls and word in ("call", "false call") and not finished and ended[0] is None:
        wrong = "" if answer.finish_reason == "tool_calls" else str(answer.finish_reason)
    return Outcome(
        word,
        cause,
        attempts,
        answer.calls,
        token_ids,
        reference.decode(token_ids) if token_ids is not None else answer.content,
        *ended,
        finish_wrong=wrong,
    )


def read_completion(reference: Reference, case: EvalCase, answer: Completion) -> Outcome:
    """The continuation of a prompt that was given as ids: no parser stands between."""
    token_ids = answer.token_ids
    read = reference.encode(answer.text) if token_ids is None else token_ids
    attempts = reference.attempts(read, case.tools)
    finished = answer.finish_reason == "length"
    word = _model_word(case, attempts, finished) or ("call" if case.expected else "false call")
    ended = _ended(reference, token_ids, finished)
    raw = reference.decode(read)
    return Outcome(word, "", attempts, (), token_ids, raw, *ended)


def _ended(
    reference: Reference, token_ids: Sequence[int] | None, finished: bool
) -> tuple[int | None, bool]:
    """(where an end-of-turn id was passed over, whether none came before the limit)."""
    if token_ids is None:
        return None, finished
    at = next((at for at, token in enumerate(token_ids) if token in reference.ends), None)
    if at is None:
        return None, finished
    return (at if at + 1 < len(token_ids) else None), False


def _model_word(case: EvalCase, attempts: Sequence[ParsedCall], finished: bool) -> Word | None:
    """What the model alone decided; None if it made calls that are all well formed."""
    real = [attempt for attempt in attempts if attempt.status != "spelled_out"]
    if not attempts:
        return "no call" if case.expected else "silent"
    if not real:
        return "spelled out"
    if finished and real[-1].status == "unclosed":
        return "cut off"
    return None if all(attempt.status == "ok" for attempt in real) else "malformed"


def _chat_word(
    case: EvalCase,
    attempts: Sequence[ParsedCall],
    answer: ChatAnswer,
    finished: bool,
    *,
    ids: bool,
) -> tuple[Word, str]:
    arrived: Word = "call" if case.expected else "false call"
    if not ids and answer.calls:
        # What became calls is not in the content any more: there is nothing to hold them against.
        sound = all(isinstance(decoded(call.arguments), dict) for call in answer.calls)
        return (arrived, "") if sound else ("malformed", "no_ids")
    word = _model_word(case, attempts, finished)
    if word in ("no call", "silent") and answer.calls:
        return "invented", ""
    if word is not None:
        return word, ""
    made = [attempt.call for attempt in attempts if attempt.call is not None]
    cause = lost_how(made, answer.calls)
    return ("parser lost", cause) if cause else (arrived, "")


def lost_how(made: Sequence[ToolCall], served: Sequence[ServedCall]) -> str:
    """How the server's calls differ from those that the model made; "" if they do not."""
    values = [decoded(call.arguments) for call in served]
    if any(isinstance(value, str) and isinstance(decoded(value), dict) for value in values):
        return "encoded_twice"
    if any(not isinstance(value, dict) for value in values):
        return "corrupt"
    if len(served) < len(made):
        return "lost"
    theirs = [_exact(call.name, value) for call, value in zip(served, values, strict=True)]
    return "" if theirs == [_exact(call.name, call.arguments) for call in made] else "changed"


def _exact(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, dict(arguments)], sort_keys=True, ensure_ascii=False)


def delta_faults(deltas: Sequence[Mapping[str, Any]]) -> list[str]:
    """What in the deltas of a stream a client cannot put together; empty if all is well.

    A call begins with its index, id and name; what follows are pieces of arguments under the same
    index. Source: OpenAI's chat completion chunk, and what its client and others rely on.
    """
    seen: dict[int, bool] = {}
    faults: list[str] = []
    for place, delta in enumerate(deltas):
        for part in delta.get("tool_calls") or ():
            index, function = part.get("index"), part.get("function") or {}
            if not isinstance(index, int):
                faults.append(f"delta {place}: a call without index")
                continue
            if index not in seen and not (function.get("name") and part.get("id")):
                faults.append(f"delta {place}: call {index} begins without id or name")
            elif index in seen and function.get("name"):
                faults.append(f"delta {place}: the name of call {index} comes twice")
            seen[index] = True
    return faults


def argument_pieces(deltas: Sequence[Mapping[str, Any]]) -> int:
    """How many deltas carried a piece of arguments."""
    return sum(
        bool((part.get("function") or {}).get("arguments"))
        for delta in deltas
        for part in delta.get("tool_calls") or ()
    )
