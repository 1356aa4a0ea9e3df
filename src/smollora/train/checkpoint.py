"""Checkpoints: all that a training needs to go on as if nothing had happened.

A checkpoint is a folder `step-N`: `adapter.safetensors` (what is trained), `optimizer.safetensors`
(its moments), `random.safetensors` (generator states, one line a process), `trainer_state.json`
(transformers' own) and `state.json` (pace, curve, learning rates, and what the training was started
with). Nothing is pickled. It is written beside its place, flushed to the disk, and renamed; only
then the one before is removed: whenever the process or the machine dies, one whole checkpoint is
left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError, SmolloraError
from smollora.runs import whole_folder, write_json
from smollora.train import zero

PREFIX = "step-"
BEST = "best"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    folder: Path
    step: int

    def state(self) -> dict[str, Any]:
        """What `state.json` holds.

        Raises:
            SmolloraError: it cannot be read.
        """
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise SmolloraError(
                f"the checkpoint {self.folder} cannot be read: {error}",
                "start over with train.resume=false",
            ) from error
        return state


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint under `folder`."""
    steps = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    found = sorted(int(step) for step in steps if step.isdigit())
    return Checkpoint(folder / f"{PREFIX}{found[-1]:08d}", found[-1]) if found else None


def clear_checkpoints(folder: Path) -> None:
    """Remove every checkpoint: the training is finished, or starts over."""
    shutil.rmtree(folder, ignore_errors=True)


def write_checkpoint(
    folder: Path, step: int, fill: Callable[[Path], None], state: Mapping[str, Any]
) -> Checkpoint:
    """Write the checkpoint of a step, then remove those before it.

    Args:
        folder: holds the checkpoints.
        fill: writes the tensors into the folder that it is given.
        state: JSON values.

    Raises:
        SmolloraError: the disk is full, or the folder cannot be written; the last one is whole.
    """
    last = find_checkpoint(folder)
    path = folder / f"{PREFIX}{step:08d}"
    if last is not None and last.step == step:
        return last
    try:
        with whole_folder(path) as work:
            fill(work)
            write_json(work / "state.json", state)
            flush(work)
    except Exception as error:  # OSError, SafetensorError, SmolloraError of the JSON file
        if not _is_about_the_disk(error):
            raise
        kept = f"that of step {last.step} is whole" if last else "there is none before it"
        raise SmolloraError(
            f"cannot write the checkpoint of step {step} to {folder}: {_reason(error)}; {kept}",
            "free some space; the same command goes on"
            + (f" from step {last.step}" if last else ""),
        ) from error
    flush(folder)  # the new name itself
    for old in folder.glob(f"{PREFIX}*"):
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(path, step)


def _is_about_the_disk(error: Exception) -> bool:
    return isinstance(error, OSError | SmolloraError) or type(error).__name__ == "SafetensorError"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "message", error)).splitlines()[0]


def flush(folder: Path) -> None:
    """Return once a folder and its files are on the disk."""
    for path in (folder, *(path for path in folder.iterdir() if path.is_file())):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".{BEST}*"):
        shutil.rmtree(path, ignore_errors=True)


def refuse_other(checkpoint: Checkpoint, origin: Mapping[str, Any]) -> None:
    """Raise where a checkpoint belongs to another training.

    Args:
        checkpoint: found.
        origin: what this training is started with: JSON values, settings under "recipe".

    Raises:
        ConfigError: recipe, base or rows differ; each difference is named.
    """
    there = checkpoint.state().get("origin", {})
    here = json.loads(json.dumps(origin))
    lines = []
    old, new = there.get("recipe", {}), here["recipe"]
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            lines.append(f"train.{key}: {old.get(key)} there, {new.get(key)} here")
    for key in sorted(set(here) - {"recipe"}):
        if there.get(key) != here[key]:
            lines.append(
                f"{key}: another one"
                if len(str(here[key])) > 40
                else f"{key}: {there.get(key)} there, {here[key]} here"
            )
    if lines:
        raise ConfigError(
            f"the training that was cut off at step {checkpoint.step} ({checkpoint.folder}) was"
            " started otherwise\n  " + "\n  ".join(lines),
            "go on with the same settings, or start over with train.resume=false",
        )


# ── tensors ──────────────────────────────────────────────────────────────────────────────────────


def trained_tensors(peft: Any) -> dict[str, Any]:
    """What is trained, by name."""
    return {name: p for name, p in peft.named_parameters() if p.requires_grad}


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors; those that are spread over processes (FSDP, ZeRO 3) put together, for which
    every process must call this.
    """
    return {name: _whole(tensor) for name, tensor in tensors.items()}


def _whole(tensor: Any) -> Any:
    if zero.is_spread(tensor):
        return zero.whole_parameter(tensor)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def share_of(tensor: Any, like: Any) -> Any:
    """A whole tensor as `like` holds it: this process's share where that one is spread."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    here = tensor.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def share_held(peft: Any) -> float:
    """Share of the model's numbers that this process holds; 1 where nothing is spread."""
    counts = [_numbers_held(parameter) for parameter in peft.parameters()]
    return sum(here for here, _ in counts) / sum(everywhere for _, everywhere in counts)


def _numbers_held(parameter: Any) -> tuple[int, int]:
    if zero.is_spread(parameter):
        return zero.numbers_held(parameter)
    here = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return here.numel(), parameter.numel()


def gather_trained(peft: Any) -> None:
    """Put what is trained together in every process; the model computes no more after that."""
    import torch

    for module in peft.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.requires_grad:
                continue
            if (together := _whole(parameter)) is not parameter:
                module._parameters[name] = torch.nn.Parameter(together.detach())


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Any]:
    """Read them again.

    Raises:
        SmolloraError: not there, or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SmolloraError(
            f"{path} cannot be read: {error}", "start over with train.resume=false"
        ) from error
    return loaded


def restore_trained(peft: Any, path: Path) -> None:
    """Put saved weights into the model.

    Raises:
        SmolloraError: they are those of another adapter.
    """
    import torch

    saved, own = load_tensors(path), trained_tensors(peft)
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in own.items()}:
        raise SmolloraError(
            f"{path} holds other tensors than this adapter has",
            "start over with train.resume=false",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An optimizer's state_dict as (tensors by "index.name", parameter groups as JSON values)."""
    tensors = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, [dict(group) for group in state["param_groups"]]


def join_optimizer(tensors: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The reverse of `split_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    pairs = ("betas",)  # JSON has no tuples
    return {
        "state": state,
        "param_groups": [
            {key: tuple(value) if key in pairs else value for key, value in group.items()}
            for group in groups
        ],
    }


# ── the best adapter ─────────────────────────────────────────────────────────────────────────────


def write_best(folder: Path, step: int, peft: Any) -> None:
    """Keep what is trained as it is after `step`; the one kept before goes when this one is whole.

    Raises:
        SmolloraError: the disk is full, or the folder cannot be written.
    """
    path = folder / f"{BEST}-{step:08d}"
    if path.exists():  # of the run that was cut off: the same step gives the same weights
        return
    try:
        with whole_folder(path) as work:
            save_tensors(work / "adapter.safetensors", trained_tensors(peft))
            flush(work)
    except Exception as error:
        if not _is_about_the_disk(error):
            raise
        raise SmolloraError(
            f"cannot write the best adapter so far to {folder}: {_reason(error)}",
            "free some space; the same command goes on from the last checkpoint",
        ) from error


def restore_best(folder: Path, step: int, peft: Any) -> None:
    """Put the weights that `write_best` kept into the model."""
    restore_trained(peft, folder / f"{BEST}-{step:08d}" / "adapter.safetensors")


def drop_other_bests(folder: Path, keep: int | None) -> None:
    """Remove kept adapters that neither the training nor its last checkpoint names."""
    for path in folder.glob(f"{BEST}-*"):
        if keep is None or path.name != f"{BEST}-{keep:08d}":
            shutil.rmtree(path, ignore_errors=True)


def line_of(states: Any, rank: int) -> Any:
    """One process's line of the generators' states [processes, bytes].

    A copy: torch (2.13) reads a generator's state from where the storage begins, so that a view
    crashes it or sets the state of the first process.
    """
    return states[rank].clone()
