"""LoRA beside a 4-bit weight, summed before it is rounded, as fused_lora.py does for full weights.

In: a peft model over bitsandbytes' layers. Out: peft's functions and gradients from one product:
the weight is read back into the compute type, the second factor stands beside it, and both go when
the product is done; the way back reads it again. peft would add its adapter to an output that is
already rounded to bfloat16 and lose the small updates. bitsandbytes reads the weight back as well
wherever more than a few tokens are computed, so this costs one copy of one layer.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from smollora.train.four_bit import is_four_bit
from smollora.train.fused_lora import (
    factors,
    has_one_plain_adapter,
    is_left_to_peft,
    joined_gradients,
    joined_product,
)


def fuse_four_bit(peft: Any) -> list[Any]:
    """Let plain LoRA over 4-bit layers compute in one product; the layers that do. Others (DoRA,
    several adapters) stay peft's.
    """
    fused = [module for module in peft.modules() if can_fuse(module)]
    for layer in fused:
        layer.forward = MethodType(_forward, layer)
    return fused


def can_fuse(layer: Any) -> bool:
    """True for a peft layer with one plain adapter around a 4-bit layer."""
    base = getattr(layer, "base_layer", None)
    if type(layer).__name__ != "Linear4bit" or not is_four_bit(base):
        return False
    return has_one_plain_adapter(layer)


def _forward(layer: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if is_left_to_peft(layer, args, kwargs):
        out: Tensor = type(layer).forward(layer, inputs, *args, **kwargs)
        return out
    base = layer.base_layer
    inputs, low, second, scale = factors(layer, inputs, base.compute_dtype)
    out = _ReadProduct.apply(inputs, low, second, base.weight, base.bias, scale)
    return out


def read_back(weight: Any, dtype: torch.dtype) -> Tensor:
    """The values [out, in] that a 4-bit weight stands for."""
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return values.to(dtype)


class _ReadProduct(torch.autograd.Function):  # type: ignore[misc]
    """`joined_product` with a 4-bit weight, which is read back on both ways and never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        low: Tensor,
        factor: Tensor,
        weight: Any,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(low, factor)
        ctx.weight, ctx.scale = weight, scale  # frozen: nothing changes it in between
        base = read_back(weight, inputs.dtype)
        bias = bias if bias is None else bias.to(inputs.dtype)
        return joined_product(inputs, low, factor, base, bias, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, factor = ctx.saved_tensors
        (gradient,) = gradients
        base = read_back(ctx.weight, gradient.dtype)
        return joined_gradients(gradient, low, factor, base, ctx.scale)
