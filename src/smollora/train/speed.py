"""How much of the machine training uses: floating-point operations of its products over what the
machine was measured to multiply.

MFU (model FLOPs utilisation) here: operations that the rows need (weights' products, forward and
backward, of real tokens; no padding, no recomputation, attention left out), by the speed of one
large product of the model's own shape in the compute type, timed on this machine at the start.
Source of the measure: PaLM (Chowdhery et al. 2022, appendix B), which divides by the data sheet's
peak instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

ROWS = 2048
"""Rows of the product that is timed: tokens of a step."""
LONG_ENOUGH = 0.02
"""Seconds that each of three timings takes at least."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of training, and how many the machine does a second."""

    per_token: int
    """Of the decoder, per computed token."""
    per_label: int
    """Of the head, per labelled position."""
    per_second: float
    """Measured, of one process."""

    def utilisation(self, tokens: int, labelled: int, seconds: float) -> float:
        """Share of what the machine multiplies in that time."""
        operations = tokens * self.per_token + labelled * self.per_label
        return operations / max(seconds, 1e-9) / self.per_second


def read_cost(peft: Any, dtype: str, device: str) -> Cost:
    """Count the products of a model with adapters, and time one.

    A frozen weight costs 2 operations a token forward and 2 backward (to its input); one that is
    trained costs 2 more (its own gradient).
    """
    base = peft.get_base_model() if hasattr(peft, "get_base_model") else peft
    head = base.get_output_embeddings()
    per_token = 0
    decoder = base.base_model
    outside = {id(p) for p in base.get_input_embeddings().parameters()}
    for parameter in decoder.parameters():
        if parameter.dim() == 2 and id(parameter) not in outside:
            state = getattr(parameter, "quant_state", None)  # of a 4-bit weight, which is packed
            size = parameter.numel() if state is None else state.shape.numel()
            per_token += size * (6 if parameter.requires_grad else 4)
    per_label = 4 * max((p.numel() for p in head.parameters()), default=0)
    config = base.config
    width, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    return Cost(per_token, per_label, measure_products(width, inner, dtype, device))


def measure_products(width: int, inner: int, dtype: str, device: str) -> float:
    """Operations a second of a product [ROWS, width] x [width, inner]: the best of three timings.

    Draws no random numbers: a training that is timed is the one that is not.
    """
    import torch

    kind = getattr(torch, dtype)
    left = torch.linspace(-1, 1, ROWS * width, device=device).reshape(ROWS, width).to(kind)
    right = torch.linspace(-1, 1, width * inner, device=device).reshape(width, inner).to(kind)

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def seconds(times: int) -> float:
        finish()
        start = time.perf_counter()
        for _ in range(times):
            left @ right
        finish()
        return time.perf_counter() - start

    with torch.no_grad():
        seconds(1)
        times = 1
        while (taken := seconds(times)) < LONG_ENOUGH and times < 4096:
            times *= 2
        best = min(taken, seconds(times), seconds(times))
    return 2.0 * ROWS * width * inner * times / best
