"""LoRA's two products inside the base layer's own: [x, x A'] times [W, scale B]'.

In: a peft model. Out: the same functions and gradients, in two products forward where peft takes
three and a sum. The surprise is not speed: in bfloat16 peft adds the adapter's output to one that
is already rounded, and what is smaller than half of its last place vanishes; with a learning rate
of 2e-4 that is much of what the first steps learn (docs/log.md). Inside one product both are summed
in float32 and rounded once.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class FusedLora:
    """The fused layers of a model; `refresh` after whatever changed their factors."""

    def __init__(self, peft: Any, dtype: torch.dtype, *, spread: bool = False) -> None:
        """Args: a peft model on its device; layers whose weights are of another type than `dtype`,
        the compute type, or that are no plain LoRA (DoRA, several adapters), stay peft's; whether
        weights are spread over processes (FSDP): the factors are joined whenever a layer computes,
        for its weights are whole only then.
        """
        from peft.tuners.lora.layer import Linear

        self.layers = [
            module
            for module in peft.modules()
            if type(module) is Linear and can_fuse(module, dtype)
        ]
        self.spread = spread
        for layer in self.layers:
            if not spread:
                _widen(layer)
            # A method: torch would compile every layer anew around a `partial` of its own.
            layer.forward = MethodType(_forward, layer)
        self.refresh()

    def refresh(self) -> None:
        """Write the second factors, as they are now, beside the base weights."""
        if self.spread:
            return
        with torch.no_grad():
            for layer in self.layers:
                (name,) = layer.active_adapters
                factor = layer.lora_B[name].weight
                layer.wide_weight[:, -factor.shape[1] :] = factor * layer.scaling[name]


def can_fuse(layer: Any, dtype: torch.dtype) -> bool:
    """True for a peft Linear with one plain adapter around a plain layer of that type."""
    base = layer.base_layer
    return (
        type(base) is torch.nn.Linear
        and base.weight.dtype == dtype
        and has_one_plain_adapter(layer)
        and not layer.fan_in_fan_out
    )


def has_one_plain_adapter(layer: Any) -> bool:
    """True for a peft layer whose only active adapter is LoRA, no variant of it, without biases."""
    names = tuple(layer.active_adapters)
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and names[0] not in layer.lora_variant
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


def _widen(layer: Any) -> None:
    """Give a layer room for the second factor beside the base weight, which becomes a view."""
    (name,) = layer.active_adapters
    base = layer.base_layer
    rank = layer.lora_B[name].weight.shape[1]
    wide = torch.cat([base.weight.data, base.weight.new_zeros(base.weight.shape[0], rank)], dim=1)
    base.weight.data = wide[:, :-rank]
    layer.wide_weight = wide  # no buffer: nothing saves it, and `to` must not part it from the view


def _forward(layer: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if is_left_to_peft(layer, args, kwargs):
        out: Tensor = type(layer).forward(layer, inputs, *args, **kwargs)
        return out
    base = layer.base_layer
    inputs, low, second, scale = factors(layer, inputs, base.weight.dtype)
    if hasattr(layer, "wide_weight"):
        out = _WideProduct.apply(inputs, low, second, layer.wide_weight, base.bias, scale)
    else:
        out = _JoinedProduct.apply(inputs, low, second, base.weight, base.bias, scale)
    return out


def is_left_to_peft(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a fused layer is none that it computes: without its adapter, or with more
    than the inputs.
    """
    return bool(layer.disable_adapters or layer.merged or args or kwargs)


def factors(layer: Any, inputs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, float]:
    """(inputs [..., in] and first product [..., rank] in the compute type, second factor
    [out, rank] in its own, its scale) of a layer with one plain adapter.
    """
    (name,) = layer.active_adapters
    inputs = inputs.to(dtype)
    first = layer.lora_A[name].weight.to(dtype)
    low = functional.linear(layer.lora_dropout[name](inputs), first)
    return inputs, low, layer.lora_B[name].weight, layer.scaling[name]


def joined_product(
    inputs: Tensor, low: Tensor, factor: Tensor, base: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """[inputs, low] [..., in + rank] times [base, scale * factor] [out, in + rank]', and `bias`."""
    wide = torch.cat([base, (factor * scale).to(base.dtype)], dim=1)
    return functional.linear(torch.cat([inputs, low], dim=-1), wide, bias)


def joined_gradients(
    gradient: Tensor, low: Tensor, factor: Tensor, base: Tensor, scale: float
) -> tuple[Tensor | None, ...]:
    """Gradients of `joined_product`'s arguments, in their order; `base` and `bias` are frozen."""
    d_low = gradient @ (factor * scale).to(base.dtype)
    d_factor = _second_gradient(gradient, low, scale, factor.dtype)
    return gradient @ base, d_low, d_factor, None, None, None


class _WideProduct(torch.autograd.Function):  # type: ignore[misc]
    """[inputs, low] [..., in + rank] times `wide` [out, in + rank]', whose last columns are the
    second factor times `scale`; autograd alone would compute the frozen weight's gradient as well,
    and keep the joined inputs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        low: Tensor,
        factor: Tensor,
        wide: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(low, wide)
        ctx.scale, ctx.dtype = scale, factor.dtype
        return functional.linear(torch.cat([inputs, low], dim=-1), wide, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, wide = ctx.saved_tensors
        (gradient,) = gradients
        rank = low.shape[-1]
        joined = gradient @ wide
        d_factor = _second_gradient(gradient, low, ctx.scale, ctx.dtype)
        return joined[..., :-rank], joined[..., -rank:], d_factor, None, None, None


class _JoinedProduct(torch.autograd.Function):  # type: ignore[misc]
    """The same from `base` [out, in], joined with the second factor for this product alone. Kept
    for the way back are the parameters themselves, which FSDP empties and fills again: what they
    are joined to would be a second model, and a whole one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        low: Tensor,
        factor: Tensor,
        base: Tensor,
        bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(low, factor, base)
        ctx.scale = scale
        return joined_product(inputs, low, factor, base, bias, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, factor, base = ctx.saved_tensors
        (gradient,) = gradients
        return joined_gradients(gradient, low, factor, base, ctx.scale)


def _second_gradient(gradient: Tensor, low: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (gradient.flatten(0, -2).T @ low.flatten(0, -2)).to(dtype) * scale
