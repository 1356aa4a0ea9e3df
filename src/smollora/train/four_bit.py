"""A base whose frozen linear layers lie in memory as 4-bit numbers while it is trained (QLoRA).

In: a model folder, the compute type, the device. Out: the model with those layers as bitsandbytes'
`Linear4bit` (NF4, double quantization), everything else as `load_model` opens it: embeddings,
norms, head, and modules that are trained whole. transformers quantizes each weight as it reads it;
the folder stays as it is, and a merge goes into its full weights. Two surprises: where a processor
multiplies bfloat16 (AVX512-BF16), bitsandbytes repacks a layer that is asked without gradients, and
that layer gives none afterwards; and peft chooses its layers by a mark on the model.
Source: Dettmers et al. 2023, "QLoRA: efficient finetuning of quantized LLMs".
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smollora import launch
from smollora.architecture import read_config
from smollora.config import TrainSection
from smollora.errors import ConfigError, ModelError
from smollora.models import load_model, silence_bitsandbytes

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Of a weight: itself; an 8-bit scale for 64 of them; a 32-bit scale for 256 of those scales."""
WIDTHS = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""
FULL = "set train.base_weights=full"


@dataclass(frozen=True, slots=True)
class FourBitPlan:
    """What of a model would lie in memory as 4-bit numbers."""

    layers: int
    parameters: int
    """Weights of those layers."""
    kept: int
    """All other parameters; a tied head counted once."""

    def saved_bytes(self, dtype: str) -> int:
        """What that saves of the weights' memory where they would be of type `dtype`."""
        return round(self.parameters * (WIDTHS[dtype] - BITS / 8))


def check_four_bit(device: str) -> None:
    """Find what is missing before anything is loaded.

    Raises:
        ConfigError: bitsandbytes is not installed, does not work on this device, or the model is to
            be spread over processes.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "train.base_weights=4bit needs bitsandbytes, which is not installed",
            f"pip install 'smollora[4bit]', or {FULL}",
        )
    if launch.computes_in_step():
        name = "FSDP" if launch.uses_fsdp() else "DeepSpeed"
        raise ConfigError(
            f"train.base_weights=4bit under {name}: 4-bit layers are not spread over processes",
            f"launch with `accelerate launch --multi_gpu` or torchrun, or {FULL}",
        )
    if said := _try_out(device):
        raise ConfigError(
            f"train.base_weights=4bit: bitsandbytes does not work on this machine's {device}:"
            f" {said}",
            f"`python -m bitsandbytes` says what it misses; or {FULL}",
        )


def _place(device: str) -> str:
    """A device as torch names it: of several GPUs the one of this process."""
    return device if device == "cpu" else f"{device}:{os.environ.get('LOCAL_RANK') or 0}"


def _try_out(device: str) -> str:
    """Why a small weight cannot be made 4-bit and read again on a device; "" if it can."""
    silence_bitsandbytes()
    try:
        import torch
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        weight = torch.linspace(-1, 1, 4096, device=_place(device)).reshape(64, 64)
        packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        apart = float((dequantize_4bit(packed, state) - weight).abs().max())
    except Exception as error:  # a missing library, symbol or kernel: each raises its own kind
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "" if apart < 0.2 else f"a weight read again is off by {apart:.2g}"


def plan_four_bit(
    folder: Path, whole: Sequence[str] = (), *, trust_remote_code: bool = False
) -> FourBitPlan:
    """Read which layers would be 4-bit; no weights are loaded.

    Args:
        folder: the base.
        whole: names of modules that are trained whole.
        trust_remote_code: as for `load_model`.
    """
    import torch

    skeleton = _skeleton(folder, trust_remote_code)
    kept = [re.compile(rf"(?:{name})(?:\.|$)") for name in _full_modules(skeleton, whole)]
    chosen = [
        module
        for name, module in skeleton.named_modules()
        if type(module) is torch.nn.Linear and not any(each.match(name) for each in kept)
    ]
    parameters = sum(module.weight.numel() for module in chosen)
    return FourBitPlan(
        len(chosen), parameters, sum(p.numel() for p in skeleton.parameters()) - parameters
    )


def load_for_training(
    folder: Path, settings: TrainSection, *, device: str, dtype: str, trust_remote_code: bool
) -> Any:
    """The base as `train.base_weights` wants it.

    Args:
        folder: the base.
        settings: the recipe's train section.
        device: from `choose_device`; a full base is opened on the processor and moved later.
        dtype: the compute type.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ConfigError: 4-bit is asked for and does not go here.
        ModelError: the model cannot be opened.
    """
    if settings.base_weights == "full":
        return load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
    check_four_bit(device)
    return load_four_bit(
        folder,
        dtype=dtype,
        device=device,
        whole=settings.modules_to_save,
        trust_remote_code=trust_remote_code,
    )


def load_four_bit(
    folder: Path,
    *,
    dtype: str,
    device: str = "cpu",
    whole: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Any:
    """The model of a folder with 4-bit linear layers, in evaluation mode, on its device.

    Args:
        folder: full weights.
        dtype: in which the layers compute, and of everything that is not 4-bit.
        device: "cpu" or "cuda" (this process's own).
        whole: names of modules that are trained whole and stay full.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        ConfigError: the weights are quantized already, or no layer can be.
        ModelError: the model cannot be opened.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if there := read_config(folder).get("quantization_config"):
        kind = there.get("quant_method", "unknown") if isinstance(there, dict) else "unknown"
        raise ConfigError(
            f"train.base_weights=4bit, and the weights in {folder} are quantized already ({kind})",
            "give the full weights as model.source: a merge needs them",
        )
    skeleton = _skeleton(folder, trust_remote_code)
    model = load_model(
        folder,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            llm_int8_skip_modules=_full_modules(skeleton, whole),
        ),
        device_map={"": _place(device)},
    )
    layers = four_bit_layers(model)
    if not layers:
        raise ConfigError(
            f"train.base_weights=4bit: {type(model).__name__} has no plain linear layers", FULL
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # else repacked for good at the first validation
    return model


def _skeleton(folder: Path, trust_remote_code: bool) -> Any:
    """The model of a folder without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
        raise ModelError(
            f"cannot read the architecture of {folder}: {str(error).splitlines()[0][:200]}",
            "check config.json",
        ) from error


def _full_modules(skeleton: Any, whole: Sequence[str]) -> list[str]:
    """Patterns of the modules that stay full, as transformers matches them from a name's start."""
    head = skeleton.get_output_embeddings()
    names = [re.escape(name) for name, module in skeleton.named_modules() if module is head]
    return [*names, *(rf"(?:.*\.)?{re.escape(name)}" for name in whole)]


# ── a model that is open ─────────────────────────────────────────────────────────────────────────


def is_four_bit(module: Any) -> bool:
    """True for bitsandbytes' layer; does not import bitsandbytes."""
    kind = type(module)
    return kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes.")


def four_bit_layers(model: Any) -> list[Any]:
    """The 4-bit layers of a model, with or without adapters around them."""
    return [module for module in model.modules() if is_four_bit(module)]


def refuse_other_weights(model: Any, settings: TrainSection) -> None:
    """Raise where a model was not opened as the recipe says.

    Raises:
        ConfigError: 4-bit is asked for and the layers are full, or the other way round.
    """
    found = "4bit" if four_bit_layers(model) else "full"
    if found != settings.base_weights:
        raise ConfigError(
            f"train.base_weights={settings.base_weights}, and the model was opened with"
            f" {found} weights",
            "open it with smollora.train.four_bit.load_for_training",
        )


def base_weights_summary(model: Any, dtype: str) -> dict[str, Any]:
    """What the train stage's summary says of the base's weights.

    Args:
        model: with or without adapters.
        dtype: the compute type, in which the layers would otherwise lie in memory.
    """
    layers = four_bit_layers(model)
    if not layers:
        return {"base_weights": "full"}
    parameters = sum(layer.weight.quant_state.shape.numel() for layer in layers)
    held = sum(_held_bytes(layer.weight) for layer in layers)
    return {
        "base_weights": "4bit",
        "base_layers_4bit": len(layers),
        "base_parameters_4bit": parameters,
        "base_bytes_4bit": held,
        "base_bytes_saved": parameters * WIDTHS[dtype] - held,
    }


def _held_bytes(weight: Any) -> int:
    """A 4-bit weight with its scales and tables."""
    scales = weight.quant_state.as_dict(packed=True).values()
    return int(weight.nbytes) + sum(int(tensor.nbytes) for tensor in scales)


def describe_saving(summary: dict[str, Any]) -> str:
    """One line of what 4-bit layers save; "" for a full base."""
    if summary.get("base_weights") != "4bit":
        return ""
    held, saved = summary["base_bytes_4bit"], summary["base_bytes_saved"]
    return (
        f"4-bit base: {summary['base_layers_4bit']} layers of"
        f" {summary['base_parameters_4bit'] / 1e6:,.1f} million weights in {held / 2**20:,.1f} MiB"
        f" instead of {(held + saved) / 2**20:,.1f} MiB"
    )
