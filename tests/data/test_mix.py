"""The mix holds the shares that were asked for, every time alike, and says what they were."""

from __future__ import annotations

from collections import Counter

import pytest

from smollora.config import MixSection, check_recipe
from smollora.data.mix import plan_mix, shares, show_plan
from smollora.data.prepare import PreparedRow
from smollora.data.shards import tabulate
from smollora.errors import ConfigError, DataError
from smollora.types import Rendered


def row(group: str, kind: str, labelled: int, name: str = "") -> PreparedRow:
    """A row of `labelled` + 3 tokens."""
    trained = (False,) * 3 + (True,) * labelled
    ids = tuple(range(len(trained)))
    rendered = Rendered(name, ids, (0,) * len(ids), trained)
    return PreparedRow(rendered, name or group, group, kind, ("user", "assistant"), ((),))


TOOL = [row("tool", "call", 10) for _ in range(60)] + [row("tool", "no_call", 4)] * 20
GENERAL = [row("general", "no_tools", 30) for _ in range(50)]
ROWS = TOOL + GENERAL


def groups(plan_indices: tuple[int, ...], rows: list[PreparedRow] = ROWS) -> Counter[str]:
    return Counter(rows[index].group for index in plan_indices)


@pytest.mark.parametrize(
    ("share", "tool", "general"),
    [(0.7, 80, 34), (0.5, 50, 50), (0.2, 12, 50), (1.0, 80, 0), (0.8, 80, 20)],
)
def test_the_scarcer_group_is_used_whole_and_the_other_is_cut_to_fit(
    share: float, tool: int, general: int
) -> None:
    plan = plan_mix(ROWS, MixSection(tool_share=share), validation_share=0)
    assert groups(plan.train) == Counter(tool=tool, general=general)
    assert plan.validation == ()


def test_shares_can_count_labelled_tokens() -> None:
    """680 tokens in tool rows, 30 a general row: half and half is 22 general rows."""
    plan = plan_mix(ROWS, MixSection(tool_share=0.5, by="labelled_tokens"), validation_share=0)
    assert groups(plan.train) == Counter(tool=80, general=22)
    table = shares([ROWS[index] for index in plan.train])
    assert table["tool"]["labelled_tokens"] == 680
    assert table["general"]["labelled_tokens"] == 660
    assert table["tool"]["share_labelled_tokens"] == pytest.approx(680 / 1340, abs=1e-4)
    assert table["tool"]["share_rows"] == pytest.approx(80 / 102, abs=1e-4)


def test_no_row_is_taken_twice_and_none_is_in_both_parts() -> None:
    plan = plan_mix(ROWS, MixSection(), validation_share=0.1)
    assert len(plan.validation) == 11
    both = [*plan.train, *plan.validation]
    assert len(set(both)) == len(both) == 114
    assert set(both) <= set(range(len(ROWS)))


def test_a_seed_gives_one_mix_and_another_seed_another() -> None:
    plans = [plan_mix(ROWS, MixSection(seed=seed), validation_share=0.1) for seed in (7, 7, 8)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert groups(plans[0].train + plans[0].validation) == groups(
        plans[2].train + plans[2].validation
    )


def test_fewer_rows_can_be_asked_for() -> None:
    plan = plan_mix(ROWS, MixSection(rows=40), validation_share=0.25)
    assert (len(plan.train), len(plan.validation)) == (30, 10)
    counted = groups(plan.train + plan.validation)
    assert counted["tool"] > counted["general"] > 0


def test_a_group_that_is_wanted_and_not_there_is_named() -> None:
    with pytest.raises(DataError, match="30% general rows and there are none"):
        plan_mix(TOOL, MixSection(), validation_share=0)
    with pytest.raises(DataError, match="70% tool rows and there are none"):
        plan_mix(GENERAL, MixSection(), validation_share=0)
    assert len(plan_mix(TOOL, MixSection(tool_share=1.0), validation_share=0).train) == len(TOOL)


def test_a_mix_without_a_single_call_is_refused() -> None:
    rows = [row("tool", "no_call", 4)] * 20 + GENERAL
    with pytest.raises(DataError, match="no call rows"):
        plan_mix(rows, MixSection(), validation_share=0)


def test_the_table_of_shares_counts_sources_and_kinds() -> None:
    rows = [
        row("tool", "call", 10, "a"),
        row("tool", "no_call", 5, "a"),
        row("general", "no_tools", 35, "b"),
        row("tool", "call", 0, "b"),
    ]
    assert shares(rows) == {
        "a": {
            "rows": 2,
            "labelled_tokens": 15,
            "share_rows": 0.5,
            "share_labelled_tokens": 0.3,
        },
        "b": {
            "rows": 2,
            "labelled_tokens": 35,
            "share_rows": 0.5,
            "share_labelled_tokens": 0.7,
        },
        "kind:call": {
            "rows": 2,
            "labelled_tokens": 10,
            "share_rows": 0.5,
            "share_labelled_tokens": 0.2,
        },
        "kind:no_call": {
            "rows": 1,
            "labelled_tokens": 5,
            "share_rows": 0.25,
            "share_labelled_tokens": 0.1,
        },
        "kind:no_tools": {
            "rows": 1,
            "labelled_tokens": 35,
            "share_rows": 0.25,
            "share_labelled_tokens": 0.7,
        },
    }


# ── the rows that a seed has always chosen ────────────────────────────────────────────────────

FEW = [row("tool", "call", 10), row("tool", "no_call", 4), row("tool", "call", 6)] * 3 + [
    row("general", "no_tools", 30)
] * 5


@pytest.mark.parametrize(
    ("settings", "train", "validation"),
    [
        ({}, (7, 8, 4, 0, 13, 2, 12, 10, 3, 6, 1), (5,)),
        (
            {"by": "labelled_tokens", "tool_share": 0.3, "seed": 1},
            (7, 4, 13, 12, 2, 6, 0, 3, 1, 5, 11, 9, 8),
            (),
        ),
    ],
    ids=["by rows", "by labelled tokens"],
)
def test_a_seed_chooses_the_rows_that_it_chose_in_version_0_1(
    settings: dict[str, object], train: tuple[int, ...], validation: tuple[int, ...]
) -> None:
    """Written down from the first release: prepared runs and published figures rest on it."""
    share = 0.1 if validation else 0.0
    plan = plan_mix(FEW, MixSection.model_validate(settings), validation_share=share)
    assert (plan.train, plan.validation) == (train, validation)


def test_a_table_and_its_rows_give_one_plan() -> None:
    for section in (MixSection(), MixSection(kinds={"call": 0.5, "no_tools": 0.5})):
        of_rows = plan_mix(ROWS, section, validation_share=0.1)
        assert plan_mix(tabulate(ROWS), section, validation_share=0.1) == of_rows
    assert shares(tabulate(ROWS), [0, 80]) == shares([ROWS[0], ROWS[80]])


# ── shares by source and by kind ──────────────────────────────────────────────────────────────

MANY = (
    [row("tool", "call", 10, "a")] * 40
    + [row("tool", "no_call", 5, "a")] * 40
    + [row("tool", "call", 20, "b")] * 30
    + [row("general", "no_tools", 30, "c")] * 60
    + [row("general", "no_call", 15, "c:built")] * 20
)


def taken(plan: object, column: str) -> Counter[str]:
    return Counter(getattr(MANY[index], column) for index in plan.train)  # type: ignore[attr-defined]


def test_sources_have_the_shares_that_are_asked_for() -> None:
    """30 rows of b are all there are, so 0.3 of the mix is 30 rows and the rest follows."""
    section = MixSection(sources={"a": 0.5, "b": 0.3, "c": 0.2})
    plan = plan_mix(MANY, section, validation_share=0)
    assert taken(plan, "source") == Counter(a=50, b=30, c=20)


def test_kinds_have_the_shares_that_are_asked_for() -> None:
    """60 refusals are all there are."""
    section = MixSection(kinds={"call": 0.3, "no_call": 0.6, "no_tools": 0.1})
    plan = plan_mix(MANY, section, validation_share=0)
    assert taken(plan, "kind") == Counter(call=30, no_call=60, no_tools=10)


def test_kinds_by_labelled_tokens() -> None:
    """400 + 600 tokens of calls against 1800 of plain chat: half and half is 33 rows of 30."""
    section = MixSection(kinds={"call": 0.5, "no_tools": 0.5}, by="labelled_tokens")
    plan = plan_mix(MANY, section, validation_share=0)
    assert taken(plan, "kind") == Counter(call=70, no_tools=33)


def test_shares_of_sources_and_of_kinds_hold_both() -> None:
    section = MixSection(
        sources={"a": 0.6, "b": 0.2, "c": 0.2}, kinds={"call": 0.5, "no_call": 0.3, "no_tools": 0.2}
    )
    plan = plan_mix(MANY, section, validation_share=0)
    count = len(plan.train)
    assert count > 100
    for column, wanted in (("source", section.sources), ("kind", section.kinds)):
        for name, share in (wanted or {}).items():
            assert taken(plan, column)[name] == pytest.approx(share * count, abs=2)


def test_shares_that_cannot_both_hold_are_refused() -> None:
    """All of c is plain chat, so a fifth of c cannot go with a tenth of plain chat."""
    section = MixSection(sources={"a": 0.8, "c": 0.2}, kinds={"call": 0.9, "no_tools": 0.1})
    with pytest.raises(DataError, match="no mix has these shares") as caught:
        plan_mix(MANY, section, validation_share=0)
    assert "60 c no_tools" in caught.value.hint


def test_a_source_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"mix.sources names d") as caught:
        plan_mix(MANY, MixSection(sources={"a": 0.5, "d": 0.5}), validation_share=0)
    assert caught.value.hint == "sources with rows: a, b, c, c:built"


def test_a_kind_that_is_not_there_is_named() -> None:
    section = MixSection(kinds={"call": 0.5, "no_tools": 0.5})
    with pytest.raises(DataError, match="50% no_tools rows and there are none"):
        plan_mix(MANY[:110], section, validation_share=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sources", {"a": 0.5, "b": 0.4}, "add up to 0.9, not to 1"),
        ("kinds", {"call": 1.5, "no_call": -0.5}, "cannot be negative"),
        ("kinds", {"chat": 1.0}, "mix.kinds"),
    ],
)
def test_shares_that_are_none_are_refused_with_the_recipe(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_recipe({"mix": {key: value}}, "recipe x")


def test_the_plan_says_what_is_there_what_is_wanted_and_what_is_taken() -> None:
    section = MixSection(sources={"a": 0.5, "b": 0.3, "c": 0.2}, seed=3)
    lines = show_plan(plan_mix(MANY, section, validation_share=0.1), section)
    assert lines[0].startswith("mix of 100 rows and ")
    assert lines[0].endswith("shares by rows, seed 3; 10 rows held back")
    assert "b  wanted  30.0%  rows 30 of 30 (30.0%)  labelled tokens 600 of 600" in lines[2]
    assert "c  wanted  20.0%  rows 20 of 60 (20.0%)  labelled tokens 600 of 1,800" in lines[3]
