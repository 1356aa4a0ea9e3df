"""Which cure is the cheapest that is enough, and why: from rates alone.

In: the lines of cures.json, the gate. Out: a `Decision`. A cure is enough if all of the gate's
rates hold, false calls among them: one that calls for everything is none. No one is sent to train
while a cheaper cure is enough, or has not been asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollora.cures import CURES, TRAINED
from smollora.errors import ConfigError, DataError
from smollora.probe import NEAR, NO_TOOLS, UNFITTING, judge, reasons
from smollora.probe.locate import CHANCE, mcnemar
from smollora.types import EvalCase

Lines = Mapping[str, Mapping[str, Any]]
Records = Sequence[Mapping[str, Any]]

OF_CATEGORIES = {
    "false_call_no_tools": NO_TOOLS,
    "false_call_irrelevant": UNFITTING,
    "false_call_near": NEAR,
}
"""Gates that only cases of some categories can hold."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict in a word, with its reason and what to type."""

    verdict: str
    """nothing to cure, template, examples, grammar, required, training, training and grammar,
    training is left, nothing is enough, or unfinished.
    """
    enough: str | None
    """The cheapest cure that is enough; None if none is."""
    says: str
    fix: str


def gate_for(
    cases: Sequence[EvalCase], gate: Mapping[str, float], *, given: bool
) -> tuple[dict[str, float], list[str]]:
    """(the gate as these cases can be held to it, notes).

    Of the default gate, what no case asks for is left out and said; where it is all false calls by
    category, false calls over all stand for them.

    Args:
        given: whether a person named these gates; then each of them must be held to something.

    Raises:
        ConfigError: a gate that was named and that no case can be held to; or no gate at all.
        DataError: no case wants a call.
    """
    if not any(case.expected for case in cases):
        raise DataError(
            "no case wants a call, so nothing says whether the model makes one",
            "add cases with `expected` calls",
        )
    if not gate:
        raise ConfigError(
            "without a gate no cure is enough or not", "leave --gate out for the usual one"
        )
    quiet = {case.category for case in cases if not case.expected}
    absent = [name for name in gate if not _has_cases(name, quiet)]
    if absent and given:
        raise ConfigError(
            f"no case can be held to the gate {absent[0]}",
            "add cases of that kind, or name other gates",
        )
    held = {name: limit for name, limit in gate.items() if name not in absent}
    if not absent:
        return held, []
    if not quiet:
        return held, ["no case wants words, so nothing here says what calls for everything"]
    words = f"no cases for the gate {', '.join(absent)}"
    if not any(name.startswith("false_call") for name in held):
        held["false_call"] = max(gate[name] for name in absent)
        words += ": false_call over all stands for it"
    return held, [words]


def _has_cases(name: str, quiet: set[str]) -> bool:
    if name in OF_CATEGORIES:
        return bool(quiet & set(OF_CATEGORIES[name]))
    return bool(quiet) if name.startswith("false_call") else True


def judge_line(line: Mapping[str, Any], gate: Mapping[str, float]) -> dict[str, Any]:
    """gate, reasons and enough of a line."""
    if line["unavailable"]:
        return {"gate": {}, "reasons": [line["unavailable"]], "enough": False}
    verdicts = judge(line["rates"], gate)
    short = reasons(verdicts)
    enough = not short and not line["refused"]
    if not line["rates"]["emission"]["k"] and "emission" in gate:
        # calls that were never made have no rates; that they were not made says it all
        short = [reason for reason in short if "no cases" not in reason]
    if line["refused"]:
        short.append(f"the template refuses {line['refused']} of the conversations")
    return {"gate": verdicts, "reasons": short, "enough": enough}


def decide(lines: Lines, records: Records, model: str) -> Decision:
    """The verdict over judged lines.

    Args:
        lines: by cure, each with the keys of `judge_line`.
        records: of all lines; they say whether the template was at fault as well.
        model: what the person named, for the commands.
    """
    for cure in CURES:
        if cure not in lines:
            if cure in ("trained", "required"):
                continue
            if cure in TRAINED and "trained" not in lines:
                continue
            return Decision(
                "unfinished",
                None,
                f"{CURES[cure]} has not been asked, and nothing cheaper is enough",
                f"the same command with --cure {cure} and the same --out",
            )
        if lines[cure]["enough"]:
            return _enough(cure, lines, records, model)
    also = _template_too(records)
    short = _short(lines, list(lines))
    if "trained" not in lines:
        return Decision(
            "training is left",
            None,
            f"no cure without training is enough{also}. {short}".rstrip(" ."),
            "train it (smollora run), then ask again with --adapter",
        )
    return Decision(
        "nothing is enough",
        None,
        f"no cure is enough, the training neither{also}. {short}".rstrip(" ."),
        "smollora probe with --out shows every answer of the trained model; train on more of what"
        " fails",
    )


def _enough(cure: str, lines: Lines, records: Records, model: str) -> Decision:
    rates = lines[cure]["rates"]
    found = f"{_share(rates['emission'])} called"
    cheaper = [name for name in lines if list(CURES).index(name) < list(CURES).index(cure)]
    before = _short(lines, cheaper)
    more = _more_tokens(lines, cure)
    words = {
        "stock": (
            "nothing to cure",
            f"the model calls as it should under the template it was published with: {found}",
            "use it as it is; where it is served and does not call: smollora doctor --endpoint",
        ),
        "repaired": (
            "template",
            f"the template is at fault, not the model: {found} under the repaired one. Training"
            f" would teach what it can do already. {before}",
            f"smollora repair {model} --out FOLDER, and serve that template",
        ),
        "examples": (
            "examples",
            f"two worked examples in the prompt are enough: {found}, for {more} more prompt tokens"
            f" a request. {before}",
            f"smollora repair {model} --out FOLDER, and two calls of your own tools as earlier"
            " turns of every conversation that offers tools",
        ),
        "grammar": (
            "grammar",
            "the model decides rightly and writes calls badly; a grammar that holds calls to the"
            f" tools' schemas is enough: {found}. {before}",
            f"smollora repair {model} --out FOLDER, and structured outputs at the server (vLLM:"
            " a structural tag that starts at the opening token)",
        ),
        "required": (
            "required",
            f"a call that is required is enough ({found}), for no case here wants words beside"
            f" tools. {before}",
            "structured outputs with a required call, where every request wants one",
        ),
        "trained": (
            "training",
            f"only the trained model is enough: {found}. {before}",
            "serve the trained model: smollora merge, then smollora serve",
        ),
        "trained_grammar": (
            "training and grammar",
            "the trained model decides rightly, and a grammar mends how it writes calls; together"
            f" they are enough: {found}. {before}",
            "serve the trained model (smollora merge, smollora serve), and ask it with structured"
            " outputs (vLLM: a structural tag that starts at the opening token)",
        ),
    }
    verdict, says, fix = words[cure]
    return Decision(verdict, cure, says.rstrip(" ."), fix)


def _short(lines: Lines, cures: Sequence[str]) -> str:
    """The first reason of each of these lines; the table has them all."""
    said = []
    for cure in cures:
        line = lines[cure]
        rates = line.get("rates")
        worst = line["reasons"][0] if line["reasons"] else ""
        if rates and not line["gate"].get("emission", {"ok": True})["ok"]:
            worst = f"{_share(rates['emission'])} called"
        said.append(f"{CURES[cure]}: {worst}")
    return "; ".join(said)


def _more_tokens(lines: Lines, cure: str) -> str:
    def each(name: str) -> float:
        line = lines.get(name, {})
        return line["prompt_tokens"] / max(line["prompts"], 1) if "prompts" in line else 0.0

    return f"{each(cure) - each('repaired'):.0f}"


def _template_too(records: Records) -> str:
    """Words where the repaired template alone made a difference beyond chance."""
    emitted: dict[str, dict[str, bool]] = {"stock": {}, "repaired": {}}
    for record in records:
        if record["model"] in emitted and record["expected"] and record["flags"]:
            emitted[record["model"]][record["case_id"]] = bool(record["flags"].get("emitted"))
    stock, repaired = emitted["stock"], emitted["repaired"]
    both = [case for case in repaired if case in stock]
    gained = sum(repaired[case] and not stock[case] for case in both)
    lost = sum(stock[case] and not repaired[case] for case in both)
    if gained <= lost or mcnemar(lost, gained) >= CHANCE:
        return ""
    return f", though the template is at fault as well ({gained} calls more under the repaired one)"


def _share(rate: Mapping[str, Any]) -> str:
    return f"{rate['k']} of {rate['n']}"
