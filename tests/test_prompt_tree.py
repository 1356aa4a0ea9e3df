"""The tree of prompts holds every prompt, and what they share once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smollora.generate.prompt_tree import LEAST_SHARED, lay_out, order_for_sharing, shared_length

SYSTEM, TOOLS = list(range(100, 140)), list(range(200, 300))


def check(prompts: list[list[int]]) -> int:
    """Every prompt can be read off the tree, at its own positions; the tree's tokens."""
    tree = lay_out(prompts)
    assert len(tree.token_ids) == len(tree.positions)
    for prompt, path in zip(prompts, tree.paths, strict=True):
        places = [place for start, end in path for place in range(start, end)]
        assert [tree.token_ids[place] for place in places] == prompt
        assert [tree.positions[place] for place in places] == list(range(len(prompt)))
    before = {(segment.start, segment.end): segment.before for segment in tree.segments}
    for path in tree.paths:
        for depth, stretch in enumerate(path):
            assert before[stretch] == path[:depth], "attention sees what stands before"
    assert sum(s.end - s.start for s in tree.segments) == len(tree.token_ids)
    return len(tree.token_ids)


def test_what_prompts_share_stands_once() -> None:
    prompts = [
        [*SYSTEM, *TOOLS, 1, 2, 3],
        [*SYSTEM, *TOOLS, 4],
        [*SYSTEM, *TOOLS],
        [*SYSTEM, *TOOLS, 4],
        [*SYSTEM, 9, 9],
    ]
    assert check(prompts) == 40 + 100 + 3 + 1 + 2


def test_a_short_beginning_is_not_worth_a_stretch() -> None:
    few = list(range(LEAST_SHARED - 1))
    assert check([[*few, *TOOLS], [*few, *SYSTEM]]) == 2 * len(few) + 140


@given(
    st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=60)
        | st.integers(1, 80).map(lambda size: [1] * size),
        min_size=1,
        max_size=12,
    )
)
def test_any_prompts_can_be_read_off_their_tree(prompts: list[list[int]]) -> None:
    assert check(prompts) <= sum(map(len, prompts))
    assert sorted(order_for_sharing(prompts)) == list(range(len(prompts)))


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_the_shared_length_is_that_of_the_common_beginning(
    left: list[int], right: list[int]
) -> None:
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    assert shared_length(left, right) == count


def test_prompts_that_share_stand_together_longest_first() -> None:
    prompts = [[7], [*SYSTEM, 1], [*TOOLS, 1], [*SYSTEM, 2, 2], [*TOOLS, 5]]
    assert order_for_sharing(prompts) == [2, 4, 1, 3, 0]
