"""Trees compute what the rows one by one compute: transformers and torch's own attention judge."""

from __future__ import annotations

import random
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional

from smollora.attention import tree_attention, tree_attention_backward
from smollora.attention.blocks import block_mask
from smollora.config import TrainSection
from smollora.data.batch import (
    AHEAD,
    MIN_SHARED,
    Batch,
    BatchPlan,
    Refusal,
    Row,
    Tree,
    build_batch,
    pack_tokens,
    plan_batches,
    plan_packs,
    plan_trees,
)
from smollora.errors import ModelError
from smollora.train import TreeLoss, evaluate_loss
from smollora.types import PARTS
from tiny_models import FAMILIES, tiny_model

PAD = 0


def make_rows(seed: int = 0) -> list[Row]:
    """Rows of all shapes: long and short shared prompts, none, two trained turns, one long row."""
    dice = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [dice.randrange(1, 500) for _ in range(count)]

    prompts = [tokens(60), tokens(45), tokens(200), []]
    shapes = [(0, 7, 9), (0, 5, 4), (0, 31, 12), (1, 3, 3), (1, 8, 2), (2, 150, 6), (2, 4, 140)]
    shapes += [(3, 20, 5), (3, 2, 1), (2, 9, 9), (0, 7, 9)]
    rows = []
    for number, (prompt, asked, said) in enumerate(shapes):
        own = tokens(asked) + tokens(said)
        weights = [0.0] * (len(prompts[prompt]) + asked) + [dice.choice([0.5, 1.0, 4.0])] * said
        if number % 4 == 1:  # a second trained turn after words that are not trained
            own += tokens(11)
            weights += [0.0] * 6 + [2.0] * 5
        parts = tuple(-1 if weight == 0 else dice.randrange(5) for weight in weights)
        start = len(prompts[prompt]) + asked
        refusals = (Refusal(start, 17, 0.25),) if number % 3 == 0 else ()
        ids = tuple(prompts[prompt] + own)
        rows.append(Row(f"row-{number}", ids, tuple(weights), parts, refusals))
    return rows


ROWS = make_rows()


def one_by_one(model: Any, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """(sum of weighted losses, sums by part) with transformers' own attention, row after row."""
    total = torch.zeros(())
    by_part = torch.zeros(len(PARTS))
    for row in rows:
        ids = torch.tensor([row.token_ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        weights = torch.tensor(row.weights[1:])
        total = total + (losses * weights).sum()
        for index, refused, word in row.refusals:  # the weight is that of refusing alone
            refusing = -torch.log1p(-logits[index - 1].softmax(-1)[refused])
            total = total + (row.weights[index] - word) * (refusing - losses[index - 1])
        for loss, weight, part in zip(losses.detach(), weights, row.parts[1:], strict=True):
            if weight > 0:
                by_part[part] += loss
    return total, by_part


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=1e-12)).item()


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_trees_equal_rows(model: Any, rows: list[Row], length: int, *, way: str) -> None:
    reference = deepcopy(model)
    reference.set_attn_implementation("eager")
    expected, expected_parts = one_by_one(reference, rows)
    expected.backward()
    loss_of = TreeLoss(model, "float32", attention=way)
    total, weight = torch.zeros(()), torch.zeros(())
    parts, counts = torch.zeros(len(PARTS)), torch.zeros(len(PARTS))
    plan = plan_batches(rows, length=length, seed=3)
    for pack in plan.packs:
        loss, weights, by_part, count, _ = loss_of(build_batch(pack, length, PAD))
        total, weight = total + loss, weight + weights
        parts, counts = parts + by_part, counts + count
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(weight) == pytest.approx(sum(sum(row.weights[1:]) for row in rows), rel=1e-6)
    assert relative(parts, expected_parts) <= 1e-5
    trained = [part for row in rows for part in row.parts[1:] if part >= 0]
    assert counts.tolist() == [trained.count(part) for part in range(len(PARTS))]
    found, wanted = gradients(model), gradients(reference)
    assert found.keys() == wanted.keys()
    worst = {name: relative(found[name], wanted[name]) for name in wanted}
    assert max(worst.values()) <= 1e-5, max(worst, key=worst.__getitem__)


@pytest.mark.parametrize("way", ["trees", "mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_batch_has_the_loss_and_the_gradients_of_its_rows(family: str, way: str) -> None:
    trees = plan_trees(ROWS, 300)
    assert any(len(tree.rows) > 2 for tree in trees), "nothing is shared here"
    assert_trees_equal_rows(tiny_model(family), ROWS, 600, way=way)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_of_a_gpu_gives_the_loss_of_the_rows(family: str) -> None:
    """PyTorch computes FlexAttention's gradient on GPUs only: bench/gpu_check.py compares it."""
    model = tiny_model(family)
    expected, expected_parts = one_by_one(deepcopy(model), ROWS)
    loss_of = TreeLoss(model, "float32", attention="blocks")
    total, parts = torch.zeros(()), torch.zeros(len(PARTS))
    for pack in plan_batches(ROWS, length=600, seed=3).packs:
        with torch.no_grad():
            loss, _, by_part, *_ = loss_of(build_batch(pack, 600, PAD))
        total, parts = total + loss, parts + by_part
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative(parts, expected_parts) <= 1e-5


def test_a_tree_batch_is_right_without_gqa_and_when_every_row_stands_alone() -> None:
    model = tiny_model("llama", heads=4, key_value_heads=4)
    assert_trees_equal_rows(deepcopy(model), ROWS, 600, way="trees")
    assert_trees_equal_rows(model, ROWS[7:9], 64, way="trees")


def test_a_sliding_window_is_kept_or_refused() -> None:
    """Mistral 7B v0.1 sees 4,096 tokens back; a tree would see all."""
    model = tiny_model("mistral", sliding_window=16)
    try:
        assert_trees_equal_rows(model, ROWS[:3], 600, way="trees")
    except ModelError as refusal:
        assert "16" in refusal.message


SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "soft caps in attention": ("gemma2", {"attn_logit_softcapping": 2.0}),
    "a soft cap on the logits": ("gemma2", {"attn_logit_softcapping": None}),
    "logits that are divided": ("granite", {"logits_scaling": 8.0}),
    "logits that are multiplied": ("cohere", {"logit_scale": 0.0625}),
}


@pytest.mark.parametrize("what", SCALED)
def test_what_a_model_does_beside_head_and_attention_is_kept_or_refused(what: str) -> None:
    family, settings_of_it = SCALED[what]
    model = tiny_model(family, **settings_of_it)
    try:
        assert_trees_equal_rows(model, ROWS[:3], 600, way="trees")
    except ModelError as refusal:
        assert refusal.hint


def test_the_validation_loss_is_the_mean_without_dropout_and_without_weights() -> None:
    rows = ROWS[:3]
    base = tiny_model("llama")
    dropping = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(base, dropping)
    reference = deepcopy(model).eval()
    reference.get_base_model().set_attn_implementation("eager")
    plain = [Row(r.conversation_id, r.token_ids, unit(r), r.parts) for r in rows]
    with torch.no_grad():
        expected, _ = one_by_one(reference, plain)
    count = sum(sum(unit(row)) for row in rows)
    model.train()
    found = evaluate_loss(
        TreeLoss(model, "float32"), rows, TrainSection(batch_tokens=600), PAD
    ).loss
    assert found == pytest.approx(expected.item() / count, abs=1e-4)
    assert model.training, "training goes on afterwards"


def unit(row: Row) -> tuple[float, ...]:
    """1 for every trained token."""
    return tuple(float(weight > 0) for weight in row.weights)


# ── attention alone ───────────────────────────────────────────────────────────────────────────

TABLES = {
    "one row": [(0, 0, 0, 50)],
    "one row longer than a block": [(0, 0, 0, 300)],
    "rows that share nothing": [(0, 0, 0, 40), (0, 0, 40, 7), (0, 0, 47, 33)],
    "a prompt and short rows": [(0, 0, 0, 64), (0, 64, 64, 5), (0, 64, 69, 40), (0, 64, 109, 1)],
    "a prompt and more rows than one group": [
        (0, 0, 0, 30),
        *((0, 30, 30 + 50 * i, 50) for i in range(6)),
    ],
    "a prompt and a row longer than a block": [(0, 0, 0, 64), (0, 64, 64, 290), (0, 64, 354, 9)],
    "two trees and an unused line": [
        *((0, 0, 0, 30), (0, 30, 30, 12), (0, 30, 42, 8), (0, 0, 50, 26)),
        *((50, 26, 76, 3), (50, 26, 79, 31), (0, 0, 0, 0)),
    ],
}


def visible(table: list[tuple[int, int, int, int]], length: int) -> Tensor:
    """[length, length] bool written out token by token; a token of no segment sees itself."""
    seen = torch.eye(length, dtype=torch.bool)
    for shared_start, shared, start, own in table:
        for query in range(start, start + own):
            seen[query, shared_start : shared_start + shared] = True
            seen[query, start : query + 1] = True
    return seen


@pytest.mark.parametrize("name", TABLES)
def test_the_blocks_of_a_gpu_hold_what_the_boolean_mask_holds(name: str) -> None:
    table = TABLES[name]
    length = max(start + own for _, _, start, own in table) + 9
    mask = block_mask(torch.tensor(table), length, "cpu")
    places, none = torch.arange(length), torch.tensor(0)
    found = mask.mask_mod(none, none, places[:, None], places[None])
    assert torch.equal(found, visible(table, length))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("name", TABLES)
def test_tree_attention_is_torchs_attention_under_the_boolean_mask(
    name: str, heads: tuple[int, int]
) -> None:
    table = TABLES[name]
    used = max(start + own for _, _, start, own in table)
    length = used + 13  # padding at the end
    torch.manual_seed(len(name))
    count, shared_count = heads
    query = torch.randn(1, count, length, 16, requires_grad=True)
    key = torch.randn(1, shared_count, length, 16, requires_grad=True)
    value = torch.randn(1, shared_count, length, 16, requires_grad=True)
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible(table, length), scale=0.3, enable_gqa=True
    )[:, :, :used]
    found, _ = tree_attention(query, key, value, torch.tensor(table), 0.3)
    assert relative(found[:, :, :used], expected) <= 1e-5
    assert not found[:, :, used:].any()
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (query, key, value), upstream)
    got = torch.autograd.grad(found[:, :, :used], (query, key, value), upstream)
    for ours, torchs in zip(got, wanted, strict=True):
        assert relative(ours, torchs) <= 1e-5


def test_tree_attention_in_bfloat16_is_as_near_as_bfloat16_allows() -> None:
    table = TABLES["two trees and an unused line"]
    torch.manual_seed(5)
    states = [torch.randn(1, n, 110, 16) for n in (4, 2, 2)]
    low = [state.bfloat16().requires_grad_() for state in states]
    high = [state.detach().float().requires_grad_() for state in low]
    found, _ = tree_attention(*low, torch.tensor(table), 0.25)
    expected = functional.scaled_dot_product_attention(
        *high, attn_mask=visible(table, 110), scale=0.25, enable_gqa=True
    )
    upstream = torch.randn_like(expected).bfloat16()
    got = torch.autograd.grad(found, low, upstream)
    wanted = torch.autograd.grad(expected, high, upstream.float())
    for ours, torchs in zip((found, *got), (expected, *wanted), strict=True):
        assert relative(ours.float(), torchs) <= 0.02


def test_torch_finds_the_custom_operator_well_made() -> None:
    """Schema, fake kernel and autograd registration: what torch.compile relies on."""
    table = torch.tensor(TABLES["a prompt and short rows"])
    states = [torch.randn(1, n, 110, 8, requires_grad=True) for n in (4, 2, 2)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(tree_attention, (*states, table, 0.35), test_utils=checks)
    query, key, value = (each.detach() for each in states)
    out, sums = tree_attention(query, key, value, table, 0.35)
    given = (torch.randn_like(query), query, key, value, out, sums, table, 0.35)
    for low in (torch.float32, torch.bfloat16):  # the sums are float32 in either
        cast = [each.to(low) if place < 5 else each for place, each in enumerate(given)]
        torch.library.opcheck(tree_attention_backward, cast, test_utils=("test_schema", checks[2]))


# ── plans ─────────────────────────────────────────────────────────────────────────────────────


def rows_in(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(token ids, positions) of every row, read back from the tensors alone."""
    ids, positions = batch.token_ids[0].tolist(), batch.position_ids[0].tolist()
    table = [line for line in batch.segments.tolist() if line[3]]
    shared_by_others = {(start, shared) for start, shared, _, _ in table if shared}
    found = []
    for shared_start, shared, start, own in table:
        if (start, own) in shared_by_others:
            continue
        first, second = slice(shared_start, shared_start + shared), slice(start, start + own)
        found.append((tuple(ids[first] + ids[second]), tuple(positions[first] + positions[second])))
    return found


SMALL_ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 20), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


def rows_from(shapes: list[tuple[int, int, int, int]]) -> list[Row]:
    rows = []
    for number, (prompt, asked, said, seed) in enumerate(shapes):
        dice = random.Random(seed)
        own = [dice.randrange(1, 9) for _ in range(asked + said)]
        head = [10 + prompt] * (30 * prompt)
        weights = (0.0,) * (len(head) + asked) + (1.0,) * said
        parts = tuple(-1 if weight == 0 else 4 for weight in weights)
        rows.append(Row(str(number), (*head, *own), weights, parts))
    return rows


@settings(max_examples=150)
@given(SMALL_ROWS, st.sampled_from([32, 64, 200]))
def test_every_row_is_in_the_plan_once_whole_and_within_the_length(
    shapes: list[tuple[int, int, int, int]], length: int
) -> None:
    rows = rows_from(shapes)
    plan = plan_batches(rows, length=length, seed=1)
    found: Counter[tuple[int, ...]] = Counter()
    names: list[str] = []
    for pack in plan.packs:
        assert pack_tokens(pack) <= length or (len(pack) == 1 and len(pack[0].rows) == 1)
        batch = build_batch(pack, length, PAD)
        names.extend(batch.row_ids)
        assert batch.token_ids.shape == batch.position_ids.shape
        assert batch.token_ids.shape[1] % length == 0
        assert batch.real_tokens == pack_tokens(pack) <= batch.row_tokens
        for ids, positions in rows_in(batch):
            found[ids] += 1
            assert positions == tuple(range(len(ids)))
        flat = batch.token_ids[0]
        for at, target in zip(batch.select.tolist(), batch.targets.tolist(), strict=True):
            assert at < batch.real_tokens
            assert target != PAD
            assert flat[at] != PAD
    assert found == Counter(row.token_ids for row in rows)
    assert sorted(names) == sorted(row.conversation_id for row in rows)


@settings(max_examples=100)
@given(SMALL_ROWS)
def test_a_shared_prompt_is_common_to_its_rows_and_ends_before_the_first_label(
    shapes: list[tuple[int, int, int, int]],
) -> None:
    for tree in plan_trees(rows_from(shapes), 400):
        if len(tree.rows) == 1:
            assert tree.shared == 0
            continue
        assert tree.shared >= MIN_SHARED
        assert len({row.token_ids[: tree.shared] for row in tree.rows}) == 1
        for row in tree.rows:
            labelled = row.weights.index(1.0)
            assert tree.shared < labelled, "the token before the label predicts it"


def test_padding_is_seen_by_nobody_and_is_trained_nowhere() -> None:
    (pack,) = plan_packs(plan_trees(ROWS[:3], 200), 300)
    batch = build_batch(pack, 300, PAD)
    mask = batch.mask()[0, 0]
    real = batch.real_tokens
    assert not mask[:real, real:].any()
    assert torch.equal(mask[real:, real:], torch.eye(300 - real, dtype=torch.bool))
    assert int(batch.select.max()) < real
    table = [tuple(line) for line in batch.segments.tolist()]
    assert torch.equal(mask, visible(table, 300))


def test_the_segment_table_keeps_its_shape_so_that_compiled_layers_meet_one() -> None:
    plan = plan_batches(ROWS, length=256, seed=0)
    shapes = {tuple(build_batch(pack, 256, PAD).segments.shape) for pack in plan.packs}
    assert shapes == {(256, 4)}


def test_a_row_longer_than_a_step_gets_a_step_of_its_own() -> None:
    long = Row("long", tuple(range(1, 301)), (0.0,) * 290 + (1.0,) * 10, (-1,) * 290 + (4,) * 10)
    plan = plan_batches([*ROWS[:2], long], length=128, seed=0)
    (own,) = [pack for pack in plan.packs if any(long in tree.rows for tree in pack)]
    assert [tree.rows for tree in own] == [(long,)]
    assert build_batch(own, 128, PAD).token_ids.shape == (1, 384)


def single_trees(lengths: list[int]) -> list[Tree]:
    made = [Row(str(n), (1,) * length, (0.0,) * length, ()) for n, length in enumerate(lengths)]
    return [Tree((row,), 0) for row in made]


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_filled_as_full_as_the_trees_near_by_allow(seed: int) -> None:
    dice = random.Random(seed)
    trees = single_trees([dice.randrange(1, 120) for _ in range(40)])
    left = list(trees)
    for pack in plan_packs(trees, 100):
        room = 100 - left[0].length
        sums = {0}
        for tree in left[1 : AHEAD + 1]:
            sums |= {each + tree.length for each in sums if each + tree.length <= room}
        assert pack[0] is left[0]
        assert sum(tree.length for tree in pack[1:]) == max(sums)
        left = [tree for tree in left if not any(tree is taken for taken in pack)]
    assert not left


def test_of_several_ways_to_fill_a_step_it_takes_the_longest_trees() -> None:
    trees = single_trees([50, 10, 20, 30, 20, 50])
    lengths = [[tree.length for tree in pack] for pack in plan_packs(trees, 100)]
    assert lengths == [[50, 50], [10, 20, 30, 20]]


def test_every_epoch_has_its_own_order_and_the_same_packs() -> None:
    packs = tuple((Tree((row,), 0),) for row in ROWS)
    plan = BatchPlan(packs, 600, seed=4)
    orders = [plan.order(epoch) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(len(packs)))


def test_a_row_whose_parts_all_weigh_nothing_is_no_crash() -> None:
    """weights.text=0 teaches calls only; rows of words then have nothing in the loss."""
    words = Row("words", tuple(range(1, 41)), (0.0,) * 40, (-1,) * 30 + (4,) * 10)
    plan = plan_batches([words, *ROWS[:2]], length=300, seed=0)
    assert sum(len(tree.rows) for pack in plan.packs for tree in pack) == 3
