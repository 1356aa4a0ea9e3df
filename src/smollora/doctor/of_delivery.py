"""Blame for delivery: calls that the model made and that the client did not get.

In: readings. Out: a `Finding` a cause, for complete answers (the parser) and for those that only a
stream loses (streaming). One lost call is enough: a parser is a program, and does the same again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from smollora.doctor.answers import Outcome, delta_faults
from smollora.doctor.asking import Way
from smollora.doctor.findings import EXCERPT, IDS, Blame, Finding, Reading
from smollora.doctor.reference import Reference
from smollora.formats.served import Answer, describe, effects

LOST = {
    "lost": "the server gave fewer calls than the model made",
    "corrupt": "the server's arguments are no JSON object",
    "changed": "the server gave another name or other arguments than the model wrote",
    "encoded_twice": "the server encoded the arguments twice",
    "invented": "the server gave a call that the model never made",
    "finish_reason": "the call arrived under another finish_reason than tool_calls",
    "broken_deltas": "a client cannot put the deltas together",
    "words_lost": "the streamed words are not those of the complete answer",
}


def parser_findings(
    reference: Reference, readings: Sequence[Reading], server_args: str
) -> Iterator[Finding]:
    """Calls that were lost on the way from complete answers."""
    fix = f"start the server with {server_args}"
    yield from _lost_findings(
        reference, readings, "complete", "parser", _parser_cause, lambda _: fix
    )


def _parser_cause(reading: Reading) -> str:
    outcome = reading.outcomes["complete"]
    if outcome.word == "parser lost":
        return outcome.cause
    if outcome.word == "invented":
        return "invented"
    return "finish_reason" if outcome.finish_wrong else ""


def streaming_findings(
    reference: Reference, readings: Sequence[Reading], server_args: str
) -> Iterator[Finding]:
    """Calls that arrive when complete and not when streamed."""
    yield from _lost_findings(
        reference, readings, "streamed", "streaming", _stream_cause, _stream_fix
    )


def _stream_cause(reading: Reading) -> str:
    outcome, complete = reading.outcomes["streamed"], reading.outcomes.get("complete")
    if complete is not None and (complete.word in ("parser lost", "invented")):
        return ""
    answer = reading.exchange.streamed
    if outcome.word == "parser lost":
        first = any(_name_second(attempt.raw) for attempt in outcome.attempts)
        return "arguments_first" if first else outcome.cause
    if outcome.word == "invented":
        return "invented"
    if answer is not None and delta_faults(answer.deltas):
        return "broken_deltas"
    if outcome.finish_wrong and not (complete and complete.finish_wrong):
        return "finish_reason"
    return _without_ids(reading) or _words(reading)


def _without_ids(reading: Reading) -> str:
    """Where no ids are given, the complete answer is what the streamed one is held against."""
    outcome, complete = reading.outcomes["streamed"], reading.outcomes.get("complete")
    if outcome.token_ids is not None or complete is None or complete.word != "call":
        return ""
    if outcome.word == "malformed":
        return "corrupt"
    return "lost" if outcome.word in ("no call", "spelled out") else ""


def _words(reading: Reading) -> str:
    """Words that a stream drops; beside a broken call, what is words is anybody's reading."""
    if reading.outcomes["streamed"].word not in ("call", "false call", "no call", "silent"):
        return ""
    one, other = reading.exchange.complete, reading.exchange.streamed
    if one is None or other is None or one.token_ids is None or one.token_ids != other.token_ids:
        return ""
    return "" if one.content.strip() == other.content.strip() else "words_lost"


def _name_second(raw: str) -> bool:
    name, arguments = raw.find('"name"'), raw.find('"arguments"')
    return 0 <= arguments < name


def _stream_fix(cause: str) -> str:
    if cause == "arguments_first":
        return (
            "train the name before the arguments (smollora prepare writes rows so); until then"
            " ask for complete answers (stream: false)"
        )
    return "ask for complete answers (stream: false), or another version of the server"


def _lost_findings(
    reference: Reference,
    readings: Sequence[Reading],
    way: Way,
    blame: Blame,
    cause_of: Callable[[Reading], str],
    fix_of: Callable[[str], str],
) -> Iterator[Finding]:
    asked = [each for each in readings if way in each.outcomes]
    called = [each for each in asked if each.outcomes[way].attempts or each.outcomes[way].served]
    causes = {id(each): cause_of(each) for each in asked}
    for cause, count in Counter(c for c in causes.values() if c).most_common():
        shown = next(each for each in asked if causes[id(each)] == cause)
        outcome = shown.outcomes[way]
        calls = [f"{call.name}({call.arguments})" for call in outcome.served]
        answer = shown.exchange.complete if way == "complete" else shown.exchange.streamed
        given = ", ".join(calls) or f"no call, and the words {answer.content if answer else ''!r}"
        if cause == "broken_deltas" and answer is not None:
            given = "; ".join(delta_faults(answer.deltas)[:3])
        if cause == "finish_reason":
            given += f", finish_reason {outcome.finish_wrong}"
        says = LOST.get(cause, "the streamed arguments are not what the model wrote")
        known = _known(reference, outcome)
        at = next((attempt.span[0] for attempt in outcome.attempts if attempt.span), None)
        yield Finding(
            blame,
            cause,
            says + (f"; known: {known}" if known else ""),
            fix_of(cause),
            count,
            len(asked) if cause == "words_lost" else len(called),
            shown.exchange.case.id,
            at,
            (outcome.token_ids or ())[:IDS],
            f"server: {given}"[:EXCERPT],
            f"model: {outcome.raw}"[:EXCERPT],
        )


def _known(reference: Reference, outcome: Outcome) -> str:
    """What vLLM's parser was measured to do with such an answer."""
    if any(attempt.status != "ok" for attempt in outcome.attempts):
        return ""
    found = effects(Answer(reference.fmt, outcome.attempts, "", ""))
    return describe(found[0], reference.fmt) if found else ""


def no_parser_finding(
    reading: Reading, cases: int, of: int, said: str, server_args: str
) -> Finding:
    """The server refuses tools because it was started without a parser."""
    return Finding(
        "parser",
        "no_parser",
        "the server was started without a tool-call parser and refuses requests with tools",
        f"start the server with {server_args}",
        cases,
        of,
        reading.exchange.case.id,
        evidence=said[:EXCERPT],
    )
