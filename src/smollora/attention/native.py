"""The same attention in C++ for bfloat16 (tree.cpp), compiled on this machine at its first use.

In: what `tree_attention` and its gradients are given. Out: the same, or a reason why this machine
or these tensors are served by PyTorch's operators instead (`describe`): that is no error, only
slower. The compiled file lies in the cache folder under a name made of all that it depends on, and
carries its own checksum: a file that was cut or changed is built again, for loading one kills the
process. It uses no header and no symbol of PyTorch's, so that compiling takes three seconds and
its version does not matter; the threads are those PyTorch has already, found in the OpenMP library
that it loaded.
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

SOURCE = Path(__file__).with_name("tree.cpp")
WIDTHS = (64, 128)
"""Sizes of a head that it computes."""
VECTORS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16")
MATRIX_UNITS = ("amx_tile", "amx_bf16")
"""What the processor must have, as Linux names it; the second are six times as fast."""
LONGEST = 300.0
"""Seconds that compiling may take."""
SWITCH = "SMOLLORA_NATIVE"
"""Environment variable: 0 leaves it unused."""
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Kernel:
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
    made_of = [_run([*compiler, "--version"]), *compiler, *options, SOURCE.read_text("utf-8")]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]
    folder = cache_folder() / "kernels"
    built = folder / f"tree-{key}.so"
    if _is_whole(built):
        return built
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as beside:
            made = Path(beside) / "tree.so"
            _run([*compiler, *options, "-o", str(made), str(SOURCE)])
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
    library.count_space.restype = ctypes.c_int64
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    threads = ctypes.CDLL(torch._C.__file__)  # a name is looked up in all that it loaded, too
    known = all(hasattr(threads, name) for name in names)
    found = [ctypes.cast(threads[name], ctypes.c_void_p) for name in names] if known else [None] * 3
    if not library.set_threads(*found):
        raise Unusable("Linux does not give the matrix units")
    return library


@cache
def find_kernel() -> Kernel | str:
    """The kernel, compiled if it has not been yet; or why it cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    there = processor_flags()
    if missing := [flag for flag in VECTORS if flag not in there]:
        return f"the processor has no {missing[-1]}"
    reason = ""
    for units, flags in (("AMX", VECTORS + MATRIX_UNITS), ("AVX512-BF16", VECTORS)):
        if there.issuperset(flags):
            try:
                return Kernel(_load(flags), units)
            except Unusable as error:
                reason = reason or str(error)
    return reason


def why_not(dtype: torch.dtype, wide: int) -> str:
    """Why tensors of this type and size of a head are not computed by it; "" if they are."""
    if dtype != torch.bfloat16:
        return f"it computes bfloat16, not {str(dtype).removeprefix('torch.')}"
    if wide not in WIDTHS:
        return f"it computes heads of {' or '.join(map(str, WIDTHS))}, not {wide}"
    found = find_kernel()
    return found if isinstance(found, str) else ""


def serves(query: Tensor, scale: float) -> bool:
    """True if the kernel computes attention of such queries."""
    here = query.device.type == "cpu" and scale > 0
    return here and not why_not(query.dtype, query.shape[3])


def describe(dtype: torch.dtype, wide: int) -> str:
    """What computes attention over trees on this processor, in words for a summary."""
    reason = why_not(dtype, wide)
    found = find_kernel() if not reason else ""
    return f"C++ kernel ({found.units})" if isinstance(found, Kernel) else f"PyTorch: {reason}"


def tokens_first(states: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Empty, of the size of [1, heads, length, head_dim], laid out token by token: then the layer
    beside attention copies nothing.
    """
    return states.new_empty(states.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`tree_attention`, for queries that it `serves`."""
    out = tokens_first(query)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    _call("attend", (query, key, value, out), lse, segments, scale)
    return out, lse


def differentiate(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`tree_attention_backward`, for the same."""
    made = tokens_first(query), tokens_first(key), tokens_first(value)
    states = (grad, query, key, value, out, *made)
    _call("differentiate_attention", states, lse.contiguous(), segments, scale)
    return made


def _call(name: str, states: Sequence[Tensor], lse: Tensor, segments: Tensor, scale: float) -> None:
    """Call the kernel; `states` [1, heads, length, head_dim] in the order of tree.cpp.

    Raises:
        ValueError: the table of segments speaks of tokens that are not there.
    """
    kernel = find_kernel()
    assert isinstance(kernel, Kernel)
    backward = len(states) > 4
    query, key = states[1:3] if backward else states[:2]
    states = [each.to(query.dtype) for each in states]
    dense = [each if each.stride(3) == 1 else each.contiguous() for each in states]
    table = segments.to(torch.int64).contiguous()
    of = (query.shape[1], key.shape[1], *query.shape[2:], len(table), torch.get_num_threads())
    sizes = (ctypes.c_int64 * 6)(*of)
    room = kernel.library.count_space(sizes, int(backward))
    space = torch.empty(room + 64, dtype=torch.uint8)
    addresses = (ctypes.c_void_p * len(dense))(*(each.data_ptr() for each in dense))
    steps = [step for each in dense for step in each.stride()[1:3]]
    refused = getattr(kernel.library, name)(
        sizes,
        addresses,
        (ctypes.c_int64 * len(steps))(*steps),
        ctypes.c_void_p(lse.data_ptr()),
        ctypes.c_void_p(table.data_ptr()),
        ctypes.c_float(scale),
        ctypes.c_void_p(-(-space.data_ptr() // 64) * 64),
    )
    if refused:
        raise ValueError(f"the table of segments goes past the {query.shape[2]} tokens")
