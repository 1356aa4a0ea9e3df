"""What a machine is: torch and its threads, GPUs, processor, memory, disk; and what each of them
makes slow.

In: the machine, or the text of its files, so that a test can be another machine. Out: `Finding`s.
Nothing is changed and the network is not asked.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "slow", "absent", "wrong"]
NEEDED_MEMORY = 9 * 10**9
"""Bytes that the starter run wants free (README.md: its peak)."""
NEEDED_DISK = 2 * 10**9
"""Bytes that the starter run leaves or unpacks (README.md)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the environment."""

    group: str
    name: str
    value: str
    state: State = "ok"
    advice: str = ""
    """What it means and what to do; "" where all is well."""


# ── torch and the processors ─────────────────────────────────────────────────────────────────────


def check_torch() -> list[Finding]:
    """The build, its threads, and the GPUs that it sees."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "torch", "not installed", "wrong", "pip install torch")]
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    found = [Finding("torch", "torch", f"{torch.__version__}, {build}")]
    found.append(
        check_threads(torch.get_num_threads(), len(usable_cores()), dict(os.environ), quota())
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            size = (
                f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
            )
            fast = torch.cuda.is_bf16_supported()
            advice = "" if fast else "no bfloat16: training computes in float32"
            state: State = "ok" if fast else "slow"
            found.append(Finding("torch", f"GPU {index}", f"{card.name}, {size}", state, advice))
        return found
    found.append(check_cards(_nvidia_cards(), build))
    return found


def check_threads(
    threads: int, cores: int, variables: Mapping[str, str], share: float | None
) -> Finding:
    """Whether torch computes on the cores that this process may use."""
    value = f"{threads} of {cores} usable cores"
    if share is not None and threads > share + 0.5:
        advice = f"the container may use {share:g} cores: set OMP_NUM_THREADS={max(1, int(share))}"
        return Finding("torch", "threads", value, "slow", advice)
    if threads < cores // 2 or (threads == 1 and cores > 1):
        why = " (OMP_NUM_THREADS is set)" if variables.get("OMP_NUM_THREADS") else ""
        return Finding("torch", "threads", value, "slow", f"most cores stand idle{why}")
    return Finding("torch", "threads", value)


def check_cards(cards: list[str], build: str) -> Finding:
    """What it means that torch sees no GPU."""
    if cards:
        advice = f"torch is {build}: install a CUDA build of it, or check the driver"
        return Finding("torch", "GPU", f"{', '.join(cards)}, but torch sees none", "wrong", advice)
    advice = (
        "training and probing run on the CPU: a model of 135M takes minutes, one of 3B wants a GPU"
    )
    return Finding("torch", "GPU", "none", "slow", advice)


def _nvidia_cards() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def check_processor(cpuinfo: str, cores: int) -> list[Finding]:
    """The processor and how it multiplies bfloat16.

    Args:
        cpuinfo: text of /proc/cpuinfo; "" where there is none.
        cores: that this process may use.
    """
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    few = cores < 2
    found = [
        Finding(
            *("processor", "cores", f"{cores} usable, {name}"),
            "slow" if few else "ok",
            "preparing, training and generating share one core" if few else "",
        )
    ]
    listed = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.MULTILINE)
    flags = set(listed[1].split()) if listed else set()
    if not listed:
        advice = "not known here; train.dtype=auto takes float32"
        return [*found, Finding("processor", "bfloat16", "unknown", "slow", advice)]
    if "amx_bf16" in flags:
        return [*found, Finding("processor", "bfloat16", "matrix units (AMX)")]
    if "avx512_bf16" in flags:
        return [*found, Finding("processor", "bfloat16", "AVX-512 BF16, no matrix units (AMX)")]
    width = next((w for w in ("avx512f", "avx2", "asimd") if w in flags), "no wide vectors")
    advice = "no fast bfloat16: train.dtype=auto computes in float32, slower and in more memory"
    return [*found, Finding("processor", "bfloat16", f"none ({width})", "slow", advice)]


def usable_cores() -> set[int]:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def quota() -> float | None:
    """Cores that the container may use at a time (cgroup v2); None without a limit."""
    limit, _, period = read_text("/sys/fs/cgroup/cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdigit() and period.strip().isdigit() else None


# ── memory and disk ──────────────────────────────────────────────────────────────────────────────


def available_memory() -> int | None:
    """Bytes that a process can still take: of the machine, and of its container; None: unknown."""
    return memory_of(
        read_text("/proc/meminfo"),
        read_text("/sys/fs/cgroup/memory.max"),
        read_text("/sys/fs/cgroup/memory.current"),
    )


def memory_of(meminfo: str, limit: str, used: str) -> int | None:
    """The smaller of what the machine has free and what the container may still take."""
    free = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    sizes = [int(free[1]) * 1024] if free else []
    if limit.strip().isdigit() and used.strip().isdigit():
        sizes.append(int(limit) - int(used))
    return min(sizes) if sizes else None


def check_memory(available: int | None) -> Finding:
    """Whether the starter run fits."""
    if available is None:
        return Finding("memory", "available", "unknown")
    value = f"{available / 2**30:.1f} GiB"
    if available >= NEEDED_MEMORY:
        return Finding("memory", "available", value)
    advice = (
        f"the starter run wants {NEEDED_MEMORY / 1e9:.0f} GB: close something, or lower"
        " train.batch_tokens and probe.batch_tokens"
    )
    return Finding("memory", "available", value, "wrong", advice)


def check_disks(places: Mapping[str, Path]) -> list[Finding]:
    """Free space where runs and the cache go."""
    found = []
    for name, path in places.items():
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        advice = ""
        if not writable:
            advice = "cannot be written: choose another with --runs, or set SMOLLORA_CACHE"
        elif free < NEEDED_DISK:
            advice = f"the starter run wants {NEEDED_DISK / 1e9:.0f} GB"
        value = f"{free / 1e9:.1f} GB free at {path}"
        found.append(Finding("disk", name, value, ok_if(not advice), advice))
    return found


def read_text(path: str) -> str:
    """The text of a file; "" where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def ok_if(fine: bool) -> State:
    """ "ok" or "wrong"."""
    return "ok" if fine else "wrong"
