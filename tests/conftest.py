"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

SLOWEST = ("test_serve_real", "test_notebooks", "test_smollm3_end_to_end", "test_trl_pairs")
"""Files that take a minute or more each: they start first, so that no process ends with one."""

# Under nohup or in a script's background Ctrl-C is ignored, by programs under test as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a process a core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; the order is otherwise as it was."""
    items.sort(key=lambda item: item.path.stem not in SLOWEST)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
