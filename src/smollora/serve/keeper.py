"""Runs a server as a process group and ends all of it when whoever asked for it is gone.

Started by `process` as a program of its own, standard library only: `python keeper.py GRACE
COMMAND...`. Its standard input is a pipe that the asker holds open. When that closes, for whatever
reason (the asker ends, is killed, loses its terminal), or when the server itself ends, every
process of the server's group is ended: asked first, killed after GRACE seconds. The surprise this
is for: vLLM is a family of processes, and a child that outlives kill -9 of its parent keeps
gigabytes and the port.

It prints the server's process id first, and ends with the server's exit status.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

_POLL_SECONDS = 0.1


def keep(grace: float, command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; returns its exit status."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # the log; our own standard output tells the process id
        stderr=sys.stderr,
        start_new_session=True,
        preexec_fn=_default_signals,
    )
    print(child.pid, flush=True)
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if readable and not os.read(0, 4096):
            break
    _end_group(child, grace)
    return child.wait()


def _default_signals() -> None:
    """What is ignored here would be ignored there."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    """The server ends its workers when it is asked; what is left of the group is killed."""
    if child.poll() is None:
        _signal(child.pid, signal.SIGTERM)
        ends = time.monotonic() + grace
        while time.monotonic() < ends and child.poll() is None:
            time.sleep(_POLL_SECONDS)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, which: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, which)


if __name__ == "__main__":
    status = keep(float(sys.argv[1]), sys.argv[2:])
    sys.exit(status if status >= 0 else 128 - status)
