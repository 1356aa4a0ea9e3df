"""Kernels in C++ for bfloat16 on a CPU, compiled on this machine at their first use.

In: the sources of this folder (units.h and narrow.h are what they share; attention.cpp serves
attention/kernel.py, gate.cpp serves train/gate.py). Out: a loaded library, or a reason why
this machine is served by PyTorch's operators instead: that is no error, only slower. The compiled
file lies in the cache folder under a name made of all that it depends on, and carries its own
checksum: a file that was cut or changed is built again, for loading one kills the process. It uses
no header and no symbol of PyTorch's, so that compiling takes seconds and its version does not
matter; the threads are those PyTorch has already, found in the OpenMP library that it loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from smollora.models import cache_folder

FOLDER = Path(__file__).parent
HEADERS = ("units.h", "narrow.h")
SOURCES = ("units.cpp", "attention.cpp", "gate.cpp", "softmax.cpp")
VECTORS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
MATRIX_UNITS = ("amx_tile", "amx_bf16")
"""What the processor must have, as Linux names it; the second are six times as fast."""
LONGEST = 300.0
"""Seconds that compiling may take."""
WIDEST = 64
"""The largest rank of an adapter that the kernels multiply with (narrow.h)."""
SWITCH = "SMOLLORA_NATIVE"
"""Environment variable: 0 leaves them unused."""
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled functions, loaded."""

    library: ctypes.CDLL
    units: str
    """What multiplies: "AMX" or "AVX512-BF16"."""


class Unusable(Exception):
    """Why the kernel cannot be had here; never leaves this module."""


def processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux tells it; nothing on other systems."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return frozenset()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    found = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return frozenset(next(found, "").split())


def find_compiler() -> list[str]:
    """The command of the C++ compiler that torch.compile would take: $CXX, else g++ or clang++.

    Raises:
        Unusable: there is none.
    """
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else [["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise Unusable(f"no C++ compiler ({given[0] if given else 'g++ or clang++'})")


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=LONGEST, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise Unusable(f"{command[0]} failed: {lines[0].strip()[:200]}")
    return done.stdout


def build(flags: Sequence[str]) -> Path:
    """The compiled file for a processor with these flags: from the cache, else compiled now.

    Raises:
        Unusable: no compiler, it fails, or the cache folder cannot be written.
    """
    compiler = find_compiler()
    options = ["-std=c++17", "-O3", "-fPIC", "-shared", "-mfma"]
    options += ["-m" + flag.replace("_", "-").replace("avx512-", "avx512") for flag in flags]
    options += ["-DSMOLLORA_AMX"] * ("amx_bf16" in flags)
    texts = [(FOLDER / name).read_text("utf-8") for name in (*HEADERS, *SOURCES)]
    made_of = [_run([*compiler, "--version"]), *compiler, *options, *texts]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]
    folder = cache_folder() / "kernels"
    built = folder / f"kernels-{key}.so"
    if _is_whole(built):
        return built
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as beside:
            made = Path(beside) / "kernels.so"
            _run([*compiler, *options, "-o", str(made), *(str(FOLDER / name) for name in SOURCES)])
            content = made.read_bytes()
            made.write_bytes(content + hashlib.sha256(content).digest())
            made.replace(built)
    except OSError as error:
        raise Unusable(f"{folder} cannot be written: {error.strerror or error}") from error
    return built


def _is_whole(built: Path) -> bool:
    try:
        content = built.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _load(flags: Sequence[str]) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(build(flags)))
    except OSError as error:
        raise Unusable(f"what was compiled does not load: {error}") from error
    for count in (library.count_attention_space, library.count_gate_space):
        count.restype = ctypes.c_int64
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    threads = ctypes.CDLL(torch._C.__file__)  # a name is looked up in all that it loaded, too
    known = all(hasattr(threads, name) for name in names)
    found = [ctypes.cast(threads[name], ctypes.c_void_p) for name in names] if known else [None] * 3
    if not library.set_threads(*found):
        raise Unusable("Linux does not give the matrix units")
    return library


@cache
def find_kernels() -> Kernels | str:
    """The kernels, compiled if they have not been yet; or why they cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    there = processor_flags()
    if missing := [flag for flag in VECTORS if flag not in there]:
        return f"the processor has no {missing[-1]}"
    reason = ""
    for units, flags in (("AMX", VECTORS + MATRIX_UNITS), ("AVX512-BF16", VECTORS)):
        if there.issuperset(flags):
            try:
                return Kernels(_load(flags), units)
            except Unusable as error:
                reason = reason or str(error)
    return reason


def why_not(dtype: torch.dtype) -> str:
    """Why values of this type are not computed by the kernels; "" if they are."""
    if dtype != torch.bfloat16:
        return f"it computes bfloat16, not {str(dtype).removeprefix('torch.')}"
    found = find_kernels()
    return found if isinstance(found, str) else ""


def describe(reason: str) -> str:
    """What computes, in words for a summary: the kernel where there is no reason why not."""
    return f"PyTorch: {reason}" if reason else f"C++ kernel ({kernels().units})"


def kernels() -> Kernels:
    """The kernels, which must have been found."""
    found = find_kernels()
    assert isinstance(found, Kernels), found
    return found


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Whole numbers as a kernel takes them."""
    return (ctypes.c_int64 * len(values))(*values)


def dense(states: Tensor) -> Tensor:
    """The same values, the last dimension dense."""
    return states if states.stride(-1) == 1 else states.contiguous()


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Where tensors begin; the caller holds them."""
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


@dataclass(frozen=True, slots=True)
class Space:
    """Memory for what a kernel puts aside, from an address that divides by 64."""

    held: Tensor

    @classmethod
    def of(cls, size: int) -> Space:
        """So many bytes."""
        return cls(torch.empty(size + 64, dtype=torch.uint8))

    @property
    def at(self) -> ctypes.c_void_p:
        """Where it begins."""
        return ctypes.c_void_p(-(-self.held.data_ptr() // 64) * 64)
