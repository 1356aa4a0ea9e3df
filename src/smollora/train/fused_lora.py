"""LoRA's two products inside the base layer's own, [x, x A'] times [W, scale B]', for all layers
that are given the same x at once.

In: a peft model. Out: the same functions and gradients, in two products forward where peft takes
three and a sum for each layer. The surprise is not speed: in bfloat16 peft adds the adapter's
output to one that is already rounded, and what is smaller than half of its last place vanishes;
with a learning rate of 2e-4 that is much of what the first steps learn (docs/log.md). Inside one
product both are summed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that most architectures call one after the other with the same inputs. Where the inputs
are others after all, each is computed alone."""


class FusedLora:
    """The fused layers of a model; `refresh` after whatever changed their factors."""

    def __init__(self, peft: Any, dtype: torch.dtype, *, spread: bool = False) -> None:
        """Args: a peft model on its device; layers whose weights are of another type than `dtype`,
        the compute type, or that are no plain LoRA (DoRA, several adapters), stay peft's; whether
        weights are spread over processes (FSDP): every layer is computed alone then, its factors
        joined whenever it is, for its weights are whole only then.
        """
        from peft.tuners.lora.layer import Linear

        self.layers = [
            module
            for module in peft.modules()
            if type(module) is Linear and can_fuse(module, dtype)
        ]
        self.sets = [] if spread else [LayerSet(each) for each in _sets(peft, self.layers)]
        for layer in self.layers:
            # A method: torch would compile every layer anew around a `partial` of its own.
            layer.forward = MethodType(_forward, layer)
        self.refresh()

    def separate(self) -> None:
        """Compute every layer alone from now on: the compiler gives up on layers that are computed
        again on the way back if one call leaves something for the next.
        """
        if self.sets:
            self.sets = [LayerSet([layer]) for layer in self.layers]
            self.refresh()

    def refresh(self) -> None:
        """Write the second factors, as they are now, beside the base weights."""
        with torch.no_grad():
            for each in self.sets:
                each.refresh()


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


def _sets(peft: Any, layers: Sequence[Any]) -> Iterator[list[Any]]:
    """The layers in sets that one product computes: those of TOGETHER that stand in one module,
    draw no dropout and have adapters of one rank and scale; every other alone.
    """
    fused = set(layers)
    for module in peft.modules():
        own = {name: child for name, child in module.named_children() if child in fused}
        for names in TOGETHER:
            several = [own[name] for name in names if name in own]
            if len(several) > 1 and len({_kind(layer) for layer in several}) == 1:
                yield several
                own = {name: layer for name, layer in own.items() if layer not in several}
        yield from ([layer] for layer in own.values())


def _kind(layer: Any) -> tuple[Any, ...]:
    """What layers that are computed together have in common; of its own where dropout is drawn."""
    return _second(layer).shape[1], _scale(layer), id(layer) if _draws_dropout(layer) else None


class LayerSet:
    """Layers that are given the same inputs: a call of the first computes all of them.

    Their base weights become views of `wide` [sum of out, in + layers * rank], one below the
    other; beside each, in columns of its own, stands its second factor times the scale.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        bases = [layer.base_layer for layer in layers]
        self.sizes = tuple(len(base.weight) for base in bases)
        weight = bases[0].weight
        width, rank = weight.shape[1], _second(layers[0]).shape[1]
        # No buffer: nothing saves it, and `to` must not part it from the views.
        self.wide = weight.new_zeros(sum(self.sizes), width + len(layers) * rank)
        self.blocks = _diagonal(self.wide[:, width:], self.sizes)
        for place, rows in enumerate(self.wide[:, :width].split(self.sizes)):
            rows.copy_(bases[place].weight.data)
            bases[place].weight.data = rows
            layers[place].computed_in, layers[place].place = self, place
        biases = [weight.new_zeros(len(b.weight)) if b.bias is None else b.bias for b in bases]
        self.bias = torch.cat(biases) if any(b.bias is not None for b in bases) else None
        self.inputs: Tensor | None = None
        self.waiting: list[Tensor] = []
        """What the second layer and the next make of `inputs`, until the last has taken it."""

    def refresh(self) -> None:
        """Write the second factors, as they are now."""
        for layer, block in zip(self.layers, self.blocks, strict=True):
            block.copy_(_second(layer) * _scale(layer))

    def output(self, layer: Any, inputs: Tensor) -> Tensor:
        """A layer's output [..., out]; a layer that is alone leaves nothing behind."""
        if layer.place == 0:
            out, *rest = self._compute(inputs)
            if rest:
                self.inputs, self.waiting = inputs, rest
            return out
        if self.inputs is not inputs:
            return _alone(layer, inputs)
        out = self.waiting[layer.place - 1]
        if layer.place == len(self.waiting):
            self.inputs, self.waiting = None, []
        return out

    def _compute(self, inputs: Tensor) -> Sequence[Tensor]:
        inputs = inputs.to(self.wide.dtype)
        low = functional.linear(_drop(self.layers[0], inputs), joined_first(self).to(inputs.dtype))
        factor, scale = joined_second(self), scale_of(self)
        out = _WideProduct.apply(inputs, low, factor, self.wide, self.bias, scale, self.sizes)
        return out.split(self.sizes, dim=-1)  # type: ignore[no-any-return]


def joined_first(layers: LayerSet) -> Tensor:
    """First factors of a set [layers * rank, in], in their own type."""
    return torch.cat([_first(layer) for layer in layers.layers])


def joined_second(layers: LayerSet) -> Tensor:
    """Second factors of a set [sum of out, rank], in their own type."""
    return torch.cat([_second(layer) for layer in layers.layers])


def scale_of(layers: LayerSet) -> float:
    """What a set's second factors are multiplied with."""
    return _scale(layers.layers[0])


def _first(layer: Any) -> Tensor:
    return layer.lora_A[layer.active_adapters[0]].weight


def _second(layer: Any) -> Tensor:
    return layer.lora_B[layer.active_adapters[0]].weight


def _scale(layer: Any) -> float:
    return float(layer.scaling[layer.active_adapters[0]])


def _drop(layer: Any, inputs: Tensor) -> Tensor:
    return layer.lora_dropout[layer.active_adapters[0]](inputs)


def _diagonal(wide: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Blocks [size, rank] on the diagonal of [sum of sizes, as many * rank]."""
    blocks = wide.chunk(len(sizes), dim=1)
    return [block.split(sizes)[place] for place, block in enumerate(blocks)]


def _forward(layer: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if is_left_to_peft(layer, args, kwargs):
        out: Tensor = type(layer).forward(layer, inputs, *args, **kwargs)
        return out
    together = getattr(layer, "computed_in", None)
    out = together.output(layer, inputs) if together is not None else _alone(layer, inputs)
    return out


def _alone(layer: Any, inputs: Tensor) -> Tensor:
    base = layer.base_layer
    inputs, low, second, scale = factors(layer, inputs, base.weight.dtype)
    out: Tensor = _JoinedProduct.apply(inputs, low, second, base.weight, base.bias, scale)
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
    inputs = inputs.to(dtype)
    low = functional.linear(_drop(layer, inputs), _first(layer).to(dtype))
    return inputs, low, _second(layer), _scale(layer)


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
    d_factor = second_gradient(gradient, low).to(factor.dtype) * scale
    return gradient @ base, d_low, d_factor, None, None, None


class _WideProduct(torch.autograd.Function):  # type: ignore[misc]
    """[inputs, low] [..., in + layers * rank] times `wide`' of a set of layers; `factor` are their
    second factors [sum of out, rank], which `wide` holds already. autograd alone would compute the
    frozen weights' gradient as well, and keep the joined inputs.
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
        sizes: Sequence[int],
    ) -> Tensor:
        ctx.save_for_backward(low, wide)
        ctx.scale, ctx.dtype, ctx.sizes = scale, factor.dtype, sizes
        return functional.linear(torch.cat([inputs, low], dim=-1), wide, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, wide = ctx.saved_tensors
        (gradient,) = gradients
        rank = low.shape[-1]
        joined = gradient @ wide
        d_factor = second_gradients(gradient, low, ctx.sizes).to(ctx.dtype) * ctx.scale
        return joined[..., :-rank], joined[..., -rank:], d_factor, None, None, None, None


class _JoinedProduct(torch.autograd.Function):  # type: ignore[misc]
    """The same of one layer from `base` [out, in], joined with the second factor for this product
    alone. Kept for the way back are the parameters themselves, which FSDP empties and fills again:
    what they are joined to would be a second model, and a whole one.
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


def second_gradient(gradient: Tensor, low: Tensor) -> Tensor:
    """gradient' low [out, rank], as (low' gradient)': then only the narrow one is transposed, which
    takes half of the time (docs/log.md).
    """
    return (low.flatten(0, -2).T.contiguous() @ gradient.flatten(0, -2)).T


def second_gradients(gradient: Tensor, low: Tensor, sizes: Sequence[int]) -> Tensor:
    """The same of the layers of a set, [sum of out, rank], from `low` [..., layers * rank]."""
    return torch.cat(_diagonal(second_gradient(gradient, low), sizes))


# ── modules that are computed as one function ─────────────────────────────────────────────────


def fuse_modules(
    peft: Any,
    sets: Sequence[LayerSet],
    layers_of: Callable[[Any], tuple[list[Any], Any] | None],
    serves: Callable[[Any, LayerSet, LayerSet], bool],
    forward: Callable[..., Any],
) -> list[Any]:
    """Let modules of two products compute in one function, without dropout in between.

    Args:
        peft: the model.
        sets: what `FusedLora` has made of its layers.
        layers_of: the layers of a module's first product and that of its last; None if it is no
            module of a kind that is known.
        serves: whether `forward` computes a module with these two sets; asked last, for it may
            compile a kernel.
        forward: takes the module, which has the two sets as `layer_sets`, and what it is given.

    Returns:
        The modules that do; `restore_forward` undoes it.
    """
    of = {layer: each for each in sets for layer in each.layers}
    fused = []
    for module in peft.modules():
        if (layers := layers_of(module)) is None:
            continue
        together, last = layers
        pair, end = of.get(together[0]), of.get(last)
        if pair is None or end is None or pair.layers != together or end.layers != [last]:
            continue
        if any(_draws_dropout(layer) for layer in (*together, last)) or not serves(
            module, pair, end
        ):
            continue
        module.layer_sets = pair, end
        module.forward = MethodType(forward, module)
        fused.append(module)
    return fused


def restore_forward(modules: Sequence[Any]) -> None:
    """Let such modules compute as they did before."""
    for module in modules:
        del module.forward, module.layer_sets


def _draws_dropout(layer: Any) -> bool:
    return getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0.0) > 0


def widest_rank(*sets: LayerSet) -> int:
    """The largest rank of their adapters."""
    return max(int(joined_second(each).shape[1]) for each in sets)


def any_left_to_peft(*sets: LayerSet) -> bool:
    """Whether peft computes a layer of theirs now: its adapter is off."""
    return any(is_left_to_peft(layer, (), {}) for each in sets for layer in each.layers)
