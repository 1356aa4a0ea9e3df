"""LoRA inside the base layer's product: peft's values and gradients, and no small update lost."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from smollora.train.fused_lora import FusedLora
from tiny_models import FAMILIES, tiny_model

IDS = torch.arange(3, 43)[None]


def adapted(family: str, *, biases: bool = False, **settings: Any) -> Any:
    """A peft model whose second factors are no zeros."""
    torch.manual_seed(3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = tiny_model(family, **({"attention_bias": True} if biases else {}))
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):  # zero at first
            torch.nn.init.normal_(parameter)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    chosen = [target for target in targets if target in leaves]
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=chosen, **settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft


def outcome(peft: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of their squares."""
    logits = peft(input_ids=IDS).logits
    logits.square().mean().backward()
    named = peft.named_parameters()
    return logits.detach(), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_pefts(family: str, spread: bool) -> None:
    plain = adapted(family)
    fused = deepcopy(plain)
    products = FusedLora(fused, torch.float32, spread=spread)
    layers = products.layers
    blocks = fused.config.num_hidden_layers
    assert [len(each.layers) for each in products.sets] == ([] if spread else [3, 1, 2, 1] * blocks)
    assert len(layers) == sum(type(m) is type(layers[0]) for m in plain.modules())
    wanted, gradients = outcome(plain)
    found, ours = outcome(fused)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def same_as_peft(plain: Any, sets: list[int]) -> None:
    """Layers are computed in sets of these sizes, and give peft's values and gradients."""
    fused = deepcopy(plain)
    products = FusedLora(fused, torch.float32)
    assert [len(each.layers) for each in products.sets] == sets * plain.config.num_hidden_layers
    for model in (plain, fused):
        torch.manual_seed(5)  # dropout, if any is drawn
        model.outcome = outcome(model)
    torch.testing.assert_close(fused.outcome[0], plain.outcome[0], rtol=1e-4, atol=1e-6)
    for name, gradient in plain.outcome[1].items():
        ours = fused.outcome[1][name]
        torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_layers_with_biases_are_computed_together() -> None:
    same_as_peft(adapted("llama", biases=True), [3, 1, 2, 1])


def test_layers_of_other_ranks_or_scales_are_computed_alone() -> None:
    same_as_peft(adapted("llama", rank_pattern={"k_proj": 2}), [1, 1, 1, 1, 2, 1])
    same_as_peft(adapted("llama", alpha_pattern={"up_proj": 3}), [3, 1, 1, 1, 1])


def test_layers_that_draw_dropout_are_computed_alone_each_with_its_own() -> None:
    plain = adapted("llama", lora_dropout=0.3)
    same_as_peft(plain.train(), [1] * 7)


def test_layers_that_are_given_other_inputs_after_all_are_computed_alone() -> None:
    plain = adapted("llama")
    fused = deepcopy(plain)
    FusedLora(fused, torch.float32)
    one, other = torch.randn(2, 5, 64)
    found, wanted = (model.get_base_model().model.layers[0].self_attn for model in (fused, plain))
    for name, inputs in [("q_proj", one), ("k_proj", other), ("v_proj", one), ("k_proj", one)]:
        ours, theirs = getattr(found, name)(inputs), getattr(wanted, name)(inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("spread", [False, True])
def test_an_update_below_the_last_place_of_bfloat16_is_not_lost(spread: bool) -> None:
    """peft rounds the base's output and adds then: an update smaller than half of the last place
    leaves no trace. Rounded once, each output is off, but their mean is the update's.
    """
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(64, 4096, bias=False)).bfloat16()
    peft = get_peft_model(layer, LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    module = peft.base_model.model[0]
    torch.nn.init.constant_(module.lora_B["default"].weight, 2e-5)
    module.lora_A.bfloat16()
    module.lora_B.bfloat16()
    inputs = torch.randn(256, 64).bfloat16()
    with torch.no_grad():
        base = inputs.double() @ module.base_layer.weight.double().T
        low = inputs.double() @ module.lora_A["default"].weight.double().T
        update = low @ module.lora_B["default"].weight.double().T
        wanted = update.mean(dim=1)  # over 4,096 outputs: rounding that is not biased averages out
        before = module(inputs).double() - base
        FusedLora(peft, torch.bfloat16, spread=spread)
        after = module(inputs).double() - base
    slope = [
        float((each.mean(dim=1) * wanted).sum() / wanted.square().sum()) for each in (before, after)
    ]
    assert slope[0] < 0.2, "peft no longer loses it: is the fused product still needed?"
    assert slope[1] == pytest.approx(1.0, abs=0.2)


def test_what_is_no_plain_lora_stays_pefts() -> None:
    assert not FusedLora(adapted("llama", use_dora=True), torch.float32).layers
    assert not FusedLora(adapted("llama"), torch.bfloat16).layers, "weights of another type"


@pytest.mark.parametrize("spread", [False, True])
def test_changed_factors_are_seen_after_refreshing_and_a_switched_off_adapter_is_off(
    spread: bool,
) -> None:
    plain = adapted("llama")
    fused = deepcopy(plain)
    products = FusedLora(fused, torch.float32, spread=spread)
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        if one.requires_grad:
            with torch.no_grad():
                one.mul_(0.5)
                other.mul_(0.5)
    products.refresh()
    with torch.no_grad():
        torch.testing.assert_close(
            fused(input_ids=IDS).logits, plain(input_ids=IDS).logits, rtol=1e-4, atol=1e-6
        )
        with fused.disable_adapter(), plain.disable_adapter():
            torch.testing.assert_close(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)
