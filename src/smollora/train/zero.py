"""DeepSpeed's ZeRO 2 and 3 through accelerate: what they do otherwise than torch's own.

In: the trainer's module, the plugin that accelerate made from its options or config file, the
optimizer that DeepSpeed wrapped. Out: a DeepSpeed config that leaves the recipe its decisions, and
moments as every other training holds them, so that one checkpoint serves all ways to launch. The
surprises: moments lie flat and split over the processes; of ZeRO 3 a parameter between two uses is
an empty tensor; and head and embedding are used outside of their modules' own forward pass, so the
root is told to gather them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smollora import launch

MOMENTS = ("exp_avg", "exp_avg_sq")
RECIPES = ("optimizer", "scheduler", "fp16", "bf16")
"""Sections of DeepSpeed's config that the recipe decides: they are left out."""


def configure(plugin: Any, *, clip: float) -> None:
    """Leave the recipe what it decides: optimizer, schedule, types, clipping, sizes of batches."""
    config = plugin.deepspeed_config
    for section in RECIPES:
        config.pop(section, None)
    config["gradient_clipping"] = clip
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = "auto"
    # a Trainer that goes on looks for DeepSpeed's own pickled checkpoint; ours is loaded by loop.py
    import transformers.trainer

    transformers.trainer.deepspeed_load_checkpoint = lambda *_, **__: None


def gather_by_layer(module: Any, layer_names: Sequence[str]) -> None:
    """ZeRO 3: a decoder layer is gathered as one; whatever lies outside of them, with the root."""
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    layers = [each for each in module.modules() if type(each).__name__ in layer_names]
    set_z3_leaf_modules(module, list({type(layer) for layer in layers}))
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in inside:
            deepspeed.zero.register_external_parameter(module, parameter)


def is_spread(parameter: Any) -> bool:
    """True for a parameter of ZeRO 3."""
    return hasattr(parameter, "ds_id")


def whole_parameter(parameter: Any) -> Any:
    """A trained parameter of ZeRO 3 put together; every process must call this."""
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter).clone()


def numbers_held(parameter: Any) -> tuple[int, int]:
    """(here, in all): numbers of a parameter of ZeRO 3; those that are gathered count as well."""
    return parameter.ds_tensor.numel() + parameter.data.numel(), parameter.ds_numel


def optimizer_state(optimizer: Any, trained: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What AdamW's own state_dict would be in one process; every process must call this.

    Args:
        optimizer: as accelerate gave it back.
        trained: the parameters of the optimizer's groups before DeepSpeed took them.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    sharded = optimizer.optimizer
    parameters = [parameter for group in trained for parameter in group]
    if not is_spread(parameters[0]):
        _find_moments(sharded)
    step = next(iter(sharded.optimizer.state.values()))["step"]
    state = {
        index: {
            "step": step.clone(),
            **{key: safe_get_full_optimizer_state(parameter, key).clone() for key in MOMENTS},
        }
        for index, parameter in enumerate(parameters)
    }
    numbers = iter(range(len(parameters)))
    groups = [
        {**group, "params": [next(numbers) for _ in own]}
        for group, own in zip(sharded.param_groups, trained, strict=True)
    ]
    return {"state": state, "param_groups": groups}


def restore_optimizer(
    optimizer: Any, trained: Sequence[Sequence[Any]], saved: Mapping[str, Any]
) -> None:
    """Put a state_dict of one process into a DeepSpeed optimizer that has not stepped yet."""
    import torch
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    sharded = optimizer.optimizer
    parameters = [parameter for group in trained for parameter in group]
    spread = is_spread(parameters[0])
    groups = "fp32_partitioned_groups_flat" if spread else "single_partition_of_fp32_groups"
    for part in getattr(sharded, groups):  # what AdamW would make in its first step
        zeros = {key: torch.zeros_like(part) for key in MOMENTS}
        sharded.optimizer.state[part] = {"step": saved["state"][0]["step"].clone(), **zeros}
    if not spread:
        _find_moments(sharded)
    for index, parameter in enumerate(parameters):
        for key in MOMENTS:
            value = saved["state"][index][key].to(parameter.device)
            if spread:
                safe_set_local_optimizer_state(parameter, _own_part(value, parameter), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
    for group, other in zip(sharded.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in other.items() if key != "params"})


def _find_moments(sharded: Any) -> None:
    """Let ZeRO 2 note where a parameter's moments lie; of itself (0.19.8) it does so after the step
    of the first group, when the second has none.
    """
    sharded._hp_optimizer_states_linked = False
    sharded._lazy_init_hp_params_optimizer_state()


def _own_part(value: Any, parameter: Any) -> Any:
    """This process's part of a whole tensor as ZeRO 3 cuts it: equal parts, the last filled up."""
    size = parameter.ds_tensor.numel()
    flat = value.new_zeros(size * launch.processes())
    flat[: value.numel()] = value.flatten()
    return flat[size * launch.rank() :][:size]
