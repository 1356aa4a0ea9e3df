"""Ctrl-C in the middle of a step would leave half of an update: the step is finished first.

The first SIGINT or SIGTERM is noted, and training saves and ends after the step that runs. A second
one ends it at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Asked:
    """Whether somebody asked training to stop."""

    stop: bool = False


@contextmanager
def stop_after_step() -> Iterator[Asked]:
    """Catch SIGINT and SIGTERM while training runs; the handlers of before come back after it."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # signals cannot be caught there
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.stop:
            raise KeyboardInterrupt
        asked.stop = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
