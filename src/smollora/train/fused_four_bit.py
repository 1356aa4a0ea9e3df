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
from torch.nn import functional

from smollora.train.four_bit import is_four_bit


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
    names = tuple(layer.active_adapters)
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and names[0] not in layer.lora_variant
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


def _forward(layer: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        out: Tensor = type(layer).forward(layer, inputs, *args, **kwargs)
        return out
    (name,) = layer.active_adapters
    base = layer.base_layer
    inputs = inputs.to(base.compute_dtype)
    first = layer.lora_A[name].weight.to(inputs.dtype)
    low = functional.linear(layer.lora_dropout[name](inputs), first)
    out = _WideProduct.apply(
        inputs, low, layer.lora_B[name].weight, base.weight, base.bias, layer.scaling[name]
    )
    return out


def read_back(weight: Any, dtype: torch.dtype) -> Tensor:
    """The values [out, in] that a 4-bit weight stands for."""
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return values.to(dtype)


class _WideProduct(torch.autograd.Function):  # type: ignore[misc]
    """[inputs, low] [..., in + rank] times [weight, scale * factor] [out, in + rank]'."""

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
        second = (factor * scale).to(inputs.dtype)
        wide = torch.cat([read_back(weight, inputs.dtype), second], dim=1)
        bias = bias if bias is None else bias.to(inputs.dtype)
        return functional.linear(torch.cat([inputs, low], dim=-1), wide, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, factor = ctx.saved_tensors
        (gradient,) = gradients
        d_inputs = gradient @ read_back(ctx.weight, gradient.dtype)
        d_low = gradient @ (factor * ctx.scale).to(gradient.dtype)
        d_factor = (gradient.flatten(0, -2).T @ low.flatten(0, -2)).to(factor.dtype) * ctx.scale
        return d_inputs, d_low, d_factor, None, None, None
