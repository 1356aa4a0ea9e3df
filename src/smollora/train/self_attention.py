"""A self-attention layer with LoRA as one function, its attention in C++ (native/attention.cpp).

In: a model whose layers are fused (fused_lora.py), in bfloat16 on a CPU. Out: the same values and
gradients, but queries and keys are rotated where the kernel reads them, the output stands in the
row that the last product reads with that product's low rank beside it, and gradients stand in the
row that the first product's gradient reads: nothing is written only to be moved. Where the kernels
cannot be had, or a layer is another than those known, everything stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smollora.attention import NAME as TREES
from smollora.attention import kernel
from smollora.attention.kernel import Heads
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
    second_gradients,
    widest_rank,
)

KNOWN = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "SmolLM3Attention")
"""Classes of transformers' that rotate queries and keys whole (or not at all), attend, and do
nothing else between their products; Qwen 3 normalises both first."""


def fuse_attention(peft: Any, sets: Sequence[LayerSet], dtype: torch.dtype) -> list[Any]:
    """Let attention layers compute in one function where the kernel serves them.

    Args:
        peft: the model, whose layers attend to trees.
        sets: what `FusedLora` has made of its layers.
        dtype: the compute type.

    Returns:
        The modules that do; `restore_forward` undoes it.
    """

    def serves(module: Any, three: LayerSet, last: LayerSet) -> bool:
        return (
            widest_rank(three, last) <= WIDEST
            and module.scaling > 0
            and three.wide.device.type == "cpu"
            and not kernel.why_not(dtype, module.head_dim)
        )

    return fuse_modules(peft, sets, _layers_of, serves, _forward)


def _layers_of(module: Any) -> tuple[list[Any], Any] | None:
    if type(module).__name__ not in KNOWN:
        return None
    return [module.q_proj, module.k_proj, module.v_proj], module.o_proj


def _forward(module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    three, last = module.layer_sets
    angles = kwargs.get("position_embeddings") if getattr(module, "use_rope", True) else None
    if (
        args
        or module.config._attn_implementation != TREES
        or kwargs.get("past_key_values") is not None
        or any_left_to_peft(three, last)
        or (angles is not None and angles[0].shape[-1] != module.head_dim)
    ):
        out: tuple[Tensor, None] = type(module).forward(module, hidden_states, *args, **kwargs)
        return out
    rows = hidden_states.to(three.wide.dtype).flatten(0, -2)
    cosines, sines = (None, None) if angles is None else (each.flatten(0, -2) for each in angles)
    heads = [size // module.head_dim for size in three.sizes[:2]]
    found = _SelfAttention.apply(
        rows,
        joined_first(three),
        joined_second(three),
        joined_first(last),
        joined_second(last),
        (three.wide, last.wide, three.bias, last.bias, cosines, sines, kwargs["seen"]),
        (three.sizes, heads[0], heads[1], module.head_dim, module.scaling),
        (scale_of(three), scale_of(last)),
    )
    return found.view(*hidden_states.shape[:-1], -1), None


class _SelfAttention(torch.autograd.Function):  # type: ignore[misc]
    """Both products with attention between them; what is in the first tuple is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        first: Tensor,
        second: Tensor,
        last_first: Tensor,
        last_second: Tensor,
        frozen: tuple[Tensor | None, ...],
        sizes: tuple[Any, ...],
        scales: tuple[float, float],
    ) -> Tensor:
        """Args: [length, width] in the compute type; factors of the three layers [3 * rank, width]
        and [sum of out, rank], of the last [rank, out] and [width, rank], in their own type; both
        products' weights with their second factors (fused_lora.py) and biases, the rotation's
        cosines and sines [length, head_dim] and the table of segments; rows of each of the three,
        query heads, key-value heads, head_dim and the factor on the scores; scales of the second
        factors.
        """
        wide, last_wide, bias, last_bias, cosines, sines, segments = frozen
        _, *heads = sizes
        first, last_first = first.to(inputs.dtype), last_first.to(inputs.dtype)
        low = functional.linear(inputs, first)
        rows = functional.linear(torch.cat([inputs, low], dim=-1), wide, bias)
        joined, lse = attend_rows(rows, cosines, sines, segments, last_first, *heads)
        kept = inputs, low, rows, joined, lse, first, last_first, wide, last_wide
        ctx.save_for_backward(*kept, cosines, sines, segments)
        ctx.sizes, ctx.scales, ctx.dtypes = sizes, scales, (second.dtype, last_second.dtype)
        return functional.linear(joined, last_wide, last_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, low, rows, joined, lse, first, last_first, wide, last_wide, *rest = (
            ctx.saved_tensors
        )
        cosines, sines, segments = rest
        sizes, *heads = ctx.sizes
        (scale, last_scale), (dtype, last_dtype) = ctx.scales, ctx.dtypes
        out = last_first.shape[1]
        d_joined = gradient @ last_wide
        d_out, d_last_low = d_joined[:, :out], d_joined[:, out:]
        d_last_second = second_gradient(gradient, joined[:, out:]).to(last_dtype) * last_scale
        d_last_first = (d_last_low.T.contiguous() @ joined[:, :out]).to(last_dtype)
        d_out = d_out + d_last_low @ last_first
        d_rows = attend_rows_backward(d_out, rows, joined, lse, cosines, sines, segments, *heads)
        d_wide = d_rows @ wide
        d_inputs, d_low = d_wide.split((inputs.shape[1], low.shape[1]), dim=-1)
        d_second = second_gradients(d_rows, low, sizes).to(dtype) * scale
        d_first = (d_low.T.contiguous() @ inputs).to(dtype)
        factors = d_first, d_second, d_last_first, d_last_second
        return d_inputs + d_low @ first, *factors, None, None, None


# ── operators ─────────────────────────────────────────────────────────────────────────────────


def _attended(rows: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    first, queries = others[3:5]
    joined = rows.new_empty(rows.shape[0], first.shape[1] + first.shape[0])
    return joined, rows.new_empty(queries, rows.shape[0], dtype=torch.float32)


@operator(_attended)
def attend_rows(
    rows: Tensor,
    cosines: Tensor | None,
    sines: Tensor | None,
    segments: Tensor,
    first: Tensor,
    queries: int,
    keys: int,
    wide: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention over trees from one product to the next.

    Args:
        rows: [length, (queries + 2 * keys) * wide] bfloat16: heads of queries, keys and values, not
            rotated; `wide` one of `kernel.WIDTHS`.
        cosines, sines: [length, wide] of the rotation, or None.
        segments: [lines, 4] int64, as `tree_attention` takes them.
        first: [rank, queries * wide] bfloat16, the next product's first factor; rank at most
            WIDEST.
        scale: factor on the scores.

    Returns:
        [length, queries * wide + rank] bfloat16, the output and what `first` makes of it, and
        log-sum-exp [queries, length] float32.
    """
    if not 0 < len(first) <= WIDEST:
        raise ValueError(f"rank {len(first)}: the kernel computes 1 to {WIDEST}")
    heads = Heads(queries, keys, wide)
    return kernel.attend_rows(rows, (cosines, sines), segments, first, heads, scale)


def _as_rows(gradient: Tensor, rows: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


@operator(_as_rows)
def attend_rows_backward(
    gradient: Tensor,
    rows: Tensor,
    joined: Tensor,
    lse: Tensor,
    cosines: Tensor | None,
    sines: Tensor | None,
    segments: Tensor,
    queries: int,
    keys: int,
    wide: int,
    scale: float,
) -> Tensor:
    """The gradient of `attend_rows`' rows.

    Args:
        gradient: [length, queries * wide] bfloat16, of the output alone.
        joined, lse: what `attend_rows` has returned; the others are what it was given.
    """
    angles, heads = (cosines, sines), Heads(queries, keys, wide)
    return kernel.differentiate_rows(gradient, rows, joined, lse, angles, segments, heads, scale)
