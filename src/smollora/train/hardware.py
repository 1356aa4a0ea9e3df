"""What this machine can do: device, compute type, a compiler, how much memory was used.

In: settings of the recipe. Out: facts, or a refusal where the recipe asks for what is not there.
Nothing here trains.
"""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from smollora.errors import ConfigError


def choose_device(setting: str) -> str:
    """ "cuda" or "cpu".

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if setting == "cuda" and not there:
        build = "" if torch.version.cuda else f"; torch {torch.__version__} is built without CUDA"
        raise ConfigError(
            f"train.device=cuda, and torch sees no GPU{build}",
            "install a CUDA build of torch and check nvidia-smi, or set train.device=auto",
        )
    return "cuda" if there and setting != "cpu" else "cpu"


def compute_dtype(setting: str, device: str | None = None) -> str:
    """bfloat16 where the hardware multiplies it fast (CUDA, AMX, AVX512-BF16), else float32.

    Args:
        setting: "auto", or the type itself.
        device: from `choose_device`; None: a GPU where there is one.

    Raises:
        ConfigError: bfloat16 on a GPU that cannot compute it.
    """
    import torch

    on_gpu = (device or choose_device("auto")) == "cuda"
    if setting == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(
            f"train.dtype=bfloat16, which {torch.cuda.get_device_name()} does not compute",
            "set train.dtype=float32 (or auto)",
        )
    if setting != "auto":
        return setting
    if on_gpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(False) else "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def can_compile() -> bool:
    """True if torch.compile finds a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def peak_memory(device: str = "cpu") -> int:
    """Peak memory so far, bytes: resident, of this process; on a GPU, of its tensors."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
