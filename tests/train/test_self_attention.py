"""Attention from one product to the next gives what float64 gives, as near as PyTorch's bfloat16; a
layer that uses it gives peft's values and gradients; where it cannot serve, nothing changes.

On a processor without AVX512-BF16 the tests of the kernel's numbers are skipped, which they say.
"""

from __future__ import annotations

import importlib
import inspect
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from native_kernels import apart, outcome_of, with_factors
from native_kernels import kernel as kernel  # a fixture
from smollora import native
from smollora.attention import use_tree_attention
from smollora.train import self_attention
from smollora.train.fused_lora import FusedLora, restore_forward
from smollora.train.self_attention import attend_rows, attend_rows_backward, fuse_attention
from tiny_models import tiny_model

FAMILIES = ("smollm3", "llama", "mistral", "qwen2")
IDS = torch.arange(3, 73)[None]
POSITIONS = torch.tensor([[*range(40), *range(20, 50)]])
SEEN = torch.tensor([(0, 0, 0, 20), (0, 20, 20, 20), (0, 20, 40, 30), (0, 0, 0, 0)])
"""A prompt of 20 tokens and two rows; a line that is not used."""


def visible() -> Tensor:
    """[length, length] bool of SEEN, written out by hand."""
    seen = torch.ones(70, 70, dtype=torch.bool).tril()
    seen[40:, 20:40] = False
    return seen


# ── operators ─────────────────────────────────────────────────────────────────────────────────


def draw(queries: int, keys: int, wide: int, rank: int, length: int = 70) -> tuple[Tensor, ...]:
    """Rows, cosines, sines, first factor, gradient of the output."""
    torch.manual_seed(queries + wide)
    angles = POSITIONS[0, :length, None] * torch.rand(wide // 2)
    both = torch.cat([angles, angles], dim=1)
    return (
        torch.randn(length, (queries + 2 * keys) * wide).bfloat16(),
        both.cos().bfloat16(),
        both.sin().bfloat16(),
        (torch.randn(rank, queries * wide) / 8).bfloat16(),
        torch.randn(length, queries * wide).bfloat16(),
    )


def in_type(
    drawn: tuple[Tensor, ...], queries: int, keys: int, turned: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Output with its low rank, and the rows' gradient, by transformers' rotation and a mask."""
    rows, cosines, sines, first, grad = (each.to(dtype) for each in drawn)
    rows.requires_grad_()
    heads = rows.unflatten(1, (queries + 2 * keys, -1)).transpose(0, 1)[None]
    query, key, value = heads.split((queries, keys, keys), dim=1)
    if turned:
        query, key = apply_rotary_pos_emb(query, key, cosines[None], sines[None])
    key, value = (each.repeat_interleave(queries // keys, dim=1) for each in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.2).masked_fill(~visible(), float("-inf"))
    out = (scores.softmax(dim=-1) @ value)[0].transpose(0, 1).flatten(1)
    (d_rows,) = torch.autograd.grad(out, rows, grad)
    return [out.detach(), (out @ first.T).detach(), d_rows]


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "wide", "rank"), [(9, 3, 64, 16), (2, 2, 128, 5), (4, 1, 64, 64)]
)
def test_the_kernel_is_as_exact_as_torchs_operators(
    queries: int, keys: int, wide: int, rank: int, turned: bool, kernel: native.Kernels
) -> None:
    torch.set_num_threads(2)
    drawn = draw(queries, keys, wide, rank)
    rows, cosines, sines, first, grad = drawn
    given = (cosines, sines, SEEN) if turned else (None, None, SEEN)
    sizes = (queries, keys, wide, 0.2)
    joined, lse = attend_rows(rows, *given, first, *sizes)
    d_rows = attend_rows_backward(grad, rows, joined, lse, *given, *sizes)
    out = queries * wide
    exact = in_type(drawn, queries, keys, turned, torch.float64)
    others = in_type(drawn, queries, keys, turned, torch.bfloat16)
    found = [joined[:, :out], joined[:, out:], d_rows]
    for got, other, expected in zip(found, others, exact, strict=True):
        assert got.shape == expected.shape
        assert apart(got, expected) <= 1.25 * max(apart(other, expected), 2e-3)


def test_torch_finds_the_operators_well_made(kernel: native.Kernels) -> None:
    rows, cosines, sines, first, grad = draw(3, 1, 64, 4)
    checks = ("test_schema", "test_faketensor")
    sizes = (3, 1, 64, 0.2)
    torch.library.opcheck(
        attend_rows, (rows, cosines, sines, SEEN, first, *sizes), test_utils=checks
    )
    joined, lse = attend_rows(rows, None, None, SEEN, first, *sizes)
    given = (grad, rows, joined, lse, None, None, SEEN, *sizes)
    torch.library.opcheck(attend_rows_backward, given, test_utils=checks)


def test_what_it_does_not_compute_is_refused(kernel: native.Kernels) -> None:
    rows, cosines, sines, _, _ = draw(3, 1, 64, 4)
    with pytest.raises(ValueError, match="rank 65"):
        attend_rows(rows, cosines, sines, SEEN, torch.zeros(65, 192).bfloat16(), 3, 1, 64, 0.2)
    with pytest.raises(ValueError, match="goes past the 70 tokens"):
        beyond = torch.tensor([(0, 0, 60, 20)])
        attend_rows(rows, None, None, beyond, torch.zeros(4, 192).bfloat16(), 3, 1, 64, 0.2)


# ── whole layers ──────────────────────────────────────────────────────────────────────────────


def adapted(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A peft model with heads of 64 over trees; second factors are no zeros."""
    torch.manual_seed(3)
    more = {"use_sliding_window": False} if family == "qwen2" else {}
    model = tiny_model(family, **more)
    wide = deepcopy(model.config)
    wide.head_dim = 64
    if family == "qwen2":  # has no head_dim of its own in every version
        wide.hidden_size, wide.num_attention_heads, wide.num_key_value_heads = 256, 4, 2
    torch.manual_seed(3)
    model = type(model)(wide).to(dtype)
    use_tree_attention(model)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return with_factors(model, **{"target_modules": leaves, **changes})


GIVEN: dict[str, Any] = {
    "input_ids": IDS,
    "position_ids": POSITIONS,
    "use_cache": False,
    "seen": SEEN,
}


def outcome(peft: Any) -> list[Tensor]:
    return outcome_of(peft, **GIVEN)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_float64(family: str, kernel: native.Kernels) -> None:
    """As near as the same layers computed one by one; SmolLM3's second layer rotates nothing."""
    plain = adapted(family)
    exact = outcome(deepcopy(plain).double())
    others, ours = deepcopy(plain), deepcopy(plain)
    FusedLora(others, torch.bfloat16)
    fused = fuse_attention(ours, FusedLora(ours, torch.bfloat16).sets, torch.bfloat16)
    assert len(fused) == ours.config.num_hidden_layers
    without, found = outcome(others), outcome(ours)
    assert len(found) == len(without) == len(exact) == 1 + 2 * 4 * 2
    for got, other, expected in zip(found, without, exact, strict=True):
        assert apart(got, expected) <= 1.5 * apart(other, expected) + 2e-3
    restore_forward(fused)
    assert torch.equal(outcome(ours)[0], without[0])


def test_compiled_layers_give_the_same(kernel: native.Kernels) -> None:
    plain = adapted("llama")
    fuse_attention(plain, FusedLora(plain, torch.bfloat16).sets, torch.bfloat16)
    compiled = deepcopy(plain)
    fuse_attention(compiled, FusedLora(compiled, torch.bfloat16).sets, torch.bfloat16)
    wanted = outcome(plain)
    for layer in compiled.get_base_model().model.layers:
        layer.compile(dynamic=False, backend="aot_eager", fullgraph=True)
    for got, expected in zip(outcome(compiled), wanted, strict=True):
        assert apart(got, expected) <= 5e-3


def test_another_attention_and_a_switched_off_adapter_are_transformers_own(
    kernel: native.Kernels,
) -> None:
    peft = adapted("llama")
    plain = deepcopy(peft)
    fuse_attention(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16)
    with torch.no_grad(), peft.disable_adapter(), plain.disable_adapter():
        assert torch.equal(peft(**GIVEN).logits, plain(**GIVEN).logits)
    for model in (peft, plain):
        model.get_base_model().set_attn_implementation("sdpa")
    with torch.no_grad():
        found, expected = (model(input_ids=IDS).logits for model in (peft, plain))
    assert apart(found, expected) <= 2e-2


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.1},
        {"target_modules": ["q_proj", "k_proj", "v_proj"]},
        {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        {"rank_pattern": {"k_proj": 2}},
        {"r": 65},
        {"use_dora": True},
    ],
)
def test_what_the_kernel_does_not_know_stays_as_it_is(
    changes: dict[str, Any], kernel: native.Kernels
) -> None:
    peft = adapted("llama", **changes)
    assert fuse_attention(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16) == []
    outcome(peft)


def test_without_the_kernel_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_kernels", lambda: "no C++ compiler")
    peft = adapted("llama")
    assert fuse_attention(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16) == []
    monkeypatch.undo()
    plain = adapted("llama", torch.float32)
    assert fuse_attention(plain, FusedLora(plain, torch.float32).sets, torch.float32) == []


def test_every_known_class_is_what_it_is_taken_for() -> None:
    """Each is transformers' own, and does nothing between its products but rotate and attend."""
    for name in self_attention.KNOWN:
        home = name.removesuffix("Attention").lower()
        module = importlib.import_module(f"transformers.models.{home}.modeling_{home}")
        body = inspect.getsource(getattr(module, name).forward)
        for projection in ("q_proj", "k_proj", "v_proj"):
            line = f"self.{projection}(hidden_states).view(hidden_shape).transpose(1, 2)"
            assert line in body
        assert "apply_rotary_pos_emb(query_states, key_states, cos, sin)" in body
        assert "attn_output = self.o_proj(attn_output)" in body
        assert "norm(" not in body
        rotate = inspect.getsource(module.apply_rotary_pos_emb)
        assert "(q * cos) + (rotate_half(q) * sin)" in rotate
        assert "torch.cat((-x2, x1), dim=-1)" in inspect.getsource(module.rotate_half)
