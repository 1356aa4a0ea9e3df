"""The C++ kernel of attention over trees gives what a boolean mask gives in float64, as near as
PyTorch's own bfloat16 attention; where it cannot be had, PyTorch's operators serve.

On a processor without AVX512-BF16 the tests of the kernel's numbers are skipped, which they say;
those of the way around it run everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from native_kernels import kernel as kernel  # a fixture
from native_kernels import kernels_with
from smollora import native
from smollora.attention import kernel as attention_kernel
from smollora.attention import tree_attention, tree_attention_backward
from tiny_training import train

Line = tuple[int, int, int, int]

TABLES: dict[str, list[Line]] = {
    "one token": [(0, 0, 0, 1)],
    "one row over several blocks": [(0, 0, 0, 203)],
    "rows that share nothing": [(0, 0, 0, 40), (0, 0, 40, 7), (0, 0, 47, 33)],
    "a prompt and short rows": [(0, 0, 0, 64), (0, 64, 64, 5), (0, 64, 69, 40), (0, 64, 109, 1)],
    "a prompt and a row longer than a block": [(0, 0, 0, 64), (0, 64, 64, 290), (0, 64, 354, 9)],
    "two trees, tokens of no row between them, an unused line": [
        *((0, 0, 0, 30), (0, 30, 30, 12), (0, 30, 42, 8), (0, 0, 50, 26)),
        *((0, 0, 83, 64), (83, 64, 147, 3), (0, 0, 0, 0), (83, 64, 150, 31)),
    ],
    "blocks of which the first keys are hidden": [(0, 0, 0, 60), (0, 0, 60, 10), (0, 60, 70, 120)],
}
HEADS = {"MHA": (2, 2), "three share": (9, 3), "eight share": (8, 1), "five share": (5, 1)}
NEAR = 1.25
"""Errors may be so many times those of PyTorch's bfloat16 attention; 0.50 to 1.03 were measured."""


def visible(table: list[Line], length: int) -> Tensor:
    """[length, length] bool, written out token by token."""
    seen = torch.zeros((length, length), dtype=torch.bool)
    for shared_start, shared, start, own in table:
        for query in range(start, start + own):
            seen[query, shared_start : shared_start + shared] = True
            seen[query, start : query + 1] = True
    return seen


def draw(heads: tuple[int, int], length: int, wide: int) -> list[Tensor]:
    """Queries, keys, values and upstream gradients, token by token in memory, as a layer's are."""
    count, shared = heads
    return [
        torch.randn(1, length, n, wide).bfloat16().transpose(1, 2)
        for n in (count, shared, shared, count)
    ]


def in_float64(states: list[Tensor], seen: Tensor, scale: float) -> list[Tensor]:
    """Output and gradients as the mask says; 0 for tokens that see nothing."""
    query, key, value = (each.double().detach().requires_grad_() for each in states[:3])
    times = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(times, dim=1) for each in (key, value))
    scores = (query @ keys.transpose(2, 3) * scale).masked_fill(~seen, -1e300)
    out = (scores.softmax(dim=-1) * seen) @ values
    return [out, *torch.autograd.grad(out, (query, key, value), states[3].double())]


def in_torch(states: list[Tensor], seen: Tensor, scale: float) -> list[Tensor]:
    """PyTorch's own attention in bfloat16; tokens that see nothing are given themselves."""
    query, key, value = (each.detach().requires_grad_() for each in states[:3])
    nothing = ~seen.any(dim=1)
    mask = seen | (torch.eye(len(seen), dtype=torch.bool) & nothing)
    times = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(times, dim=1) for each in (key, value))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        out = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale
        )
    out = out.masked_fill(nothing[:, None], 0)
    return [out, *torch.autograd.grad(out, (query, key, value), states[3])]


def in_kernel(states: list[Tensor], table: list[Line], scale: float) -> list[Tensor]:
    """The operators, which must have taken the kernel."""
    query, key, value, grad = states
    assert attention_kernel.describe(query.dtype, query.shape[3]).startswith("C++ kernel")
    segments = torch.tensor(table)
    out, sums = tree_attention(query, key, value, segments, scale)
    return [
        out,
        *tree_attention_backward(grad, query, key, value, out, sums, segments, scale),
    ]


def apart(found: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((found.detach().double() - expected).norm() / expected.norm().clamp_min(0.1))


@pytest.mark.parametrize("wide", attention_kernel.WIDTHS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", TABLES)
def test_the_kernel_is_as_exact_as_torchs_attention(
    name: str, heads: str, wide: int, kernel: native.Kernels
) -> None:
    table = TABLES[name]
    length = max(start + own for _, _, start, own in table) + 13  # padding at the end
    torch.manual_seed(len(name))
    torch.set_num_threads(2)
    states, seen = draw(HEADS[heads], length, wide), visible(table, length)
    exact = in_float64(states, seen, wide**-0.5)
    torchs = in_torch(states, seen, wide**-0.5)
    ours = in_kernel(states, table, wide**-0.5)
    for found, other, expected in zip(ours, torchs, exact, strict=True):
        assert apart(found, expected) <= NEAR * max(apart(other, expected), 2e-3)
    none = ~seen.any(dim=1)
    for found in ours:
        assert not found[:, :, none].any(), "tokens of no row"


@st.composite
def forests(drawn: st.DrawFn) -> list[Line]:
    """Trees of any lengths, one after the other, with gaps."""
    lines: list[Line] = []
    at = drawn(st.integers(0, 3))
    for _ in range(drawn(st.integers(1, 4))):
        start, shared = at, drawn(st.integers(0, 150))
        if shared:
            lines.append((0, 0, start, shared))
        at += shared
        for own in drawn(st.lists(st.integers(1, 90), min_size=1, max_size=5)):
            lines.append((start if shared else 0, shared, at, own))
            at += own
        at += drawn(st.sampled_from((0, 0, 1, 40)))
    return lines


@settings(max_examples=40)
@example(table=[(0, 0, 1, 2)], times=1, shared=3, size=6.0, workers=1)
@given(
    table=forests(),
    times=st.integers(1, 8),
    shared=st.integers(1, 3),
    size=st.sampled_from((0.1, 1.0, 6.0)),
    workers=st.integers(1, 5),
)
def test_any_forest_is_what_its_mask_says(
    table: list[Line], times: int, shared: int, size: float, workers: int
) -> None:
    """Small and large scores, any heads, more workers than heads."""
    found = kernels_with("AVX512-BF16")
    length = max(start + own for _, _, start, own in table) + times
    torch.manual_seed(length)
    states = draw((times * shared, shared), length, 64)
    states[0] *= size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "find_kernels", lambda: found)
        patch.setattr(torch, "get_num_threads", lambda: workers)
        ours = in_kernel(states, table, 0.125)
    seen = visible(table, length)
    exact, torchs = in_float64(states, seen, 0.125), in_torch(states, seen, 0.125)
    for got, other, expected in zip(ours, torchs, exact, strict=True):
        # scores far apart leave gradients near zero, which no bfloat16 attention gets right
        far = max(0.01, 2 * apart(other, expected))
        assert apart(got, expected) <= far or (got - expected).abs().max() <= 0.02


def test_the_same_numbers_come_out_again_and_from_any_layout(kernel: native.Kernels) -> None:
    table = TABLES["two trees, tokens of no row between them, an unused line"]
    torch.manual_seed(3)
    torch.set_num_threads(2)
    states = draw((6, 3), 190, 64)
    first = in_kernel(states, table, 0.1)
    again = in_kernel(states, table, 0.1)
    by_head = in_kernel([each.contiguous() for each in states], table, 0.1)
    strewn = [torch.stack([each, each], dim=-1)[..., 0] for each in states]
    assert strewn[0].stride(3) == 2
    for others in (again, by_head, in_kernel(strewn, table, 0.1)):
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


def test_the_sums_serve_the_gradients_that_are_written_out(
    kernel: native.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.tensor(TABLES["a prompt and short rows"])
    torch.manual_seed(4)
    query, key, value, grad = draw((6, 3), 120, 64)
    out, sums = tree_attention(query, key, value, table, 0.125)
    given = (grad, query, key, value, out, sums, table, 0.125)
    ours = tree_attention_backward(*given)
    monkeypatch.setattr(native, "find_kernels", lambda: "not now")
    out_torch, sums_torch = tree_attention(query, key, value, table, 0.125)
    assert (sums - sums_torch).abs().max() <= 1e-4
    assert apart(out, out_torch.double()) <= 0.005
    for a, b in zip(ours, tree_attention_backward(*given), strict=True):
        assert apart(a, b.double()) <= 0.005


def test_what_is_not_a_number_is_not_hidden(kernel: native.Kernels) -> None:
    """Training stops at a loss that is not a number; it must get there."""
    query, key, value, grad = draw((2, 1), 80, 64)
    query[0, 1, 70, 3] = float("nan")
    found = in_kernel([query, key, value, grad], [(0, 0, 0, 80)], 0.125)
    assert found[0][0, 1, 70].isnan().all()
    assert not found[0][0, 0].isnan().any()
    assert all(each.isnan().any() for each in found[1:3])


@pytest.mark.parametrize("line", [(0, 0, 70, 11), (0, 81, 3, 2), (-1, 4, 4, 4), (0, 4, -4, 4)])
def test_a_table_of_other_tokens_is_refused(line: Line, kernel: native.Kernels) -> None:
    states = draw((2, 1), 80, 64)
    with pytest.raises(ValueError, match="goes past the 80 tokens"):
        in_kernel(states, [line], 0.125)


def test_compiled_code_calls_it_and_torch_finds_it_well_made(kernel: native.Kernels) -> None:
    table = torch.tensor(TABLES["a prompt and short rows"])
    query, key, value, grad = draw((4, 2), 120, 64)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(tree_attention, (query, key, value, table, 0.1), test_utils=checks)
    out, sums = tree_attention(query, key, value, table, 0.1)
    given = (grad, query, key, value, out, sums, table, 0.1)
    torch.library.opcheck(tree_attention_backward, given, test_utils=checks)

    def layer(x: Tensor) -> Tensor:
        return tree_attention(x.sin(), key, value, table, 0.1)[0].transpose(1, 2).cos()

    plain, compiled = (query.clone().requires_grad_() for _ in range(2))
    layer(plain).sum().backward()
    torch.compile(layer, backend="aot_eager")(compiled).sum().backward()
    assert plain.grad is not None and compiled.grad is not None
    assert torch.equal(plain.grad, compiled.grad)


# ── building ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, nothing found yet."""
    monkeypatch.setenv("SMOLLORA_CACHE", str(tmp_path / "cache"))
    native.find_kernels.cache_clear()
    yield tmp_path / "cache"
    native.find_kernels.cache_clear()


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that could, whatever this one is."""
    every = frozenset(native.VECTORS + native.MATRIX_UNITS)
    monkeypatch.setattr(native, "processor_flags", lambda: every)


def serves(reason: str) -> None:
    """Attention works and says that PyTorch computes it, and why."""
    assert attention_kernel.describe(torch.bfloat16, 64).startswith(f"PyTorch: {reason}")
    table = TABLES["a prompt and short rows"]
    states, seen = draw((4, 2), 120, 64), visible(table, 120)
    query, key, value = (each.detach().requires_grad_() for each in states[:3])
    out, _ = tree_attention(query, key, value, torch.tensor(table), 0.125)
    found = [out, *torch.autograd.grad(out, (query, key, value), states[3])]
    for ours, expected in zip(found, in_float64(states, seen, 0.125), strict=True):
        assert apart(ours, expected) <= 0.02


def compiler_that(does: str, folder: Path) -> str:
    """A command that stands for a compiler; it knows its version."""
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo 1.0\n{does}\n')
    script.chmod(0o755)
    return str(script)


def test_without_a_compiler_torch_serves(
    cache: Path, able: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(cache))
    serves("no C++ compiler (g++ or clang++)")
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    native.find_kernels.cache_clear()
    serves("no C++ compiler (no-such-compiler)")


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            "echo 'attention.cpp:1: error: no such flag' >&2; exit 1",
            "attention.cpp:1: error: no such flag",
        ),
        ("kill -9 $$", ""),
        ("exit 0", "cannot be written"),  # and no file
        ('while [ "$1" != -o ]; do shift; done; echo junk > "$2"', "does not load"),
    ],
)
def test_where_compiling_fails_torch_serves(
    does: str,
    reason: str,
    cache: Path,
    able: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", compiler_that(does, tmp_path))
    serves("")
    assert reason in attention_kernel.describe(torch.bfloat16, 64)


def test_where_the_cache_cannot_be_written_torch_serves(cache: Path, able: None) -> None:
    cache.write_text("a file stands here")
    serves(f"{cache / 'kernels'} cannot be written")


def test_other_processors_types_and_sizes_are_torchs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset(("avx2", "avx512f")))
    serves("the processor has no avx512_bf16")
    assert "bfloat16, not float32" in attention_kernel.why_not(torch.float32, 64)
    assert "heads of 64 or 128, not 16" in attention_kernel.why_not(torch.bfloat16, 16)
    monkeypatch.setenv(native.SWITCH, "0")
    native.find_kernels.cache_clear()
    serves("SMOLLORA_NATIVE=0")
    assert not cache.exists(), "nothing was compiled"


@pytest.mark.parametrize("harm", ["cut", "emptied", "changed"])
def test_a_harmed_file_is_built_again(
    harm: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a cut one would kill the process."""
    write = 'while [ "$1" != -o ]; do shift; done; seq 999 > "$2"; echo built >> "$0.log"'
    monkeypatch.setenv("CXX", compiler_that(write, tmp_path))
    built = native.build(native.VECTORS)
    whole = built.read_bytes()
    assert native.build(native.VECTORS) == built
    assert (tmp_path / "c++.log").read_text() == "built\n", "then from the cache"
    kept = {"cut": whole[:2000], "emptied": b"", "changed": whole[:500] + b"x" + whole[501:]}
    built.write_bytes(kept[harm])
    assert native.build(native.VECTORS).read_bytes() == whole
    assert (tmp_path / "c++.log").read_text() == "built\nbuilt\n"


def test_two_processes_may_build_at_once(cache: Path) -> None:
    if not native.processor_flags().issuperset(native.VECTORS):
        pytest.skip("this processor has no AVX512-BF16: nothing is built for it")
    program = "from smollora import native; print(native.find_kernels().units)"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in started]
    assert said[0] == said[1] and said[0] in {"AMX", "AVX512-BF16"}
    assert len(os.listdir(cache / "kernels")) == 1, "one file, nothing left of building"


def test_training_says_what_attended(tmp_path: Path) -> None:
    made = train(tmp_path, epochs=1, dtype="bfloat16")
    assert made.summary["attention"] == "trees, PyTorch: it computes heads of 64 or 128, not 16"
