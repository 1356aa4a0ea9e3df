"""A fault that comes in between two columns is found there, and near-ties are no fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from smollora.probe import Asked, rates
from smollora.probe.locate import Step, compare, locate, mcnemar, outcome, say
from smollora.probe.parting import find_partings, with_margins
from smollora.types import CaseScore, EvalCase, Generation, ToolCall

CALL = (ToolCall("look", {}),)


def asked(
    number: int, *, wants: bool, emitted: bool, ids: Sequence[int] = (1,), failed: bool = False
) -> Asked:
    case = EvalCase(f"c{number}", "single", (), (), CALL if wants else ())
    flags = {"emitted": emitted, "right_tool": emitted, "stops_after_call": True}
    return Asked(
        case,
        Generation(tuple(ids), "error" if failed else "stop"),
        CaseScore(case.id, "right" if emitted == wants else "no_call", "", flags),
        {},
    )


def column(emits: Callable[[int], bool], *, ids: int = 1, count: int = 40) -> list[Asked]:
    """`count` cases that want a call, then as many that want none and get none."""
    wanting = [asked(n, wants=True, emitted=emits(n), ids=(ids, n)) for n in range(count)]
    quiet = [asked(count + n, wants=False, emitted=False) for n in range(count)]
    return [*wanting, *quiet]


def all_of(number: int) -> bool:
    return True


def test_the_exact_test_has_the_values_of_the_binomial() -> None:
    # scipy.stats.binomtest(min, n, 0.5).pvalue
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 1) == 1.0
    assert mcnemar(0, 8) == pytest.approx(0.0078125)
    assert mcnemar(2, 10) == pytest.approx(0.03857421875)
    assert mcnemar(10, 2) == mcnemar(2, 10)
    assert mcnemar(5, 5) == 1.0


def test_a_broken_merge_is_said_to_be_the_merge() -> None:
    columns = {
        "base": column(lambda n: False),
        "adapter": column(all_of),
        "merged": column(lambda n: n < 20),
        "served": column(lambda n: n < 20),
    }
    training, merge, server = locate(columns)
    assert say(training).startswith("adapter differs from base: the training")
    assert say(merge).startswith("merged differs from adapter: the merge")
    assert "emission in 0 cases more and 20 less" in say(merge)
    assert say(server) == "merged and served agree: all 80 answers are the same"


def test_a_server_that_never_stops_is_said_to_be_the_server() -> None:
    good = column(all_of)
    never = [
        Asked(
            a.case,
            a.answer,
            CaseScore(a.case.id, "right", "", {**a.score.flags, "stops_after_call": False}),
            {},
        )
        for a in good
    ]
    (step,) = locate({"merged": good, "served": never})
    assert step.differs == ("stops_after_call",)
    assert "the server" in say(step)


def test_a_few_near_ties_are_no_fault() -> None:
    flips = {3: False, 11: False}
    (step,) = locate(
        {"adapter": column(all_of), "merged": column(lambda n: flips.get(n, True), ids=2)}
    )
    assert not step.differs
    assert step.verdicts_changed == 2
    assert "no more than chance" in say(step)


def test_what_was_not_answered_is_compared_and_counted_nowhere() -> None:
    left = [asked(n, wants=True, emitted=True) for n in range(4)]
    right = [asked(n, wants=True, emitted=n < 2, failed=n >= 2) for n in range(4)]
    step = compare("merged", "served", left, right)
    assert (step.compared, step.verdicts_changed) == (2, 0)
    assert rates(right)["emission"]["n"] == 2
    none = compare("merged", "served", left[:1], right[3:])
    assert say(none) == "merged and served: no case was answered by both"


def test_outcomes_are_asked_only_where_they_can_be_had() -> None:
    wanting, quiet = asked(1, wants=True, emitted=False), asked(2, wants=False, emitted=True)
    assert outcome(wanting, "emission") is False
    assert outcome(wanting, "stops_after_call") is None
    assert outcome(wanting, "false_call") is None
    assert outcome(quiet, "false_call") is True
    assert outcome(quiet, "emission") is None


# ── where ids part ────────────────────────────────────────────────────────────────────────────


def answered(*ids: int) -> Asked:
    return asked(1, wants=True, emitted=True, ids=ids)


def test_answers_part_at_the_first_differing_token() -> None:
    (parting,) = find_partings([answered(5, 6, 7, 8)], [answered(5, 6, 9)])
    assert (parting.place, parting.left.token_id, parting.right.token_id) == (2, 7, 9)
    assert parting.margin is None and not parting.is_near
    assert find_partings([answered(5, 6)], [answered(5, 6)]) == ()


def test_an_answer_that_begins_the_other_has_no_token_where_they_part() -> None:
    (parting,) = find_partings([answered(5, 6)], [answered(5, 6, 7)])
    assert (parting.place, parting.left.token_id, parting.right.token_id) == (2, None, 7)


def test_what_was_not_answered_parts_nowhere() -> None:
    failed = asked(1, wants=True, emitted=True, ids=(), failed=True)
    assert find_partings([answered(5)], [failed]) == ()


def parted(left: float | None, right: float | None) -> Step:
    """One case in which two columns part with these margins."""
    (step,) = locate({"adapter": [answered(5, 6)], "merged": [answered(5, 7)]})
    return replace(step, partings=(with_margins(step.partings[0], left, right),))


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (0.03, 0.1, "at most 0.10 (median 0.10): rounding"),
        (-0.04, 0.02, "at most 0.04 (median 0.04): rounding"),
        (0.02, 3.5, "3.50 to 3.50 in 1 of 1 cases (median of all 3.50): more than rounding"),
        # a pass that contradicts the answer is a fault as well: the column did not write that
        (-3.0, 3.0, "3.00 to 3.00 in 1 of 1 cases (median of all 3.00): more than rounding"),
        (None, 0.2, "at most 0.20 (median 0.20): rounding"),
    ],
)
def test_a_small_margin_is_rounding_and_a_large_one_is_not(
    left: float | None, right: float | None, words: str
) -> None:
    step = parted(left, right)
    assert say(step).endswith(words)
    assert step.as_dict()["partings"][0]["margin"] == step.partings[0].margin


def test_without_margins_nothing_is_said_about_them() -> None:
    assert "margin" not in say(parted(None, None))


def test_no_partings_are_looked_for_where_the_training_lies_between() -> None:
    (step,) = locate({"base": [answered(5, 6)], "adapter": [answered(5, 7)]})
    assert step.same_ids == 0 and step.partings == ()
