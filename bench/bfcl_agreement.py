"""Holds our reading of BFCL's rules against its own checker, over all of its data.

In: the wheel `bfcl-eval` (its data and its `ast_checker`). Out: a table in docs/eval.md. For each
case: right answers (every alternative of the possible answers), then answers broken in one place
after another. Both checkers judge each; what counts is the verdict, and beside it the reason.

    python bench/bfcl_agreement.py [--check]
"""

import importlib
import random
import sys
import types
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollora.evaluate.bfcl import SCORED_CATEGORIES, read_truths
from smollora.evaluate.bfcl_match import judge_calls, language_of
from smollora.evaluate.suites import BFCL_SHA256, BFCL_WHEEL, bfcl_folder
from smollora.models import cache_folder, fetch_wheel
from smollora.types import ToolCall

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "eval.md"
BEGIN, END = "<!-- table of agreement: bench/bfcl_agreement.py -->", "<!-- end of table -->"

Calls = list[tuple[str, dict[str, Any]]]


# ── the official checker ──────────────────────────────────────────────────────────────────────


def load_official() -> Any:
    """(checker, languages): bfcl-eval's `ast_checker`, imported from its wheel.

    One module is replaced: `model_config` imports the client of every vendor, and the checker asks
    it one thing only, whether a model's interface turns dots of names into underscores. Ours does
    not.
    """
    folder = cache_folder() / "bfcl" / f"{BFCL_SHA256[:12]}-code"
    if not (folder / "bfcl_eval" / "constants").is_dir():
        with zipfile.ZipFile(fetch_wheel(BFCL_WHEEL, BFCL_SHA256)) as archive:
            names = [name for name in archive.namelist() if name.endswith(".py")]
            archive.extractall(folder, names)
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = {"model": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = stub
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    enums = importlib.import_module("bfcl_eval.constants.enums")
    return checker.ast_checker, enums.Language


# ── right answers ─────────────────────────────────────────────────────────────────────────────


def right_answers(
    answers: list[dict[str, dict[str, list[Any]]]], declared: dict[str, Any], language: str
) -> Iterator[tuple[str, Calls]]:
    """Every alternative once, and all that may be left out left out."""
    given = (each for call in answers for arguments in call.values() for each in arguments.values())
    most = max((len(alternatives) for alternatives in given), default=1)
    for turn in range(most):
        yield (
            f"alternative {turn + 1}",
            [
                (name, _arguments(arguments, declared.get(name, {}), language, turn))
                for call in answers
                for name, arguments in call.items()
            ],
        )
    least = [
        (
            name,
            _arguments(
                {k: v for k, v in arguments.items() if "" not in v},
                declared.get(name, {}),
                language,
                0,
            ),
        )
        for call in answers
        for name, arguments in call.items()
    ]
    yield "optional arguments left out", least


def _arguments(
    arguments: dict[str, list[Any]], declared: dict[str, Any], language: str, turn: int
) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, alternatives in arguments.items():
        real = [each for each in alternatives if each != ""]
        if not real:
            continue
        value = _plain(real[min(turn, len(real) - 1)], turn)
        kind = declared.get(name, {})
        chosen[name] = value if language == "python" else literal(value, kind, language, turn)
    return chosen


def _plain(value: Any, turn: int) -> Any:
    """A member's alternatives are lists as well."""
    if isinstance(value, dict):
        return {
            key: each[min(turn, len(each) - 1)] if isinstance(each, list) and each else each
            for key, each in value.items()
            if not (isinstance(each, list) and each and each[min(turn, len(each) - 1)] == "")
        }
    if isinstance(value, list):
        return [_plain(each, turn) if isinstance(each, dict) else each for each in value]
    return value


def literal(value: Any, kind: dict[str, Any], language: str, turn: int = 0) -> str:
    """A value as Java or JavaScript source."""
    declared, inner = kind.get("type", ""), kind.get("items", {}).get("type", "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        ends = {"long": "L", "Bigint": "n", "float": "f" if language == "java" else ""}
        return f"{value}{ends.get(declared, '')}"
    if isinstance(value, str):
        return f'"{value}"' if declared == "String" and language != "java" else value
    if language == "java":
        if isinstance(value, dict):
            puts = " ".join(f'put("{key}", {_member(each)});' for key, each in value.items())
            return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
        parts = [_element(each, inner, language) for each in value]
        if declared == "Array":
            return f"new {inner}[]{{{', '.join(parts)}}}"
        if turn % 2:
            return f"new ArrayList<T>() {{{{ {' '.join(f'add({part});' for part in parts)} }}}}"
        return f"new ArrayList<T>(Arrays.asList({', '.join(parts)}))"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_member(each)}' for key, each in value.items())}}}"
    parts = ", ".join(_element(each, inner, language) for each in value)
    return f"new Array({parts})" if turn % 2 else f"[{parts}]"


def _element(value: Any, inner: str, language: str) -> str:
    if isinstance(value, str):
        quoted = inner in ("String", "char") and (language != "java")
        return f'"{value}"' if quoted else value
    return literal(value, {"type": inner}, language)


def _member(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_member(each) for each in value)}]"
    return f'"{value}"' if isinstance(value, str) else literal(value, {}, "javascript")


# ── broken answers ────────────────────────────────────────────────────────────────────────────


def broken_answers(calls: Calls, functions: list[dict[str, Any]]) -> Iterator[tuple[str, Calls]]:
    """One thing changed at a time; some of the changes are allowed, which is for the checkers to
    say.
    """
    yield "no call", []
    yield "a call too many", [*calls, calls[-1]]
    yield "a call too few", calls[:-1]
    yield "order reversed", calls[::-1]
    yield "the first call for all", [calls[0]] * len(calls)
    for place, (name, arguments) in enumerate(calls):

        def put(name: str, arguments: dict[str, Any], place: int = place) -> Calls:
            return [*calls[:place], (name, arguments), *calls[place + 1 :]]

        yield "name misspelled", put(name + "s", arguments)
        yield "name in capitals", put(name.upper(), arguments)
        yield "dots of the name underscored", put(name.replace(".", "_"), arguments)
        for function in functions:
            if function["name"] != name:
                yield "another function", put(function["name"], arguments)
        yield "no arguments", put(name, {})
        yield "an argument too many", put(name, {**arguments, "unheard_of": 1})
        for function in functions:
            for other in function["parameters"]["properties"]:
                if function["name"] == name and other not in arguments:
                    yield "an argument that nobody asked for", put(name, {**arguments, other: "x"})
        yield "arguments in another order", put(name, dict(reversed(arguments.items())))
        for key, value in arguments.items():
            rest = {other: each for other, each in arguments.items() if other != key}
            yield "an argument left out", put(name, rest)
            yield "an argument's name in capitals", put(name, {**rest, key.upper(): value})
            for what, changed in broken_values(value):
                yield what, put(name, {**arguments, key: changed})


def broken_twice(
    calls: Calls, functions: list[dict[str, Any]], dice: random.Random
) -> Iterator[tuple[str, Calls]]:
    """Some of the broken answers, broken once more."""
    once = [each for each in broken_answers(calls, functions) if each[1]]
    for what, changed in dice.sample(once, min(3, len(once))):
        twice = list(broken_answers(changed, functions))
        for again, result in dice.sample(twice, min(8, len(twice))):
            yield f"{what}, {again}", result


def broken_values(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values in the place of one."""
    yield "null", None
    yield "empty text", ""
    yield "in a list", [value]
    yield "in an object", {"value": value}
    yield "as text", str(value)
    yield "empty list", []
    yield "empty object", {}
    yield "another number", 987654
    yield "another fraction", 0.125
    yield "true", True
    yield "false", False
    yield "one", 1
    if isinstance(value, bool):
        yield "as a number", int(value)
        yield "the opposite", not value
    elif isinstance(value, int | float):
        yield "one more", value + 1
        yield "as a fraction", float(value)
        yield "cut to an integer", int(value)
        yield "negative", -value
        yield "a little more", value + 1e-9
    elif isinstance(value, str):
        yield "capitals", value.upper()
        yield "small letters", value.lower()
        yield "a space and a full stop more", f" {value}."
        yield "spaces made underscores", value.replace(" ", "_")
        yield "forgiven marks between the letters", "-/^*".join(value)
        yield "punctuation that is not forgiven", f"{value}!"
        yield "in quotes", f'"{value}"'
        yield "in single quotes", f"'{value}'"
        yield "double quotes made single", value.replace('"', "'")
        yield "a word more", f"{value} please"
        yield "cut short", value[:-1]
        yield "with a line break", f"{value}\n"
        yield "other spaces", value.replace(" ", "\u00a0")
        yield "as a number", int(value) if value.lstrip("-").isdecimal() else 3
        yield "a suffix more", f"{value}L"
        yield "a suffix n", f"{value}n"
        yield "a suffix f", f"{value}f"
        yield "brackets dropped", value.strip("[]{}()")
        yield "commas dropped", value.replace(",", " ")
    elif isinstance(value, list):
        yield "reversed", value[::-1]
        yield "an element too many", [*value, *value[-1:]]
        yield "an element too few", value[:-1]
        other = {"a": 1} if value and not isinstance(value[0], dict) else "x"
        yield "an element of another type", [*value[:-1], other]
        yield "nested once more", [list(value)]
        for place, item in enumerate(value[:2]):
            for what, changed in broken_elements(item):
                yield f"an element {what}", [*value[:place], changed, *value[place + 1 :]]
    elif isinstance(value, dict):
        yield "a member too many", {**value, "unheard_of": 1}
        for key, item in value.items():
            rest = {other: each for other, each in value.items() if other != key}
            yield "a member left out", rest
            yield "a member's name in capitals", {**rest, key.upper(): item}
            for what, changed in broken_elements(item):
                yield f"a member {what}", {**value, key: changed}


def broken_elements(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values in the place of a list's element or an object's member."""
    yield "null", None
    yield "as text", str(value)
    yield "as a list", [value]
    yield "empty text", ""
    if isinstance(value, str):
        yield "in capitals", value.upper()
        yield "without spaces", value.replace(" ", "")
        yield "with a word more", f"{value} more"
    elif isinstance(value, bool):
        yield "turned round", not value
    elif isinstance(value, int | float):
        yield "raised", value + 1
        yield "as a fraction", float(value)
        yield "cut to an integer", int(value)
    elif isinstance(value, dict):
        yield "without its members", {}
        yield "with a member more", {**value, "unheard_of": 1}
        for key in value:
            yield "with a member changed", {**value, key: "something else"}
            yield "without a member", {k: v for k, v in value.items() if k != key}


# ── both, held against each other ─────────────────────────────────────────────────────────────


@dataclass
class Count:
    """What was found over one category."""

    cases: int = 0
    right: int = 0
    """Answers built from the possible answers that the official checker accepts."""
    refused: int = 0
    """Answers built from the possible answers that it does not accept."""
    passed: int = 0
    """Changed answers that it accepts."""
    broken: int = 0
    """Changed answers that it does not accept."""
    crashes: Counter[str] = field(default_factory=Counter)
    """Answers that it stops at with an exception; ours calls them wrong."""
    disagreements: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(case, what was done, theirs, ours) where one says right and the other wrong."""
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(theirs, ours) where both say wrong, for another reason."""

    @property
    def answers(self) -> int:
        return self.right + self.refused + self.passed + self.broken + sum(self.crashes.values())


def compare(category: str, *, every: int = 1) -> Count:
    """Both checkers over every `every`-th case of a category."""
    official, languages = load_official()
    language = language_of(category)
    spoken = {
        "python": languages.PYTHON,
        "java": languages.JAVA,
        "javascript": languages.JAVASCRIPT,
    }
    count, dice = Count(), random.Random(7)
    for number, truth in enumerate(read_truths(bfcl_folder(), category)):
        if number % every:
            continue
        count.cases += 1
        functions = [dict(each) for each in truth.functions]
        declared = {each["name"]: each["parameters"]["properties"] for each in functions}
        built = list(right_answers(truth.answers, declared, language))
        for what, calls, intact in [
            *((what, calls, True) for what, calls in built),
            *((what, calls, False) for what, calls in broken_answers(built[0][1], functions)),
            *((what, calls, False) for what, calls in broken_twice(built[0][1], functions, dice)),
        ]:
            try:
                theirs = official(
                    functions,
                    [{name: dict(arguments)} for name, arguments in calls],
                    truth.answers,
                    spoken[language],
                    category,
                    "model",
                )
            except Exception as error:
                theirs = {"valid": False, "error_type": f"stops with {type(error).__name__}"}
                count.crashes[f"{type(error).__name__} at {what}"] += 1
            else:
                if theirs["valid"]:
                    count.right += intact
                    count.passed += not intact
                else:
                    count.refused += intact
                    count.broken += not intact
            ours = judge_calls(
                category, functions, truth.answers, [ToolCall(*call) for call in calls]
            )
            reason = "" if theirs["valid"] else theirs["error_type"]
            if ours.valid != theirs["valid"]:
                count.disagreements.append((truth.id, what, reason, ours.reason))
            elif ours.reason != reason and not reason.startswith("stops"):
                count.reasons[reason, ours.reason] += 1
    return count


def table(counts: dict[str, Count]) -> str:
    """The table of docs/eval.md."""
    lines = [
        "| category | cases | possible answers: right / wrong | changed answers: right / wrong"
        " | checker stops | verdicts differ | reasons differ |",
        "|---|---|---|---|---|---|---|",
    ]
    total = Count()
    for name, count in counts.items():
        lines.append(_line(name, count))
        for key in ("cases", "right", "refused", "passed", "broken"):
            setattr(total, key, getattr(total, key) + getattr(count, key))
        total.crashes += count.crashes
        total.disagreements += count.disagreements
        total.reasons += count.reasons
    return "\n".join([*lines, _line("**all**", total)])


def _line(name: str, count: Count) -> str:
    return (
        f"| {name} | {count.cases:,} | {count.right:,} / {count.refused:,}"
        f" | {count.passed:,} / {count.broken:,} | {sum(count.crashes.values()):,}"
        f" | {len(count.disagreements)} | {sum(count.reasons.values())} |"
    )


def main() -> None:
    counts = {category: compare(category) for category in SCORED_CATEGORIES}
    text = table(counts)
    print(text)
    for name, count in counts.items():
        for each in count.disagreements[:10]:
            print(name, *each, sep=" | ")
        print(name, dict(count.reasons.most_common(5)), dict(count.crashes.most_common(4)))
    if "--check" in sys.argv:
        return
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
