"""Several processes of one training, as `accelerate launch` and `torchrun` start them.

Both set RANK and WORLD_SIZE. The first process prepares what training needs, writes and prints; the
others wait for it, train along, and say nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
    settle_environment(device)
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


def uses_fsdp() -> bool:
    """True where accelerate was told to use FSDP."""
    return _asked("ACCELERATE_USE_FSDP")


def zero_stage() -> int | None:
    """The stage of DeepSpeed's ZeRO that accelerate was told to use; None without DeepSpeed.

    Raises:
        ConfigError: DeepSpeed's config file cannot be read.
    """
    if not _asked("ACCELERATE_USE_DEEPSPEED"):
        return None
    stage = _deepspeed_config().get("stage", os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
    return int(stage) if str(stage).isdigit() else 0


def _deepspeed_config() -> dict[str, Any]:
    """The section on ZeRO of DeepSpeed's own config file; empty where none is given."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if path in ("", "none", "None"):
        return {}
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        section: dict[str, Any] = dict(config.get("zero_optimization", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"DeepSpeed's config file {path} cannot be read: {error}",
            "give accelerate a JSON file as deepspeed_config_file, or --zero_stage 2",
        ) from error
    return {"stage": 0, **section}


def shards() -> bool:
    """True where accelerate was told to spread the weights over the processes (FSDP, ZeRO 3)."""
    return uses_fsdp() or zero_stage() == 3


def computes_in_step() -> bool:
    """True where processes wait for each other at every pack, not at every optimizer step."""
    return uses_fsdp() or zero_stage() is not None


def check_sharding() -> None:
    """Raise where accelerate was configured to shard the model in a way that does not go.

    Raises:
        ConfigError: FSDP 1, stages or parts of FSDP and DeepSpeed that are not met here, one
            process.
    """
    if (stage := zero_stage()) is not None:
        _check_deepspeed(stage)
    elif uses_fsdp():
        _check_fsdp()
    else:
        return
    if processes() == 1:
        raise ConfigError(
            "FSDP or DeepSpeed is asked for, and one process was launched: there is nobody to share"
            " with",
            "set --num_processes to 2 or more, or leave --use_fsdp or --use_deepspeed out",
        )


def _check_fsdp() -> None:
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(
            f"FSDP {version} is asked for, and smollora shards a model with FSDP 2",
            "launch with `accelerate launch --use_fsdp --fsdp_version 2`",
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


def _check_deepspeed(stage: int) -> None:
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "DeepSpeed is asked for, and not installed",
            'pip install "smollora[deepspeed]", or launch with --use_fsdp --fsdp_version 2',
        )
    if stage not in (2, 3):
        raise ConfigError(
            f"DeepSpeed's ZeRO stage {stage} is asked for, and smollora trains with 2 and 3",
            "set --zero_stage 2 (gradients and moments are spread) or 3 (weights as well)",
        )
    section = _deepspeed_config()
    for what in ("param", "optimizer"):
        given = (section.get(f"offload_{what}") or {}).get("device", "none")
        asked = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "none")
        if {given, asked} - {"none"}:
            raise ConfigError(
                f"DeepSpeed is asked to offload (offload_{what}), which smollora does not do",
                f"set offload_{what}_device to none, and start more processes if memory runs out",
            )


def settle_environment(device: str) -> None:
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
    if uses_fsdp():
        os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if zero_stage() is not None and device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # else it compiles, at the first start, a way to talk that is faster than gloo
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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
