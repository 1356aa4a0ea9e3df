"""The gate in C++ gives what float64 gives, as near as PyTorch's bfloat16; a feed-forward layer
that uses it gives peft's values and gradients; where it cannot serve, nothing changes.

On a processor without AVX512-BF16 the tests of the kernel's numbers are skipped, which they say.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from native_kernels import apart, kernels_with, outcome_of, with_factors
from native_kernels import kernel as kernel  # a fixture
from smollora import native
from smollora.train import gate as gates
from smollora.train.fused_lora import FusedLora, restore_forward
from smollora.train.gate import describe, fuse_gates, gate, gate_backward
from tiny_models import FAMILIES, tiny_model

NEAR = 1.25
"""Errors may be so many times those of PyTorch's operators in bfloat16."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 43)[None]


def draw(length: int, inner: int, rank: int, low_rank: int) -> tuple[Tensor, ...]:
    """Upstream gradient, gates and values, first factor, and what the second ones are given."""
    torch.manual_seed(length + inner)
    return (
        torch.randn(length, inner + rank).bfloat16(),
        (3 * torch.randn(length, 2 * inner)).bfloat16(),
        (torch.randn(rank, inner) / inner**0.5).bfloat16(),
        torch.randn(length, 2 * low_rank).bfloat16(),
    )


def by_autograd(drawn: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """What `gate` and `gate_backward` return, by PyTorch's own operators in a type."""
    gradient, gate_up, first, low = (each.to(dtype) for each in drawn)
    inner, low_rank = first.shape[1], low.shape[1] // 2
    gate_up.requires_grad_()
    first.requires_grad_()
    h = functional.silu(gate_up[:, :inner]) * gate_up[:, inner:]
    out = torch.cat([h, h @ first.T], dim=1)
    d_gate_up, d_first = torch.autograd.grad(out, (gate_up, first), gradient)
    left, right = low[:, :low_rank], low[:, low_rank:]
    seconds = torch.stack([left.T @ d_gate_up[:, :inner], right.T @ d_gate_up[:, inner:]])
    return [out.detach(), d_gate_up, d_first, seconds]


def in_kernel(drawn: tuple[Tensor, ...]) -> list[Tensor]:
    gradient, gate_up, first, low = drawn
    return [gate(gate_up, first), *gate_backward(gradient, gate_up, first, low)]


SIZES = {
    "a block": (64, 64, 16, 16),
    "one token, the smallest": (1, 32, 1, 1),
    "tokens that fill no block, ranks that fill no tile": (77, 96, 5, 24),
    "several strips, the largest ranks": (130, 544, 64, 64),
    "SmolLM2-135M's": (333, 1536, 16, 16),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_kernel_is_as_exact_as_torchs_operators(name: str, kernel: native.Kernels) -> None:
    torch.set_num_threads(2)
    drawn = draw(*SIZES[name])
    exact, torchs = by_autograd(drawn, torch.float64), by_autograd(drawn, torch.bfloat16)
    for found, other, expected in zip(in_kernel(drawn), torchs, exact, strict=True):
        assert found.shape == expected.shape
        assert apart(found, expected) <= NEAR * max(apart(other, expected), 2e-3)


@settings(max_examples=30)
@given(
    length=st.integers(1, 150),
    columns=st.integers(1, 12),
    rank=st.integers(1, 64),
    low_rank=st.integers(1, 64),
    workers=st.integers(1, 5),
)
def test_any_size_is_what_float64_gives_whatever_the_threads(
    length: int, columns: int, rank: int, low_rank: int, workers: int
) -> None:
    found = kernels_with("AVX512-BF16")
    drawn = draw(length, 32 * columns, rank, low_rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "find_kernels", lambda: found)
        patch.setattr(torch, "get_num_threads", lambda: workers)
        ours = in_kernel(drawn)
        patch.setattr(torch, "get_num_threads", lambda: 1)
        assert all(torch.equal(a, b) for a, b in zip(ours, in_kernel(drawn), strict=True))
    for got, expected in zip(ours, by_autograd(drawn, torch.float64), strict=True):
        assert apart(got, expected) <= 0.01


def test_far_gates_and_what_is_no_number(kernel: native.Kernels) -> None:
    """silu goes to 0 and to its argument; NaN stays one, so that training stops at it."""
    far = torch.tensor([-3e38, -1e4, -90.0, -0.0, 0.0, 90.0, 1e4, 3e38]).repeat(4).bfloat16()
    gate_up = torch.cat([far, torch.ones(32).bfloat16()])[None]
    none = torch.zeros(1, 32).bfloat16()
    found = gate(gate_up, none)[0, :32]
    torch.testing.assert_close(found, functional.silu(far.double()).bfloat16())
    upstream = torch.ones(1, 33).bfloat16()
    slopes = gate_backward(upstream, gate_up, none, torch.ones(1, 2).bfloat16())[0][0, :32]
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]).repeat(4).bfloat16()
    torch.testing.assert_close(slopes, wanted)
    gate_up[0, 5] = float("nan")
    assert gate(gate_up, none)[0, :32].isnan().nonzero().tolist() == [[5]]


def test_any_layout_gives_the_same(kernel: native.Kernels) -> None:
    drawn = draw(70, 64, 8, 8)
    strewn = tuple(torch.stack([each, each], dim=-1)[..., 0] for each in drawn)
    wide = tuple(torch.cat([each, each], dim=1)[:, : each.shape[1]] for each in drawn)
    assert strewn[0].stride(1) == 2 and wide[0].stride(0) > drawn[0].stride(0)
    for others in (strewn, wide):
        pairs = zip(in_kernel(drawn), in_kernel(others), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("inner", "rank"), [(48, 8), (64, 65)])
def test_sizes_that_it_does_not_compute_are_refused(
    inner: int, rank: int, kernel: native.Kernels
) -> None:
    with pytest.raises(ValueError, match="not what the gate computes"):
        in_kernel(draw(10, inner, rank, 4))


def test_torch_finds_the_operators_well_made(kernel: native.Kernels) -> None:
    drawn = draw(40, 64, 8, 4)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(gate, drawn[1:3], test_utils=checks)
    torch.library.opcheck(gate_backward, drawn, test_utils=checks)


# ── whole layers ──────────────────────────────────────────────────────────────────────────────


def adapted(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A peft model whose second factors are no zeros, its adapters in float32."""
    torch.manual_seed(3)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in tiny_model(family).named_modules()}
    chosen = [target for target in TARGETS if target in leaves]
    return with_factors(tiny_model(family).to(dtype), **{"target_modules": chosen, **changes})


def outcome(peft: Any) -> list[Tensor]:
    return outcome_of(peft, input_ids=IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_float64(family: str, kernel: native.Kernels) -> None:
    """As near as the same layers without the gate."""
    plain = adapted(family)
    exact = outcome(deepcopy(plain).double())
    torchs, ours = deepcopy(plain), deepcopy(plain)
    FusedLora(torchs, torch.bfloat16)
    fused = fuse_gates(ours, FusedLora(ours, torch.bfloat16).sets, torch.bfloat16)
    assert len(fused) == ours.config.num_hidden_layers
    assert describe(torch.bfloat16, fused) == f"C++ kernel ({kernel.units})"
    without, found = outcome(torchs), outcome(ours)
    assert len(found) == len(without) == len(exact) > 1
    for got, other, expected in zip(found, without, exact, strict=True):
        assert apart(got, expected) <= 1.5 * apart(other, expected) + 2e-3
    restore_forward(fused)
    assert torch.equal(ours(input_ids=IDS).logits, torchs(input_ids=IDS).logits)


def test_compiled_layers_give_the_same(kernel: native.Kernels) -> None:
    plain = adapted("llama")
    fuse_gates(plain, FusedLora(plain, torch.bfloat16).sets, torch.bfloat16)
    compiled = deepcopy(plain)
    fuse_gates(compiled, FusedLora(compiled, torch.bfloat16).sets, torch.bfloat16)
    wanted = outcome(plain)
    for layer in compiled.get_base_model().model.layers:
        layer.compile(dynamic=False, backend="aot_eager")
    for got, expected in zip(outcome(compiled), wanted, strict=True):
        assert apart(got, expected) <= 5e-3


def test_an_adapter_that_is_switched_off_is_off(kernel: native.Kernels) -> None:
    peft = adapted("llama")
    before = tiny_bfloat16("llama")
    fuse_gates(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16)
    with torch.no_grad(), peft.disable_adapter():
        torch.testing.assert_close(peft(input_ids=IDS).logits, before(input_ids=IDS).logits)


def tiny_bfloat16(family: str) -> Any:
    """The base of `adapted`."""
    torch.manual_seed(3)
    tiny_model(family)
    return tiny_model(family).bfloat16()


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.1},
        {"target_modules": ["gate_proj", "up_proj"]},
        {"target_modules": ["up_proj", "down_proj"]},
        {"rank_pattern": {"up_proj": 2}},
        {"r": 65},
        {"use_dora": True},
    ],
)
def test_what_the_kernel_does_not_know_stays_as_it_is(
    changes: dict[str, Any], kernel: native.Kernels
) -> None:
    peft = adapted("llama", **changes)
    assert fuse_gates(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16) == []
    outcome(peft)


def test_other_functions_and_classes_stay_as_they_are(kernel: native.Kernels) -> None:
    peft = adapted("llama")
    layers = peft.get_base_model().model.layers
    layers[0].mlp.act_fn = torch.nn.GELU()
    layers[1].mlp.__class__ = type("OtherMLP", (type(layers[1].mlp),), {})
    assert fuse_gates(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16) == []


def test_without_the_kernel_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_kernels", lambda: "no C++ compiler")
    peft = adapted("llama")
    assert fuse_gates(peft, FusedLora(peft, torch.bfloat16).sets, torch.bfloat16) == []
    assert describe(torch.bfloat16, []) == "PyTorch: no C++ compiler"
    assert describe(torch.float32, []) == "PyTorch: it computes bfloat16, not float32"
    monkeypatch.undo()
    plain = adapted("llama", torch.float32)
    assert fuse_gates(plain, FusedLora(plain, torch.float32).sets, torch.float32) == []


def test_every_known_class_is_what_it_is_taken_for() -> None:
    """Each is transformers' own, and its code is one line that the gate computes."""
    import importlib
    import inspect

    homes = {"LlamaMLP": "llama", "MistralMLP": "mistral", "SmolLM3MLP": "smollm3"}
    homes |= {"Qwen2MLP": "qwen2", "Qwen3MLP": "qwen3"}
    assert set(homes) == set(gates.KNOWN)
    for name, home in homes.items():
        module = importlib.import_module(f"transformers.models.{home}.modeling_{home}")
        body = inspect.getsource(getattr(module, name).forward)
        assert "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))" in body
