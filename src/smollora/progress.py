"""Progress on a terminal: a bar with rate and ETA, a plain line now and then where there is no
terminal, nothing with --quiet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Meter:
    """Tells how far a piece of work is."""

    def __init__(self, console: Console, label: str, total: int | None, unit: str) -> None:
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._start = self._said = time.monotonic()
        self._done = self._before = 0
        self._bar: Progress | None = None
        if console.is_terminal and not console.quiet:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, rate="", note="")
            self._bar.start()

    def total(self, total: int) -> None:
        """Say how much there is, once it is known."""
        if self._total != total:
            self._total = total
            if self._bar is not None:
                self._bar.update(self._task, total=total)

    def start_from(self, done: int) -> None:
        """Say that `done` units were finished before this meter began; they count for no rate."""
        if self._before != done:
            self._before = done
            if self._bar is not None:
                self._bar.reset(self._task, total=self._total, completed=done)

    def to(self, done: int, note: str = "") -> None:
        """Say that `done` units are finished; `note` goes at the end of the line."""
        self._done = done
        passed = time.monotonic() - self._start
        now = done - self._before
        rate = f"{now / passed:.1f} {self._unit}/s" if passed > 0.5 else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=rate, note=note)
        elif time.monotonic() - self._said > 20:
            self._said = time.monotonic()
            left = ""
            if self._total and now > 0:
                left = f", {passed / now * (self._total - done):.0f} s left"
            of = f"/{self._total}" if self._total else ""
            self._console.print(
                f"  {self._label}: {done}{of} {self._unit}, {rate}{left}  {note}", highlight=False
            )

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def meter(
    console: Console, label: str, total: int | None = None, unit: str = "rows"
) -> Iterator[Meter]:
    """A `Meter` that is closed whatever happens."""
    shown = Meter(console, label, total, unit)
    try:
        yield shown
    finally:
        shown.close()
