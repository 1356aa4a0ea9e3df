"""A feed-forward layer with LoRA as one function, its gate in C++ (native/gate.cpp).

In: a model whose layers are fused (fused_lora.py), in bfloat16 on a CPU. Out: the same values and
gradients: h = silu(gate) * up stands in the row that the last product reads, its product with the
last layer's first factor beside it, and on the way back the gate's gradients, the second factors'
of the two layers before it and the first factor's of the one behind it are made in one pass over
memory, in float32 until they are whole. h itself is not kept. Where the kernels cannot be had, or
a layer is another than those known, everything stays as it is (`describe`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smollora import native
from smollora.native import WIDEST
from smollora.native.operator import operator
from smollora.train.fused_lora import (
    LayerSet,
    any_left_to_peft,
    fuse_modules,
    joined_first,
    joined_second,
    scale_of,
    second_gradient,
    widest_rank,
)

KNOWN = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP")
"""Classes of transformers' that compute down(act(gate(x)) * up(x)) and nothing else."""
LINE = 32
"""The kernel computes so many columns at once: `inner` must be a multiple."""


def describe(dtype: torch.dtype, gates: Sequence[Any]) -> str:
    """What computes the gates that are fused, in words for a summary."""
    reason = "" if gates else native.why_not(dtype) or "no layer of a kind that it knows"
    return native.describe(reason)


def fuse_gates(peft: Any, sets: Sequence[LayerSet], dtype: torch.dtype) -> list[Any]:
    """Let feed-forward layers compute in one function where the kernel serves them.

    Args:
        peft: the model.
        sets: what `FusedLora` has made of its layers.
        dtype: the compute type.

    Returns:
        The modules that do; `restore_forward` undoes it.
    """

    def serves(module: Any, pair: LayerSet, last: LayerSet) -> bool:
        return _fits(pair, last) and pair.wide.device.type == "cpu" and not native.why_not(dtype)

    return fuse_modules(peft, sets, _layers_of, serves, _forward)


def _layers_of(module: Any) -> tuple[list[Any], Any] | None:
    if type(module).__name__ not in KNOWN or not _is_silu(module.act_fn):
        return None
    return [module.gate_proj, module.up_proj], module.down_proj


def is_gated(module: Any) -> bool:
    """True for a module of `fuse_gates`."""
    return type(module).__name__ in KNOWN and "layer_sets" in vars(module)


def _is_silu(function: Any) -> bool:
    return isinstance(function, torch.nn.SiLU) or type(function).__name__ == "SiLUActivation"


def _fits(pair: LayerSet, last: LayerSet) -> bool:
    """Whether these are sizes that the kernel computes."""
    return (
        pair.bias is None
        and last.bias is None
        and pair.sizes[0] == pair.sizes[1]
        and pair.sizes[0] % LINE == 0
        and widest_rank(pair, last) <= WIDEST
    )


def _forward(module: Any, inputs: Tensor) -> Tensor:
    pair, last = module.layer_sets
    if any_left_to_peft(pair, last):
        out: Tensor = type(module).forward(module, inputs)
        return out
    rows = inputs.to(pair.wide.dtype).flatten(0, -2)
    factors = joined_first(pair), joined_second(pair), joined_first(last), joined_second(last)
    scales = scale_of(pair), scale_of(last)
    found = _FeedForward.apply(rows, *factors, pair.wide, last.wide, *scales)
    return found.view(inputs.shape)


class _FeedForward(torch.autograd.Function):  # type: ignore[misc]
    """Both products with the gate between them; `wide` and `last_wide` hold the frozen weights and
    the second factors (fused_lora.py), and have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        first: Tensor,
        second: Tensor,
        last_first: Tensor,
        last_second: Tensor,
        wide: Tensor,
        last_wide: Tensor,
        scale: float,
        last_scale: float,
    ) -> Tensor:
        """Args: [length, width] in the compute type; factors of the gate's layers [2 * rank, width]
        and [2 * inner, rank], of the last [rank, inner] and [width, rank], in their own type.
        """
        first, last_first = first.to(inputs.dtype), last_first.to(inputs.dtype)
        low = functional.linear(inputs, first)
        gate_up = functional.linear(torch.cat([inputs, low], dim=-1), wide)
        joined = gate(gate_up, last_first)
        last_low = joined[:, last_first.shape[1] :].clone()  # a view would keep all of it
        ctx.save_for_backward(inputs, low, gate_up, last_low, first, last_first, wide, last_wide)
        ctx.scales, ctx.dtypes = (scale, last_scale), (second.dtype, last_second.dtype)
        return functional.linear(joined, last_wide)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, low, gate_up, last_low, first, last_first, wide, last_wide = ctx.saved_tensors
        (scale, last_scale), (dtype, last_dtype) = ctx.scales, ctx.dtypes
        d_joined = gradient @ last_wide
        d_last_second = second_gradient(gradient, last_low).to(last_dtype) * last_scale
        d_gate_up, d_last_first, turned = gate_backward(d_joined, gate_up, last_first, low)
        d_second = turned.transpose(1, 2).flatten(0, 1).to(dtype) * scale
        d_wide = d_gate_up @ wide
        d_inputs, d_low = d_wide.split((inputs.shape[1], low.shape[1]), dim=-1)
        d_first = (d_low.T.contiguous() @ inputs).to(dtype)
        factors = d_first, d_second, d_last_first.to(last_dtype), d_last_second
        return d_inputs + d_low @ first, *factors, None, None, None, None


# ── operators ─────────────────────────────────────────────────────────────────────────────────


def _gated(gate_up: Tensor, first: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], first.shape[1] + first.shape[0])


@operator(_gated)
def gate(gate_up: Tensor, first: Tensor) -> Tensor:
    """h = silu(gate) * up, and h first' beside it.

    Args:
        gate_up: [length, 2 * inner] bfloat16, the gates left; `inner` a multiple of LINE.
        first: [rank, inner] bfloat16; rank at most WIDEST.

    Returns:
        [length, inner + rank] bfloat16.
    """
    length, inner, rank = len(gate_up), first.shape[1], len(first)
    joined = gate_up.new_empty(length, inner + rank)
    _call("apply_gate", (length, inner, rank), (native.dense(gate_up), native.dense(first), joined))
    return joined


def _gradients(gradient: Tensor, gate_up: Tensor, first: Tensor, low: Tensor) -> Any:
    rank, inner = first.shape
    low_rank = low.shape[1] // 2
    return (
        torch.empty_like(gate_up, memory_format=torch.contiguous_format),
        gate_up.new_empty(_filled(rank), inner, dtype=torch.float32)[:rank],
        gate_up.new_empty(2, _filled(low_rank), inner, dtype=torch.float32)[:, :low_rank],
    )


@operator(_gradients)
def gate_backward(
    gradient: Tensor, gate_up: Tensor, first: Tensor, low: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gate`'s arguments, and of what made `gate_up` with `low`.

    Args:
        gradient: [length, inner + rank] bfloat16, of what `gate` has returned.
        gate_up, first: those of `gate`.
        low: [length, 2 * low_rank] bfloat16: what the second factors of the gate's layer (left) and
            of the other are multiplied with; low_rank at most WIDEST.

    Returns:
        Gradient of `gate_up` [length, 2 * inner] bfloat16, of `first` [rank, inner] float32, and of
        the two second factors, turned: [2, low_rank, inner] float32.
    """
    length, inner, rank, low_rank = len(gate_up), first.shape[1], len(first), low.shape[1] // 2
    d_gate_up = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    d_first = gate_up.new_empty(_filled(rank), inner, dtype=torch.float32)
    d_second = gate_up.new_empty(2, _filled(low_rank), inner, dtype=torch.float32)
    states = (*map(native.dense, (gradient, gate_up, first, low)), d_gate_up)
    _call("differentiate_gate", (length, inner, rank, low_rank), states, d_first, d_second)
    return d_gate_up, d_first[:rank], d_second[:, :low_rank]


def _filled(rank: int) -> int:
    return -(-rank // 16) * 16


def _call(name: str, sizes: Sequence[int], states: Sequence[Tensor], *sums: Tensor) -> None:
    """Call the kernel with `states` in the order of gate.cpp; `sums` are float32.

    Raises:
        ValueError: sizes that it does not compute.
    """
    length, inner, *ranks = sizes
    if inner % LINE or not all(0 < rank <= WIDEST for rank in ranks):
        raise ValueError(f"{inner} columns with ranks {ranks}: not what the gate computes")
    library = native.kernels().library
    given = (length, inner, max(ranks), torch.get_num_threads())
    space = native.Space.of(library.count_gate_space(*map(ctypes.c_int64, given)))
    getattr(library, name)(
        native.integers((*sizes, torch.get_num_threads())),
        native.addresses(states),
        native.integers([each.stride(0) for each in states]),
        *(ctypes.c_void_p(each.data_ptr()) for each in sums),
        space.at,
    )
