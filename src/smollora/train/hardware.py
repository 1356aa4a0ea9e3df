"""What this machine can do: the compute type, a compiler, how much memory was used.

In: settings of the recipe. Out: facts. Nothing here trains.
"""

from __future__ import annotations

import resource
import shutil
from pathlib import Path


def compute_dtype(setting: str) -> str:
    """bfloat16 where the hardware multiplies it fast (CUDA, AMX, AVX512-BF16), else float32."""
    if setting != "auto":
        return setting
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def can_compile() -> bool:
    """True if torch.compile finds a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
