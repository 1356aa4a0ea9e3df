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
from typing import Any, Literal

from smollora.doctor.answers import Outcome, read_chat, read_completion
from smollora.doctor.asking import Exchange, Way, ask_all, follow_up
from smollora.doctor.findings import Blame, Finding, Reading
from smollora.doctor.of_delivery import no_parser_finding, parser_findings, streaming_findings
from smollora.doctor.of_model import model_findings
from smollora.doctor.of_prompts import prompt_findings, template_findings
from smollora.doctor.prompts import prompt_faults
from smollora.doctor.reference import Reference
from smollora.doctor.tallies import (
    Counts,
    count_words,
    equal_answers,
    equal_prompts,
    groups,
    median_pieces,
    notes,
)
from smollora.endpoint import Endpoint, EndpointError
from smollora.types import EvalCase

Verdict = Literal[Blame, "nothing wrong"]
UPSTREAM: tuple[Blame, ...] = ("prompt", "template")
FOLLOW_UPS = 8
MOST_UNANSWERED = 0.5
"""Above this share of conversations without any answer there is no verdict."""


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
            if exchange.failures:
                break  # a server that hangs now would hang each time
    return made


def read(reference: Reference, exchange: Exchange) -> Reading:
    """An exchange with its outcomes and the faults of its prompt."""
    outcomes: dict[Way, Outcome] = {}
    if exchange.complete is not None:
        outcomes["complete"] = read_chat(reference, exchange.case, exchange.complete)
    if exchange.streamed is not None:
        outcomes["streamed"] = read_chat(reference, exchange.case, exchange.streamed)
    if exchange.by_ids is not None:
        outcomes["by ids"] = read_completion(reference, exchange.case, exchange.by_ids)
    reading = Reading(exchange, outcomes)
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
    parity = equal_prompts(readings)
    compared = equal_prompts([*readings, *further])
    if compared is None or compared[0] == compared[1]:  # the server's template is the model's own
        seen += template_findings(reference, seen)
    refused = [each for each in readings if each.exchange.refuses_tools]
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
        for reading in (*readings, *further)
        if not reading.exchange.refuses_tools
        for error in reading.exchange.failures.values()
    )
    return Diagnosis(
        verdict=findings[0].blame if findings else "nothing wrong",
        findings=findings,
        conversations=len(readings),
        wanting=sum(bool(each.exchange.case.expected) for each in readings),
        counts=count_words(readings),
        groups={name: count_words(group) for name, group in groups(readings).items() if group},
        parity=parity,
        same_ids=equal_answers(readings),
        follow_ups=(sum(not each.prompt for each in further), len(further)),
        pieces=median_pieces(readings),
        failures={str(kind): count for kind, count in failures.items()},
        unanswered=sum(not each.exchange.answered for each in readings),
        notes=tuple(notes(reference, readings)),
    )
