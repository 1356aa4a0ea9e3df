"""What all test files share: threads, order, garbage, the disk, and vLLM's environment made
meanwhile.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:  # a process a core, whatever those start included; read when torch is imported
    for _threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(_threads, "1")
    # torch would start processes that compile, and import torch anew in each
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from environment_of_vllm import begin_install  # noqa: E402

# How long an example takes says how busy the machine is: more tests run at once than it has cores.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

SLOWEST = (
    *("test_notebooks", "test_sharding", "test_activations", "test_smollm3_end_to_end"),
    *("test_restart", "test_four_bit", "test_exact", "test_launch", "test_pipeline", "test_cli"),
    *("test_serve_real", "test_in_a_terminal", "test_start", "test_compiled", "test_serve_install"),
    *("test_scale", "test_trl_pairs"),
)
"""Files that take longest, in the order in which they start: no process ends with one, and vLLM's
environment is made before the tests that serve with it.
"""

# Under nohup or in a script's background Ctrl-C is ignored, by programs under test as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

if WORKER:  # what only hands out the tests needs no torch
    import torch

    torch.set_num_threads(1)

os.fsync = lambda descriptor: None
"""The files of a test outlive the process, not the machine: the disk is not waited for, 7 ms a file
and some thousand files. What is written whole, and in which order, is tested with an `fsync` of the
test's own; programs that tests start have the real one.
"""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """`-n auto`: two processes more than there are cores. A fifth of the time a test waits, for a
    server, a terminal, the disk; with one more, the cores were idle for a seventh of it.
    """
    cores = yield
    return cores + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; the order is otherwise as it was."""
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where vLLM is going to be served, one process begins to make its environment."""
    if WORKER in (None, "gw0") and not session.config.option.collectonly:
        stems = {item.path.stem for item in session.items}
        if "test_serve_real" in stems:
            session.config.add_cleanup(begin_install())


_looked_through = 0


def pytest_runtest_setup() -> None:
    """Libraries and test modules are half a million objects that never become garbage. Each stage
    of a run collects, and looking through them was two thirds of the time of a tiny run; so they
    are put aside whenever more of them have been imported.
    """
    global _looked_through
    if len(sys.modules) >= _looked_through + 100:
        gc.collect()
        gc.freeze()
        _looked_through = len(sys.modules)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are slower on two threads, and much slower on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
