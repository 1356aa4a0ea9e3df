"""Keeps freed memory in the process instead of giving it back to the system at every step; gives it
back where asked to.

glibc returns every freed block of more than 128 KiB to the system and asks for fresh pages at the
next allocation. Training and generation allocate the same large tensors thousands of times, and on
virtual machines a page fault is so slow that this took more than half of the time (docs/log.md).
Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; False where there is no glibc (macOS, Windows, musl)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept and mallopt(_M_TOP_PAD, 64 * 2**20))


def give_back_freed_memory() -> bool:
    """Return to the system what is free, between steps or stages: what is kept is in pieces, and
    the process grows by what no longer fits into them. False where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    gc.collect()
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False
