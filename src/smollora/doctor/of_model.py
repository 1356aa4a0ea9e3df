"""Blame for the model, by its rates.

In: readings. Out: a `Finding` a cause. A model was asked a few dozen questions, and every model
misses some; so it is blamed only where even the kinder end of the 95% interval is bad, and it is
judged on prompts that lose nothing. A stop token that the server passes over needs no rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smollora.doctor.answers import Outcome
from smollora.doctor.asking import Way
from smollora.doctor.findings import EXCERPT, IDS, Finding, Reading
from smollora.doctor.reference import Reference
from smollora.evaluate.match import wilson
from smollora.types import ToolCall

EMISSION_FLOOR = 0.9
"""A model is blamed for calls that it does not make if its rate is surely below this."""
FALSE_CALL_CEILING = 0.5
"""... for calls that nobody wanted, if its rate is surely above this."""
FAULT_CEILING = 0.1
"""... for malformed or spelled calls and for answers without end, likewise."""

Judged = Sequence[tuple[Reading, Outcome]]


def model_findings(reference: Reference, readings: Sequence[Reading]) -> Iterator[Finding]:
    """What the model itself does wrong, on fair prompts."""
    fair = [(each, each.fair) for each in readings]
    judged = [(each, outcome) for each, outcome in fair if outcome is not None]
    wanting = [item for item in judged if item[0].exchange.case.expected]
    quiet = [item for item in judged if not item[0].exchange.case.expected]
    tried = [item for item in judged if item[1].attempts]
    stop = ", ".join(f"{token} {reference.decode([token])}" for token in sorted(reference.ends))

    def surely(items: Judged, wrong: str) -> list[tuple[Reading, Outcome]]:
        return [item for item in items if item[1].word == wrong]

    missed = surely(wanting, "no call")
    if _low(len(missed), len(wanting)) > 1 - EMISSION_FLOOR:
        yield _model(
            "no_call",
            "given a sound prompt, the model does not call",
            f"teach it: smollora run model.source={reference.source}",
            missed,
            len(wanting),
        )
    spelled = surely(tried, "spelled out")
    if _low(len(spelled), len(tried)) > FAULT_CEILING:
        yield _model(
            "spelled_out",
            f"it spells {reference.fmt.open} with ordinary tokens; a parser of strings takes that,"
            " until the spelling changes",
            "train on rows whose delimiters are single ids (smollora verify proves them)",
            spelled,
            len(tried),
        )
    broken = surely(tried, "malformed")
    if _low(len(broken), len(tried)) > FAULT_CEILING:
        yield _model(
            "malformed",
            "the calls that it makes are broken",
            "train more call rows, or constrain the server (structured outputs)",
            broken,
            len(tried),
        )
    called = surely(quiet, "false call")
    if _low(len(called), len(quiet)) > FALSE_CALL_CEILING:
        yield _model(
            "false_call",
            "it calls where no call is wanted",
            "train rows that refuse in words: irrelevant tools and near misses",
            called,
            len(quiet),
        )
    yield from _endings(reference, readings, judged, stop)


def _endings(
    reference: Reference,
    readings: Sequence[Reading],
    judged: Judged,
    stop: str,
) -> Iterator[Finding]:
    ways: tuple[Way, ...] = ("complete", "streamed")
    chats = [[each.outcomes[way] for way in ways if way in each.outcomes] for each in readings]
    on = [
        (each, next(answer for answer in answers if answer.ran_on_at is not None))
        for each, answers in zip(readings, chats, strict=True)
        if any(answer.ran_on_at is not None for answer in answers)
    ]
    if on:
        yield _model(
            "stop_ignored",
            f"it ends its turn with {_passed_over(reference, on[0][1])} and the server does not"
            " stop there: generation_config.json and the tokenizer's eos_token name another id",
            f"write {sorted(reference.ends)} as eos_token_id into generation_config.json of the"
            " served model, or send it as stop_token_ids",
            on,
            sum(map(bool, chats)),
            at=on[0][1].ran_on_at,
        )
        return
    endless = [item for item in judged if item[1].never_ended]
    if _low(len(endless), len(judged)) > FAULT_CEILING:
        yield _model(
            "never_ends",
            f"it does not write its stop token ({stop})",
            "train with the stop token labelled (smollora inspect: check stop_token_trained), or"
            " raise --max-tokens if the answers are only long",
            endless,
            len(judged),
        )


def _passed_over(reference: Reference, outcome: Outcome) -> str:
    """The end-of-turn id that an answer goes on behind, with its text."""
    token = (outcome.token_ids or ())[outcome.ran_on_at or 0]
    return f"{token} {reference.decode([token])}"


def _low(k: int, n: int) -> float:
    """The lower end of the 95% interval; 0 over no cases."""
    return float(wilson(k, n)["low"] or 0.0)


def _model(
    cause: str,
    says: str,
    fix: str,
    shown: Judged,
    of: int,
    *,
    at: int | None = None,
) -> Finding:
    reading, outcome = shown[0]
    wanted = ", ".join(_show(call) for call in reading.exchange.case.expected)
    ids = outcome.token_ids or ()
    start = max(0, (at or 0) - IDS // 2)
    return Finding(
        "model",
        cause,
        says,
        fix,
        len(shown),
        of,
        reading.exchange.case.id,
        at,
        ids[start : start + IDS],
        f"model: {outcome.raw}"[:EXCERPT],
        f"wanted: {wanted or 'no call'}"[:EXCERPT],
    )


def _show(call: ToolCall) -> str:
    return f"{call.name}({dict(call.arguments)})"
