"""Several processes of one training, as `accelerate launch` and `torchrun` start them.

Both set RANK and WORLD_SIZE. The first process prepares what training needs, writes and prints; the
others wait for it, train along, and say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta

from smollora.errors import ConfigError

FROM_FIRST = 4
"""How many numbers `from_first` sends."""
LONGEST_WAIT = timedelta(days=2)
"""How long processes wait for the first one, which may have millions of rows to prepare."""


def processes() -> int:
    """How many processes take part; 1 where none was launched."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK") or 0)


def is_first() -> bool:
    """True for the process that writes and prints."""
    return rank() == 0


def wait_for_everyone(device: str) -> None:
    """Return when every process has come here; at once where there is one.

    Args:
        device: "cpu" or "cuda", which decides how processes talk (gloo, NCCL).
    """
    if processes() == 1:
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", backend=backend(device), timeout=LONGEST_WAIT)
    state.wait_for_everyone()


def from_first(compute: Callable[[], Sequence[int]], device: str) -> list[int]:
    """The numbers that `compute` returns in the first process, told to the others.

    Where it runs in each, rounding could make them disagree, and they would wait for ever. All
    must know how many numbers there are: the others pass the same `compute`, which is not called.

    Args:
        compute: returns FROM_FIRST numbers.
        device: on which they are sent.
    """
    if processes() == 1:
        return list(compute())
    import torch
    from accelerate.utils import broadcast

    mine = list(compute()) if is_first() else [0] * FROM_FIRST
    found: list[int] = broadcast(torch.tensor(mine, device=device)).tolist()
    return found


def backend(device: str) -> str:
    """torch.distributed's backend for a device."""
    return "gloo" if device == "cpu" else "nccl"


def refuse_sharding() -> None:
    """Raise where accelerate was configured to shard the model.

    Raises:
        ConfigError: FSDP or DeepSpeed is asked for.
    """
    for name, variable in (
        ("FSDP", "ACCELERATE_USE_FSDP"),
        ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"),
    ):
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise ConfigError(
                f"{name} is asked for, and smollora trains data parallel only: every process holds"
                " the whole model",
                "launch with `accelerate launch --multi_gpu` or torchrun",
            )
