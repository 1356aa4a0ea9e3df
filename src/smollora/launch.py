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
    settle_environment()
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


def shards() -> bool:
    """True where accelerate was told to spread the weights over the processes (FSDP)."""
    return _asked("ACCELERATE_USE_FSDP")


def check_sharding() -> None:
    """Raise where accelerate was configured to shard the model in a way that does not go.

    Raises:
        ConfigError: DeepSpeed, FSDP 1, parts of FSDP 2 that are not met here, or one process.
    """
    plain = "launch with `accelerate launch --multi_gpu` or torchrun, or with --use_fsdp"
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "DeepSpeed is asked for, and smollora shards a model with FSDP 2 alone",
            f"{plain} --fsdp_version 2",
        )
    if not shards():
        return
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(
            f"FSDP {version} is asked for, and smollora shards a model with FSDP 2 alone",
            f"{plain} --fsdp_version 2",
        )
    if _asked("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigError(
            "FSDP's own activation checkpointing is asked for, which smollora does not use",
            "set fsdp_activation_checkpointing to false and train.activation_checkpointing=on",
        )
    if _asked("FSDP_OFFLOAD_PARAMS"):
        raise ConfigError(
            "FSDP is asked to keep weights in the processor's memory, which smollora does not do",
            "set fsdp_offload_params to false, and start more processes if memory runs out",
        )
    if processes() == 1:
        raise ConfigError(
            "FSDP is asked for, and one process was launched: there is nobody to share with",
            "set --num_processes to 2 or more, or leave --use_fsdp out",
        )


def settle_environment() -> None:
    """Overrule what accelerate and transformers would read from the environment that a launcher
    made.

    The compute type and compiling are the recipe's (`train.dtype`, `train.compile`): accelerate's
    own would cast, or compile, around ours. Where weights are spread, a layer is what is gathered
    at one time, and every process loads the model for itself before it gives its share away:
    otherwise transformers leaves the weights of all but the first process unset.
    """
    for variable in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        if variable in os.environ:
            os.environ[variable] = "no"
    if shards():
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard_on_cpu_too() -> None:
    """Let accelerate shard where there is no GPU: of itself (1.15) it does so on GPUs alone, and
    quietly gives every process the whole model elsewhere.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = Accelerator(cpu=True).state  # one for the whole process, the Trainer's as well
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin()


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")
