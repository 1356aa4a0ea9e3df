"""The starter cases that ask for a form: every answer keeps to its form, no prompt is an
evaluation's.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from smollora.data.starter import build_general_rows, has_form, load_domains
from smollora.evaluate.instructions import CHECKS, follows, load_instructions

Check = Mapping[str, Any]


def cases() -> list[dict[str, Any]]:
    return [case for domain in load_domains("train") for case in domain.cases if has_form(case)]


def answers() -> Iterator[tuple[str, str, Check]]:
    """(request, answer, check) for every check of every answer."""
    for case in cases():
        request = case.get("u", "")
        for step in case.get("turns", [case]):
            request = step.get("u", request)
            for check in step.get("checks", ()):
                yield request, step["a"], check


# ── forms that the evaluation does not ask for ────────────────────────────────────────────────


def sentences(text: str, n: int) -> bool:
    ends = re.findall(r"(?:[.!?…]+[\"”')]*|\w)(?=\s+|$)", text)
    return sum(end[0] in ".!?…" for end in ends) == n


def table(text: str, columns: int, rows: int) -> bool:
    """A markdown table and nothing else: head, rule and `rows` lines of `columns` cells."""
    lines = text.split("\n")
    cells = [len(line.split("|")) - 2 for line in lines if re.fullmatch(r"\|.*\|", line)]
    rule = re.fullmatch(r"\|(?: *:?-+:? *\|)+", lines[1]) if len(lines) > 1 else None
    return bool(rule) and cells == [columns] * (rows + 2) and len(lines) == rows + 2


COMMON = {
    "en": "a the of is that and to which who together",
    "fr": "le la les de du et pendant dont deux se vers pour lui un une",
    "es": "los las por un de y para el dónde puedo que gracias tu",
    "de": "ein das im und die der ist sonntags vielen dank für gegen",
    "it": "i il un la e di per era con le che si bene",
    "pt": "o é uma que se não e de pela sua",
}
"""Frequent short words, some of them in several languages."""


def language(text: str, code: str) -> bool:
    said = re.findall(r"\w+", text.casefold())
    found = {tongue: sum(w in common.split() for w in said) for tongue, common in COMMON.items()}
    return found[code] > 0 and found[code] == max(found.values())


def fenced_code(text: str, language: str) -> bool:
    block = re.search(rf"```{language}\n(.*?)\n```", text, re.S)
    return bool(block and ast.parse(block[1]).body)


MORE_CHECKS: dict[str, Callable[..., bool]] = {
    "sentences": sentences,
    "table": table,
    "language": language,
    "code": fenced_code,
}


def holds(answer: str, check: Check) -> bool:
    kind = check["kind"]
    if kind in CHECKS:
        return follows(answer, [check])[kind]
    return MORE_CHECKS[kind](answer, **{key: check[key] for key in check if key != "kind"})


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"kind": "sentences", "n": 2}, 'It is 1.3 m. "Go!"', "It is. So it is. Is it?"),
        ({"kind": "sentences", "n": 1}, "one line, no more.", "a heading without an end"),
        ({"kind": "table", "columns": 2, "rows": 1}, "|a|b|\n|-|-|\n|1|2|", "|a|b|\n|1|2|\n|3|4|"),
        ({"kind": "table", "columns": 1, "rows": 1}, "|a|\n|--|\n|1|", "|a|\n|--|\n|1|\nDone."),
        ({"kind": "language", "code": "fr"}, "Le pain est chaud.", "The bread is warm."),
        ({"kind": "language", "code": "de"}, "Der Hund und die Katze", "Il cane e il gatto"),
        ({"kind": "code", "language": "python"}, "```python\nx = 1\n```", "x = 1"),
    ],
)
def test_the_checks_made_here_hold_for_what_keeps_to_them_only(
    check: Check, good: str, bad: str
) -> None:
    assert holds(good, check)
    assert not holds(bad, check)


# ── what was written ──────────────────────────────────────────────────────────────────────────


def test_every_answer_keeps_to_the_form_that_was_asked_for() -> None:
    broken = [(u, a, check) for u, a, check in answers() if not holds(a, check)]
    assert broken == []
    assert len({(u, a) for u, a, _ in answers()}) >= 300


def test_every_form_that_is_evaluated_is_taught_and_no_form_makes_up_the_set() -> None:
    taught = Counter(check["kind"] for _, _, check in answers())
    assert set(taught) == {*CHECKS, *MORE_CHECKS}
    assert min(taught.values()) >= 5, taught
    assert max(taught.values()) < taught.total() / 8, taught


def test_a_form_is_kept_beside_tools_and_under_a_system_text() -> None:
    rows = [row for row in build_general_rows("train") if row["category"] == "general"]
    first = {case.get("u") or case["turns"][0]["u"] for case in cases()}
    assert len(first) == len(cases())
    shown = Counter(
        row["subcategory"]
        for row in rows
        if next(t["value"] for t in row["conversations"] if t["from"] == "human") in first
    )
    assert shown["no_tools"] == len(cases())
    assert len(cases()) / 4 < shown["needless"] < len(cases()) / 2
    system = {case["s"] for case in cases() if "s" in case}
    assert len(system) >= 20
    said = [t["value"] for row in rows for t in row["conversations"] if t["from"] == "system"]
    assert all(text in said for text in system)
    assert any(text.startswith(tuple(system)) and "<tools>" in text for text in said)


# ── nothing of the evaluation ─────────────────────────────────────────────────────────────────

RUN = 5
"""Words in a row that no prompt may share with an evaluated one."""


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def runs(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[start : start + RUN]) for start in range(len(said) - RUN + 1)}


def prompts(case: Mapping[str, Any]) -> list[str]:
    said = [step["u"] for step in case.get("turns", [case]) if "u" in step]
    return [*said, *([case["s"]] if "s" in case else [])]


def kinds(case: Mapping[str, Any]) -> set[str]:
    return {c["kind"] for step in case.get("turns", [case]) for c in step.get("checks", ())}


def test_no_prompt_shares_five_words_in_a_row_with_an_evaluated_one() -> None:
    evaluated = {run for each in load_instructions() for run in runs(each.prompt)}
    assert len(evaluated) > 300
    shared = [(said, runs(said) & evaluated) for case in cases() for said in prompts(case)]
    assert [(said, common) for said, common in shared if common] == []


TOPICS = re.split(
    r";\s+",
    """rainy street evening; honeybees; leaves autumn; lighthouse; cinderella; smell fresh bread;
    opposite; sea; poem cat; trains; boil egg; fruits; walk; learning language; beach pack; pasta;
    months; birthday present; farm animals; morning; moon; bicycle; cows; team; wet paint; grass;
    guests; winter; dragon teapot bus; hobby patience; gravity apple; coffee; sun hot star;
    football ball goal; friendship trust; chant; library quiet; map; whales; goodbye; money; noun;
    yesterday market; two plus; neighbour lost cat; thank note; breakfast ideal; mountains; bank;
    rivers; bakery motto; pirate; spring poem; recycling report; customer letter; invitation; sleep;
    paris; weekend; pizza; invented person age; capital france; colours; book; week; ice steam;
    tomato; coin; count; fox; colour; pet""",
)
"""What each evaluated prompt is about, in their order: words, all of which would give it away."""


def test_no_form_is_asked_of_a_topic_of_which_the_evaluation_asks_it() -> None:
    evaluated = load_instructions()
    assert len(TOPICS) == len(evaluated)
    found = []
    written = [(case, {word for text in prompts(case) for word in words(text)}) for case in cases()]
    for each, topic in zip(evaluated, TOPICS, strict=True):
        about = set(words(topic))
        assert about <= set(words(each.prompt)), each.id
        asked = {check["kind"] for check in each.checks}
        for case, said in written:
            if asked & kinds(case) and about <= said:
                found.append((each.id, prompts(case)))
    assert found == []


def test_no_phrase_that_the_evaluation_dictates_is_dictated_here() -> None:
    phrases = {
        check["phrase"].casefold()
        for each in load_instructions()
        for check in each.checks
        if len(check.get("phrase", "")) > 1 and check["kind"] != "postscript"
    }
    dictated = {check["phrase"].casefold() for _, _, check in answers() if "phrase" in check}
    assert phrases & dictated == set()
