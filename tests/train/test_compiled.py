"""Compiled decoder layers train the same; `auto` compiles where the steps repay it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smollora.train import trainer
from tiny_models import tiny_model
from tiny_training import train

ADAPTER = Path("adapter", "adapter_model.safetensors")


def test_layers_are_compiled_once_for_all_and_give_the_same_training(tmp_path: Path) -> None:
    """They were compiled one by one: 1.4 s each, 45 s of a real training."""
    settings: dict[str, Any] = {"family": "llama", "batch_tokens": 384, "epochs": 12}
    plain = train(tmp_path / "off", model=tiny_model("llama", layers=4), compile="off", **settings)
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = train(tmp_path / "on", model=tiny_model("llama", layers=4), compile="on", **settings)
    assert (plain.summary["compiled"], compiled.summary["compiled"]) == (False, True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert graphs == 2, "one with gradients and one without, for four layers"
    assert len(plain.curve) >= 12
    assert [e["loss"] for e in compiled.curve] == pytest.approx(
        [e["loss"] for e in plain.curve], abs=1e-4
    )
    weights = load_file(tmp_path / "on" / ADAPTER)
    for name, tensor in load_file(tmp_path / "off" / ADAPTER).items():
        assert (weights[name] - tensor).abs().max() <= 1e-4, name


@pytest.mark.parametrize(("repaid_from", "expected"), [(6, True), (7, False)])
def test_auto_compiles_where_the_steps_repay_it(
    repaid_from: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(trainer, "_compile_layers", asked.append)
    monkeypatch.setattr(trainer, "can_compile", lambda: True)
    monkeypatch.setattr(trainer, "COMPILE_FROM", {"cpu": repaid_from, "cuda": repaid_from})
    made = train(tmp_path, compile="auto", epochs=2, batch_tokens=96, packs_per_step=2)
    assert made.summary["steps"] == 6, "of two epochs"
    assert (len(asked) == 1) is made.summary["compiled"] is expected
