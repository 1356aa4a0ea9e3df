"""Scores one answer: what was attempted, is it valid, is it the right tool. Pure, strict, nothing
repaired.

In: an `EvalCase`, a `Generation`, the parsed attempts. Out: a `CaseScore` with a verdict and the
flags that rates are made of. A call counts only by its delimiter ids; one spelled with ordinary
tokens is "spelled_out", whatever a server's parser would make of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smollora.data.validation import schema_problem
from smollora.tokens import TokenFacts
from smollora.types import CaseScore, EvalCase, Generation, ParsedCall, ToolCall

Rate = dict[str, float | int | None]


def score_case(
    case: EvalCase, answer: Generation, attempts: Sequence[ParsedCall], facts: TokenFacts
) -> CaseScore:
    """Verdict and flags of one answer.

    Flags on cases that want calls: emitted (the opening id came), valid_json, schema_valid,
    right_tool (names, as a multiset), right_call (names and arguments), stops_after_call. On cases
    that want none: false_call. On all: spelled_out, opens_first.
    """
    real = [attempt for attempt in attempts if attempt.status != "spelled_out"]
    spelled = any(attempt.status == "spelled_out" for attempt in attempts)
    flags: dict[str, bool] = {
        "spelled_out": spelled,
        "emitted": bool(real),
        "opens_first": bool(answer.token_ids) and answer.token_ids[0] == facts.open.id,
    }
    if real:
        calls = [attempt.call for attempt in real if attempt.call is not None]
        tools = {tool.name: tool for tool in case.tools}
        flags["valid_json"] = all(attempt.status == "ok" for attempt in real)
        problems = [
            schema_problem(call, tools[call.name]) if call.name in tools else f"no tool {call.name}"
            for call in calls
        ]
        flags["schema_valid"] = flags["valid_json"] and not any(problems)
        flags["stops_after_call"] = _stops_after_call(answer, real)
        if case.expected:
            flags["right_tool"] = flags["valid_json"] and Counter(c.name for c in calls) == Counter(
                c.name for c in case.expected
            )
            flags["right_call"] = flags["right_tool"] and _same_calls(calls, case.expected)
    verdict, detail = _verdict(case, flags, real)
    return CaseScore(case.id, verdict, detail, flags)


def _stops_after_call(answer: Generation, real: Sequence[ParsedCall]) -> bool:
    """True if nothing but the stop token follows the last call."""
    last = max((attempt.span[1] for attempt in real if attempt.span), default=0)
    return answer.finish == "stop" and len(answer.token_ids) == last + 1


def _same_calls(calls: Sequence[ToolCall], expected: Sequence[ToolCall]) -> bool:
    rest = [canonical(call) for call in expected]
    for call in calls:
        key = canonical(call)
        if key not in rest:
            return False
        rest.remove(key)
    return not rest


def canonical(call: ToolCall) -> str:
    """A call as text that is equal for equal calls; letter case and outer spaces of strings do not
    count (people type carelessly).
    """
    return json.dumps([call.name, _fold(call.arguments)], sort_keys=True, ensure_ascii=False)


def _fold(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _fold(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_fold(item) for item in value]
    return str(value)


def _verdict(
    case: EvalCase, flags: Mapping[str, bool], real: Sequence[ParsedCall]
) -> tuple[str, str]:
    if not case.expected:
        if flags["emitted"]:
            return "false_call", real[0].raw[:200]
        return ("spelled_out", "") if flags["spelled_out"] else ("right", "")
    if not flags["emitted"]:
        return ("spelled_out", "") if flags["spelled_out"] else ("no_call", "")
    if not flags["valid_json"]:
        bad = next(attempt for attempt in real if attempt.status != "ok")
        return "malformed", bad.status
    if not flags["right_tool"]:
        return "wrong_tool", ", ".join(a.call.name for a in real if a.call)
    if not flags["schema_valid"]:
        return "breaks_schema", ""
    return ("right", "") if flags["right_call"] else ("other_arguments", "")


def wilson(k: int, n: int, z: float = 1.959964) -> Rate:
    """A rate with its Wilson 95% interval; all None over no cases.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if n == 0:
        return {"k": 0, "n": 0, "rate": None, "low": None, "high": None}
    share = k / n
    centre = share + z * z / (2 * n)
    spread = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    scale = 1 + z * z / n
    return {
        "k": k,
        "n": n,
        "rate": round(share, 4),
        "low": round(max(0.0, (centre - spread) / scale), 4),
        "high": round(min(1.0, (centre + spread) / scale), 4),
    }
