"""The mix holds the shares that were asked for, every time alike, and says what they were."""

from __future__ import annotations

from collections import Counter

import pytest

from smollora.config import MixSection
from smollora.data.mix import plan_mix, shares
from smollora.data.prepare import PreparedRow
from smollora.errors import DataError
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
