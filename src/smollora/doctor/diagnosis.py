"""Whose fault is it? Prompt, template, model, parser or streaming: the verdict.

In: an `Endpoint`, a `Reference`, cases. Out: a `Diagnosis`: the verdict, every finding behind it,
and how often each word was an answer's, for each way of asking. Failed requests are harness errors:
counted in their own row, in no rate, and never a finding.

The verdict is the finding that stands first: what is wrong with the prompt makes everything behind
it wrong, so prompt and template come before the rest; the rest is ordered by how many conversations
show it. A later step, the cheapest cure (the same cases under a repaired template, with examples
in the prompt, constrained by a grammar, with an adapter), starts from a `Diagnosis`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from smollora.doctor.answers import WORDS, Word, argument_pieces, read_chat, read_completion
from smollora.doctor.asking import WAYS, Exchange, Way, ask_all, follow_up
from smollora.doctor.conversations import is_nested
from smollora.doctor.findings import Blame, Finding, Reading
from smollora.doctor.of_delivery import no_parser_finding, parser_findings, streaming_findings
from smollora.doctor.of_model import model_findings
from smollora.doctor.of_prompts import prompt_findings, template_findings
from smollora.doctor.prompts import prompt_faults
from smollora.doctor.reference import Reference
from smollora.endpoint import Endpoint, EndpointError
from smollora.types import EvalCase

Verdict = Literal[Blame, "nothing wrong"]
UPSTREAM: tuple[Blame, ...] = ("prompt", "template")
FOLLOW_UPS = 8
MOST_UNANSWERED = 0.5
"""Above this share of conversations without any answer there is no verdict."""

Counts = dict[Word, int]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor says."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    """The first one is the verdict's."""
    conversations: int
    wanting: int
    """Conversations whose right answer is to call."""
    counts: Mapping[Way, Counts]
    """How often each word was the outcome."""
    groups: Mapping[str, Mapping[Way, Counts]]
    """The same for conversations of a kind: nested arguments, several calls, after a result."""
    parity: tuple[int, int] | None
    """(equal, compared) prompts; None where the server does not tell."""
    same_ids: tuple[int, int] | None
    """(equal, compared) answers to the chat and to its prompt by ids, where we render the same."""
    follow_ups: tuple[int, int]
    """(sound, tried) prompts with the server's own call handed back and a result."""
    pieces: float | None
    """Median number of deltas that carry a streamed call's arguments; None without such calls."""
    failures: Mapping[str, int]
    """Harness errors by kind."""
    unanswered: int
    """Conversations that got no answer at all."""
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
            "conversations": self.conversations,
            "wanting_a_call": self.wanting,
            "outcomes": self.counts,
            "groups": self.groups,
            "prompts_equal": _pair(self.parity),
            "answers_equal": _pair(self.same_ids),
            "next_turns_sound": _pair(self.follow_ups),
            "argument_pieces": self.pieces,
            "harness_errors": self.failures,
            "unanswered": self.unanswered,
            "notes": list(self.notes),
        }


def _pair(counted: tuple[int, int] | None) -> dict[str, int] | None:
    return None if counted is None else {"k": counted[0], "n": counted[1]}


def diagnose(
    endpoint: Endpoint,
    reference: Reference,
    cases: Sequence[EvalCase],
    *,
    max_tokens: int = 512,
    concurrency: int = 8,
    on_done: Callable[[int], None] | None = None,
) -> Diagnosis:
    """Ask, read, blame.

    Raises:
        EndpointError: the server is not there, is another kind of server, does not offer the model,
            or leaves more than half of the conversations without an answer.
    """
    endpoint.connect()
    exchanges = ask_all(
        endpoint,
        reference,
        cases,
        max_tokens=max_tokens,
        concurrency=concurrency,
        on_done=on_done,
    )
    unanswered = [each for each in exchanges if not each.answered]
    if len(unanswered) > MOST_UNANSWERED * len(exchanges):
        error = next(iter(unanswered[0].failures.values()))
        raise EndpointError(
            error.kind,
            f"{len(unanswered)} of {len(exchanges)} conversations got no answer, so there is no"
            f" verdict; the first: {error.message}",
            error.hint,
        )
    readings = [read(reference, exchange) for exchange in exchanges]
    further = _follow_ups(endpoint, reference, readings)
    return judge(reference, readings, further)


def _follow_ups(
    endpoint: Endpoint, reference: Reference, readings: Sequence[Reading]
) -> list[Reading]:
    made: list[Reading] = []
    for reading in readings:
        complete = reading.outcomes.get("complete")
        if len(made) == FOLLOW_UPS or complete is None or complete.word != "call":
            continue
        exchange = follow_up(endpoint, reference, reading.exchange)
        if exchange is not None:
            made.append(read(reference, exchange))
    return made


def read(reference: Reference, exchange: Exchange) -> Reading:
    """An exchange with its outcomes and the faults of its prompt."""
    outcomes = {}
    if exchange.complete is not None:
        outcomes["complete"] = read_chat(reference, exchange.case, exchange.complete)
    if exchange.streamed is not None:
        outcomes["streamed"] = read_chat(reference, exchange.case, exchange.streamed)
    if exchange.by_ids is not None:
        outcomes["by ids"] = read_completion(reference, exchange.case, exchange.by_ids)
    reading = Reading(exchange, outcomes)  # type: ignore[arg-type]
    messages, tools = exchange.messages, exchange.case.tools
    if exchange.served is not None:
        reading.prompt = tuple(
            prompt_faults(reference, messages, tools, exchange.served, exchange.rendered)
        )
    if exchange.rendered is not None:
        own = prompt_faults(reference, messages, tools, exchange.rendered, exchange.rendered)
        reading.own_prompt_loses = any(True for _ in own)
    return reading


def judge(
    reference: Reference, readings: Sequence[Reading], further: Sequence[Reading] = ()
) -> Diagnosis:
    """Blame, from what was read; asks nothing."""
    server_args = f"--enable-auto-tool-choice --tool-call-parser {reference.fmt.vllm_parser}"
    seen = list(prompt_findings(reference, [*readings, *further]))
    parity = _parity(readings)
    if parity is None or parity[0]:  # the server may well use the model's own template
        seen += template_findings(reference, seen)
    refused = [each for each in readings if _no_parser(each.exchange)]
    if refused:
        said = refused[0].exchange.failures["complete"].message
        seen.append(no_parser_finding(refused[0], len(refused), len(readings), said, server_args))
    rest = [
        *parser_findings(reference, readings, server_args),
        *streaming_findings(reference, readings, server_args),
        *model_findings(reference, readings),
    ]
    upstream = [each for each in seen if each.blame in UPSTREAM]
    rest += [each for each in seen if each.blame not in UPSTREAM]
    findings = (
        *sorted(upstream, key=lambda each: -each.cases),
        *sorted(rest, key=lambda each: -each.cases),
    )
    failures = Counter(
        error.kind
        for reading in readings
        if not _no_parser(reading.exchange)
        for error in reading.exchange.failures.values()
    )
    return Diagnosis(
        verdict=findings[0].blame if findings else "nothing wrong",
        findings=findings,
        conversations=len(readings),
        wanting=sum(bool(each.exchange.case.expected) for each in readings),
        counts=_count(readings),
        groups={name: _count(group) for name, group in _groups(readings).items() if group},
        parity=parity,
        same_ids=_same_ids(readings),
        follow_ups=(sum(not each.prompt for each in further), len(further)),
        pieces=_pieces(readings),
        failures={str(kind): count for kind, count in failures.items()},
        unanswered=sum(not each.exchange.answered for each in readings),
        notes=tuple(_notes(reference, readings)),
    )


def _no_parser(exchange: Exchange) -> bool:
    error = exchange.failures.get("complete")
    return (
        error is not None
        and error.kind == "refused"
        and ("tool choice" in error.message or "tool-call-parser" in error.message)
    )


def _count(readings: Sequence[Reading]) -> dict[Way, Counts]:
    counted: dict[Way, Counts] = {}
    for way in WAYS:
        words = Counter(each.outcomes[way].word for each in readings if way in each.outcomes)
        words["harness error"] = sum(way in each.exchange.failures for each in readings)
        counted[way] = {word: words[word] for word in WORDS if words[word]}
    return counted


def _groups(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    return {
        "nested arguments": [each for each in readings if is_nested(each.exchange.case)],
        "several calls": [each for each in readings if len(each.exchange.case.expected) > 1],
        "after a result": [
            each for each in readings if any(m.role == "tool" for m in each.exchange.messages)
        ],
    }


def _parity(readings: Sequence[Reading]) -> tuple[int, int] | None:
    told = [
        each.exchange
        for each in readings
        if each.exchange.served is not None and each.exchange.rendered is not None
    ]
    return (sum(each.served == each.rendered for each in told), len(told)) if told else None


def _same_ids(readings: Sequence[Reading]) -> tuple[int, int] | None:
    pairs = [
        (each.outcomes["complete"].token_ids, each.outcomes["by ids"].token_ids)
        for each in readings
        if {"complete", "by ids"} <= set(each.outcomes)
        and each.exchange.served == each.exchange.rendered
    ]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    return (sum(one == other for one, other in known), len(known)) if known else None


def _pieces(readings: Sequence[Reading]) -> float | None:
    counts = [
        argument_pieces(each.exchange.streamed.deltas)
        for each in readings
        if each.exchange.streamed is not None and each.exchange.streamed.calls
    ]
    return float(median(counts)) if counts else None


def _notes(reference: Reference, readings: Sequence[Reading]) -> list[str]:
    """What could not be looked at, and what is worth knowing beside the verdict."""
    exchanges = [each.exchange for each in readings]
    notes = []
    if not any(each.served for each in exchanges):
        notes.append(
            "the server does not tell its prompts (no return_token_ids, no /tokenize): prompt and"
            " template are judged by the model's own template alone"
        )
    if not any(each.complete and each.complete.token_ids is not None for each in exchanges):
        notes.append(
            "the server gives no ids of its answers: calls are read from its text, where a spelled"
            " delimiter looks like the real one"
        )
    if not any(each.by_ids for each in exchanges):
        notes.append("the server takes no prompts as token ids: the model is judged by its chat")
    if reference.facts.lacking:
        lacking = ", ".join(each.text for each in reference.facts.lacking)
        notes.append(f"{lacking}: several ordinary tokens here, so no id marks a call")
    failed = [check.name for check in reference.checks if not check.ok]
    if failed:
        notes.append(
            f"the model's template fails {len(failed)} checks of its audit ({', '.join(failed[:4])}"
            f"{', ...' if len(failed) > 4 else ''}): smollora inspect {reference.source}"
        )
    if refused := [each for each in exchanges if each.refused]:
        notes.append(
            f"the model's template refuses {len(refused)} conversations: {refused[0].refused[:120]}"
        )
    if readings and all(each.own_prompt_loses for each in readings):
        notes.append("the model is not judged: its prompts lose what it would need to call")
    return notes
