"""Emission on raw ids: the same questions to the base and to the trained model, before and after.

In: cases, a `Generator`, a `Renderer`. Out: records (ids beside text, every attempt), rates with
Wilson intervals, and the gate's verdict. The base gets its best prompt (the repaired template); its
stock prompt is a second line, so that the "before" is no straw man.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollora.evaluate.match import Rate, score_case, wilson
from smollora.formats import ToolFormat
from smollora.generate import Generator
from smollora.render import Renderer
from smollora.types import CaseScore, EvalCase, Generation

NO_TOOLS = ("no_tools",)
UNFITTING = ("irrelevant", "needless")
"""Categories with tools on offer that have nothing to do with the request."""
NEAR = ("near_miss", "near_absent")
"""Tools of the same domain that cannot do it."""
SYSTEM_SHOWN = 60
"""Letters of a system text by which tables name it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One case, what came back, and how it did."""

    case: EvalCase
    answer: Generation
    score: CaseScore
    record: dict[str, Any]

    @property
    def failed(self) -> bool:
        """No answer came, for a reason that is not the model's (a server that broke off): the case
        counts in no rate.
        """
        return self.answer.finish == "error"


def ask(
    model_name: str,
    cases: Sequence[EvalCase],
    generator: Generator,
    renderer: Renderer,
    fmt: ToolFormat,
    *,
    max_new_tokens: int,
    on_done: Callable[[int], None] | None = None,
) -> list[Asked]:
    """Ask every case under `renderer`'s template.

    Args:
        model_name: "base", "base_stock", "adapter", "merged" or "served": what the records say.
    """
    prompts = [renderer.prompt_ids(case.messages, case.tools) for case in cases]
    answers = generator.generate(prompts, max_new_tokens=max_new_tokens, on_done=on_done)
    asked = []
    for case, answer in zip(cases, answers, strict=True):
        attempts = fmt.parse(answer.token_ids, renderer.tokenizer, case.tools)
        score = score_case(case, answer, attempts, renderer.facts)
        asked.append(Asked(case, answer, score, _record(model_name, case, answer, score, renderer)))
    return asked


def _record(
    model_name: str, case: EvalCase, answer: Generation, score: CaseScore, renderer: Renderer
) -> dict[str, Any]:
    tokenizer = renderer.tokenizer
    request = next((m.content for m in reversed(case.messages) if m.role == "user"), "")
    failed = answer.finish == "error"
    return {
        "model": model_name,
        "case_id": case.id,
        "category": case.category,
        "language": case.language,
        "system": system_of(case),
        "request": request,
        "tools": [tool.name for tool in case.tools],
        "expected": [{"name": c.name, "arguments": dict(c.arguments)} for c in case.expected],
        "token_ids": list(answer.token_ids),
        "tokens": [tokenizer.decode([token]) for token in answer.token_ids],
        "text": tokenizer.decode(list(answer.token_ids)),
        "finish": answer.finish,
        "opener_logprob": answer.opener_logprob,
        "verdict": "harness_error" if failed else score.verdict,
        "detail": score.detail,
        "flags": {} if failed else dict(score.flags),
    }


def system_of(case: EvalCase) -> str:
    """The system text of a case, as far as a table shows it; empty where it has none."""
    text = case.messages[0].content if case.messages and case.messages[0].role == "system" else ""
    line = " ".join(text.split())
    return line if len(line) <= SYSTEM_SHOWN else line[: SYSTEM_SHOWN - 3] + "..."


def rates(asked: Sequence[Asked]) -> dict[str, Rate]:
    """The rates of DESIGN's file contract over some answers.

    emission and spelled_out: of cases that want a call. valid_json, schema_valid, stops_after_call,
    right_tool, right_call: of those that emitted. false_call: of cases that want none. What was
    not answered counts nowhere.
    """
    calling = [item for item in asked if item.case.expected and not item.failed]
    quiet = [item for item in asked if not item.case.expected and not item.failed]
    emitted = [item for item in calling if item.score.flags["emitted"]]

    def share(flag: str, items: Sequence[Asked]) -> Rate:
        return wilson(sum(bool(item.score.flags.get(flag)) for item in items), len(items))

    return {
        "emission": share("emitted", calling),
        "valid_json": share("valid_json", emitted),
        "schema_valid": share("schema_valid", emitted),
        "right_tool": share("right_tool", emitted),
        "right_call": share("right_call", emitted),
        "stops_after_call": share("stops_after_call", emitted),
        "false_call": share("emitted", quiet),
        "spelled_out": share("spelled_out", calling),
    }


def summarise(asked: Sequence[Asked]) -> dict[str, Rate]:
    """`rates`, and false calls apart for no tools, tools that do not fit, and tools that come
    near.
    """

    def of(categories: Sequence[str]) -> Rate:
        quiet = [
            i
            for i in asked
            if i.case.category in categories and not i.case.expected and not i.failed
        ]
        return wilson(sum(bool(i.score.flags["emitted"]) for i in quiet), len(quiet))

    return {
        **rates(asked),
        "false_call_no_tools": of(NO_TOOLS),
        "false_call_irrelevant": of(UNFITTING),
        "false_call_near": of(NEAR),
    }


def by_category(asked: Sequence[Asked]) -> dict[str, dict[str, Rate]]:
    """`rates` of each category, in alphabetical order."""
    return _by(asked, lambda case: case.category)


def by_language(asked: Sequence[Asked]) -> dict[str, dict[str, Rate]]:
    """`rates` of each language that the cases name."""
    return _by([item for item in asked if item.case.language], lambda case: case.language)


def by_system(asked: Sequence[Asked]) -> dict[str, dict[str, Rate]]:
    """`rates` under each system text; "" for cases without one."""
    return _by(asked, system_of)


def _by(asked: Sequence[Asked], name_of: Callable[[EvalCase], str]) -> dict[str, dict[str, Rate]]:
    names = sorted({name_of(item.case) for item in asked})
    return {name: rates([i for i in asked if name_of(i.case) == name]) for name in names}


def judge(found: Mapping[str, Rate], gate: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Each gate with its limit, what was found, and whether it holds; a rate over no cases never
    passes.

    False calls and spelled-out calls are "at most", everything else "at least".
    """
    verdicts: dict[str, dict[str, Any]] = {}
    for name, limit in gate.items():
        rate = found.get(name, {}).get("rate")
        at_most = name.startswith(("false_call", "spelled_out"))
        ok = rate is not None and (rate <= limit if at_most else rate >= limit)
        verdicts[name] = {"at_most" if at_most else "at_least": limit, "value": rate, "ok": ok}
    return verdicts


def reasons(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each gate that does not hold."""
    lines = []
    for name, verdict in verdicts.items():
        if verdict["ok"]:
            continue
        word = "at most" if "at_most" in verdict else "at least"
        limit = verdict.get("at_most", verdict.get("at_least"))
        found = "no cases" if verdict["value"] is None else f"{verdict['value']:.1%}"
        lines.append(f"{name} {found}, wanted {word} {limit:.0%}")
    return lines
