"""What is kept of each answer, how it is judged, and the rates over it: all of it from plain
values, so that records are judged again without the model.

In: a `Question`, an answer's token ids and attempts. Out: a record (a line of records.jsonl), and
from any number of them the rates of `eval/summary.json`. The surprise: there are two verdicts. Ours
is strict and on ids; `official` is what bfcl-eval would have said of the calls that were read. They
part where a call is cut or is no JSON (BFCL counts it as no call, also where none was wanted).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollora.errors import DataError
from smollora.evaluate.bfcl import Truth
from smollora.evaluate.bfcl_match import RIGHT, Verdict, judge_calls, wrong
from smollora.evaluate.match import Rate, score_case, wilson
from smollora.evaluate.suites import Question
from smollora.tokens import TokenFacts
from smollora.types import EvalCase, Generation, Message, ParsedCall, ToolCall, ToolSpec

Record = dict[str, Any]
Rates = dict[str, Rate | int]

NO_ANSWER = "no_answer"
"""The verdict on a prompt that was never answered: no rate counts it."""


# ── one answer ────────────────────────────────────────────────────────────────────────────────


def judge(
    question: Question, answer: Generation, attempts: Sequence[ParsedCall], facts: TokenFacts
) -> dict[str, Any]:
    """verdict, detail, flags, and for BFCL the official verdict, of one answer."""
    score = score_case(question.case, answer, attempts, facts)
    flags, verdict, detail = dict(score.flags), score.verdict, score.detail
    real = [attempt for attempt in attempts if attempt.status != "spelled_out"]
    if question.wants == "a_call":
        verdict, detail = _some_call(flags, real)
    official: Verdict | None = None
    if question.truth is not None:
        official = judge_as_bfcl(question, real)
        if question.wants == "calls" and flags["emitted"]:
            flags["right_call"] = official.valid
            if official.valid:
                verdict, detail = "right", ""
            elif verdict in ("right", "other_arguments"):
                verdict, detail = "other_arguments", official.detail
    return {
        "verdict": verdict,
        "detail": detail,
        "flags": flags,
        "official": official
        and {"valid": official.valid, "reason": official.reason, "detail": official.detail},
    }


def _some_call(flags: Mapping[str, bool], real: Sequence[ParsedCall]) -> tuple[str, str]:
    if not flags["emitted"]:
        return ("spelled_out" if flags["spelled_out"] else "no_call"), ""
    if not flags["valid_json"]:
        return "malformed", next(a.status for a in real if a.status != "ok")
    return "right", ""


def judge_as_bfcl(question: Question, real: Sequence[ParsedCall]) -> Verdict:
    """What bfcl-eval says of the calls that were read (`_evaluate_single_ast_entry` and
    `_evaluate_single_relevance_entry` of its eval_runner.py): one bad attempt and nothing was read.
    """
    truth = question.truth
    assert truth is not None
    readable = all(attempt.status == "ok" for attempt in real)
    calls = [attempt.call for attempt in real if attempt.call] if readable else []
    if question.wants == "nothing":
        return wrong("irrelevance_error:decoder_success") if calls else RIGHT
    if question.wants == "a_call":
        return RIGHT if calls else wrong("relevance_error:decoder_failed")
    if not readable:
        return wrong("ast_decoder:decoder_failed")
    return judge_calls(truth.category, truth.functions, truth.answers, calls)


def record_of(
    model_name: str,
    question: Question,
    answer: Generation,
    attempts: Sequence[ParsedCall],
    *,
    facts: TokenFacts,
    tokenizer: Any,
    failure: str = "",
) -> Record:
    """A line of records.jsonl."""
    case = question.case
    judged: dict[str, Any] = (
        {"verdict": NO_ANSWER, "detail": failure, "flags": {}, "official": None}
        if answer.finish == "error"
        else judge(question, answer, attempts, facts)
    )
    return {
        "model": model_name,
        "suite": question.suite,
        "category": case.category,
        "case_id": case.id,
        "request": next((m.content for m in reversed(case.messages) if m.role == "user"), ""),
        "token_ids": list(answer.token_ids),
        "text": tokenizer.decode(list(answer.token_ids)) if answer.token_ids else "",
        "finish": answer.finish,
        "opener_logprob": answer.opener_logprob,
        "attempts": [_attempt_row(attempt) for attempt in attempts],
        **judged,
    }


def judge_again(record: Record, question: Question, facts: TokenFacts) -> Record:
    """The record with its verdict and flags worked out anew from its ids and attempts."""
    if record["verdict"] == NO_ANSWER:
        return record
    answer = Generation(tuple(record["token_ids"]), record["finish"], record.get("opener_logprob"))
    return {**record, **judge(question, answer, read_attempts(record), facts)}


def _attempt_row(attempt: ParsedCall) -> dict[str, Any]:
    call = attempt.call
    return {
        "raw": attempt.raw,
        "status": attempt.status,
        "call": call and {"name": call.name, "arguments": dict(call.arguments)},
        "span": attempt.span and list(attempt.span),
    }


def read_attempts(record: Record) -> list[ParsedCall]:
    """The attempts of a record."""
    return [
        ParsedCall(
            row["raw"],
            row["status"],
            row["call"] and ToolCall(row["call"]["name"], row["call"]["arguments"]),
            row["span"] and (row["span"][0], row["span"][1]),
        )
        for row in record["attempts"]
    ]


# ── one question ──────────────────────────────────────────────────────────────────────────────


def question_row(question: Question) -> dict[str, Any]:
    """A line of cases.jsonl: all that judging needs."""
    case, truth = question.case, question.truth
    return {
        "suite": question.suite,
        "id": case.id,
        "category": case.category,
        "wants": question.wants,
        "messages": [{"role": m.role, "content": m.content} for m in case.messages],
        "tools": [tool.as_openai() for tool in case.tools],
        "expected": [{"name": c.name, "arguments": dict(c.arguments)} for c in case.expected],
        "bfcl": truth and {"functions": list(truth.functions), "answers": truth.answers},
    }


def read_question(row: Mapping[str, Any]) -> Question:
    """The question of a line of cases.jsonl."""
    messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
    functions = [tool["function"] for tool in row["tools"]]
    case = EvalCase(
        row["id"],
        row["category"],
        messages,
        tuple(ToolSpec(f["name"], f["description"], f["parameters"]) for f in functions),
        tuple(ToolCall(c["name"], c["arguments"]) for c in row["expected"]),
    )
    known = row["bfcl"]
    truth = known and Truth(
        case.id, case.category, messages, tuple(known["functions"]), known["answers"]
    )
    return Question(row["suite"], case, row["wants"], truth)


# ── rates ─────────────────────────────────────────────────────────────────────────────────────


def rates(records: Sequence[Record], wants: Mapping[str, str]) -> Rates:
    """Rates over some records of one model, and `harness_errors`, a count that is in none of them.

    emission, spelled_out: of questions that want a call. valid_json, schema_valid,
    stops_after_call: of the answers to these that emitted; right_tool and right_call of those where
    it is known which. false_call: of questions that want none. bfcl: what BFCL counts as right, of
    all.

    Args:
        wants: what each question wants, by case id.
    """
    answered = [record for record in records if record["verdict"] != NO_ANSWER]
    calling = [r for r in answered if wants[r["case_id"]] != "nothing"]
    quiet = [r for r in answered if wants[r["case_id"]] == "nothing"]
    emitted = [r for r in calling if r["flags"]["emitted"]]
    known = [r for r in emitted if wants[r["case_id"]] == "calls"]

    def share(flag: str, among: Sequence[Record]) -> Rate:
        return wilson(sum(bool(r["flags"].get(flag)) for r in among), len(among))

    found: Rates = {
        "emission": share("emitted", calling),
        "valid_json": share("valid_json", emitted),
        "schema_valid": share("schema_valid", emitted),
        "right_tool": share("right_tool", known),
        "right_call": share("right_call", known),
        "stops_after_call": share("stops_after_call", emitted),
        "false_call": share("emitted", quiet),
        "spelled_out": share("spelled_out", calling),
    }
    judged = [r for r in answered if r["official"] is not None]
    if judged:
        found["bfcl"] = wilson(sum(r["official"]["valid"] for r in judged), len(judged))
    found["harness_errors"] = len(records) - len(answered)
    return found


def by_key(records: Sequence[Record], key: str) -> dict[str, list[Record]]:
    """Records by the value of `key`, in the order of their first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def pair_up(
    records: Sequence[Record], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[Record, Mapping[str, Any]]]:
    """Each record with the row of cases.jsonl that it answers.

    Raises:
        DataError: a record without its case.
    """
    cases = {(row["suite"], row["id"]): row for row in rows}
    pairs = []
    for number, record in enumerate(records, 1):
        row = cases.get((str(record.get("suite")), str(record.get("case_id"))))
        if row is None:
            raise DataError(
                f"record {number} answers {record.get('case_id')!r}, which is not in cases.jsonl",
                "keep records.jsonl, cases.jsonl and summary.json of an evaluation together",
            )
        pairs.append((record, row))
    return pairs
