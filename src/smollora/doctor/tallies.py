"""What a diagnosis counts beside its findings, and what it could not look at.

In: readings. Out: tables of words, pairs (equal, compared), notes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from smollora.doctor.answers import WORDS, Word, argument_pieces
from smollora.doctor.asking import WAYS, Way
from smollora.doctor.conversations import is_nested
from smollora.doctor.findings import Reading
from smollora.doctor.of_prompts import unfit
from smollora.doctor.reference import Reference

Counts = dict[Word, int]


def count_words(readings: Sequence[Reading]) -> dict[Way, Counts]:
    """How often each word was the outcome, by way of asking."""
    counted: dict[Way, Counts] = {}
    for way in WAYS:
        words = Counter(each.outcomes[way].word for each in readings if way in each.outcomes)
        words["harness error"] = sum(way in each.exchange.failures for each in readings)
        counted[way] = {word: words[word] for word in WORDS if words[word]}
    return counted


def groups(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    """Conversations of the kinds that servers break first."""
    return {
        "nested arguments": [each for each in readings if is_nested(each.exchange.case)],
        "several calls": [each for each in readings if len(each.exchange.case.expected) > 1],
        "after a result": [
            each for each in readings if any(m.role == "tool" for m in each.exchange.messages)
        ],
    }


def equal_prompts(readings: Sequence[Reading]) -> tuple[int, int] | None:
    """(equal, compared) prompts; None where the server does not tell its own."""
    told = [
        each.exchange
        for each in readings
        if each.exchange.served is not None and each.exchange.rendered is not None
    ]
    return (sum(each.served == each.rendered for each in told), len(told)) if told else None


def equal_answers(readings: Sequence[Reading]) -> tuple[int, int] | None:
    """(equal, compared) ids of chat answers and of the same prompts continued by ids."""
    pairs = [
        (each.outcomes["complete"].token_ids, each.outcomes["by ids"].token_ids)
        for each in readings
        if {"complete", "by ids"} <= set(each.outcomes)
        and each.exchange.served == each.exchange.rendered
    ]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return (sum(one == other for one, other in known), len(known)) if known else None


def median_pieces(readings: Sequence[Reading]) -> float | None:
    """How many deltas carry the arguments of a streamed answer with calls."""
    counts = [
        argument_pieces(each.exchange.streamed.deltas)
        for each in readings
        if each.exchange.streamed is not None and each.exchange.streamed.calls
    ]
    return float(median(counts)) if counts else None


def notes(reference: Reference, readings: Sequence[Reading]) -> list[str]:
    """What could not be looked at, and what is worth knowing beside the verdict."""
    exchanges = [each.exchange for each in readings]
    said = []
    if not any(each.served for each in exchanges):
        said.append(
            "the server does not tell its prompts (no return_token_ids, no /tokenize): prompt and"
            " template are judged by the model's own template alone"
        )
    if not any(each.complete and each.complete.token_ids is not None for each in exchanges):
        said.append(
            "the server gives no ids of its answers: calls are read from its text, where a spelled"
            " delimiter looks like the real one"
        )
    if not any(each.by_ids for each in exchanges):
        said.append("the server takes no prompts as token ids: the model is judged by its chat")
    if reference.facts.lacking:
        lacking = ", ".join(each.text for each in reference.facts.lacking)
        said.append(f"{lacking}: several ordinary tokens here, so no id marks a call")
    failed = [check.name for check in reference.checks if not check.ok]
    if failed:
        said.append(
            f"the model's template fails {len(failed)} checks of its audit ({', '.join(failed[:4])}"
            f"{', ...' if len(failed) > 4 else ''}): smollora inspect {reference.source}"
        )
    if refused := [each for each in exchanges if each.refused]:
        said.append(
            f"the model's template refuses {len(refused)} conversations: {refused[0].refused[:120]}"
        )
    wanting = [each for each in readings if each.exchange.case.expected]
    if wanting and all(each.fair is None for each in wanting):
        said.append("the model is not judged: its prompts lose what it would need to call")
    parity = equal_prompts(readings)
    if unfit(reference) and parity is not None and parity[0] < parity[1]:
        said.append(
            "the server renders another template than the model's own, which loses things: to hold"
            " the two together, name the folder of the repaired one as MODEL"
        )
    return said
