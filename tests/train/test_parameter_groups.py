"""Which learning rate each trained tensor has: peft's own LoRA+ decides what is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from smollora.config import TrainSection
from smollora.train.adapter import attach_adapter, parameter_groups
from tiny_models import tiny_model


def rates(peft: Any, groups: list[dict[str, Any]]) -> dict[str, float]:
    """Learning rate by the name of the parameter; each trained one stands in one group."""
    names = {id(p): name for name, p in peft.named_parameters()}
    pairs = [(names[id(p)], group["lr"]) for group in groups for p in group["params"]]
    assert len(pairs) == len(dict(pairs))
    assert dict(pairs).keys() == {n for n, p in peft.named_parameters() if p.requires_grad}
    return dict(pairs)


def adapted(**settings: Any) -> tuple[Any, TrainSection]:
    section = TrainSection(lr=4e-4, **settings)
    return attach_adapter(tiny_model("llama"), section, (5, 6)), section


@pytest.mark.parametrize("ratio", [1.0, 10.0])
def test_factors_have_the_rates_of_pefts_loraplus(ratio: float) -> None:
    peft, section = adapted(embeddings="frozen", loraplus_lr_ratio=ratio)
    theirs = create_loraplus_optimizer(peft, torch.optim.AdamW, lr=4e-4, loraplus_lr_ratio=ratio)
    found = rates(peft, parameter_groups(peft, section))
    assert found == pytest.approx(rates(peft, theirs.param_groups))
    assert len(set(found.values())) == (1 if ratio == 1 else 2)


def test_delimiter_rows_have_their_own_rate_and_no_decay() -> None:
    peft, section = adapted(
        embeddings="tool_tokens", token_lr=3e-3, loraplus_lr_ratio=10, weight_decay=0.1
    )
    groups = parameter_groups(peft, section)
    assert [(round(g["lr"], 6), g["weight_decay"]) for g in groups] == [
        (4e-4, 0.1),
        (4e-3, 0.1),
        (3e-3, 0.0),
    ]
    (rows,) = [name for name, rate in rates(peft, groups).items() if rate == 3e-3]
    assert "trainable_tokens_delta" in rows


def test_factors_of_an_embedding_have_the_plain_rate() -> None:
    peft, section = adapted(embeddings="lora", loraplus_lr_ratio=10)
    found = rates(peft, parameter_groups(peft, section))
    assert {rate for name, rate in found.items() if "lora_embedding" in name} == {4e-4}
