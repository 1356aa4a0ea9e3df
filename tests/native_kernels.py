"""The C++ kernels of this machine, for tests of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from smollora import native

UNITS = ("AMX", "AVX512-BF16")


def kernels_with(units: str) -> native.Kernels:
    """The kernels that multiply with these; skips where the processor has none."""
    flags = native.VECTORS + (native.MATRIX_UNITS if units == "AMX" else ())
    if missing := set(flags) - native.processor_flags():
        pytest.skip(f"this processor has no {sorted(missing)}: only the way around is tested")
    return native.Kernels(native._load(flags), units)


@pytest.fixture(params=UNITS)
def kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[native.Kernels]:
    """Either kernel, in use; afterwards as many threads as before."""
    found, before = kernels_with(request.param), torch.get_num_threads()
    monkeypatch.setattr(native, "find_kernels", lambda: found)
    yield found
    torch.set_num_threads(before)


def apart(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def with_factors(model: Any, **changes: Any) -> Any:
    """A peft model whose second factors are no zeros, its adapters in float32."""
    peft = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **changes}))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return peft


def outcome_of(peft: Any, **given: Any) -> list[Tensor]:
    """Logits, and the gradients of their squares by every factor."""
    logits = peft(**given).logits.double()
    logits.square().mean().backward()
    grads = [p.grad.double() for _, p in sorted(peft.named_parameters()) if p.grad is not None]
    return [logits.detach(), *grads]
