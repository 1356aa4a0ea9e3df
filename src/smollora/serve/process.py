"""A running server: started as a group of processes, waited for, stopped whole.

In: a command, a log file. Out: a `Server` while the `with` block lasts; after it no process of the
server is left, also when this process is killed (`keeper` sees to it). The surprise: a port that
answers proves nothing, for another server may have taken it in between; so health counts only while
the process that was started lives and lists the model under its name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from smollora.errors import SmolloraError
from smollora.serve import keeper
from smollora.serve.environment import child_environment

GRACE_SECONDS = 15.0
"""Given to a server to end by itself."""
POLL_SECONDS = 0.5
_LAST_LINES = 15

Say = Callable[[float, str], None]
"""(seconds waited, the last line of the log)."""


@dataclass
class Server:
    """A server that was started."""

    keeper: subprocess.Popen[bytes]
    pid: int
    """Of the server itself, which leads its process group."""
    log: Path

    @property
    def lives(self) -> bool:
        """True while the server runs."""
        return self.keeper.poll() is None

    def last_lines(self, count: int = _LAST_LINES) -> list[str]:
        """The end of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-count:]

    def wait_until_ended(self) -> int:
        """Exit status of the server; lasts until it ends."""
        return self.keeper.wait()

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """End the whole group; returns when it is gone."""
        assert self.keeper.stdin is not None
        with suppress(OSError):
            self.keeper.stdin.close()
        try:
            self.keeper.wait(timeout=grace + 5)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        with suppress(ProcessLookupError):  # only if the keeper itself was killed
            os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    grace: float = GRACE_SECONDS,
) -> Iterator[Server]:
    """A server for the time of a `with` block.

    Args:
        command: what to start.
        log: file for everything it says; written anew.
        environment: variables beside this process's own.
        grace: seconds that it is given to end by itself.

    Raises:
        SmolloraError: it cannot be started, or its log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("wb")
    except OSError as error:
        raise SmolloraError(
            f"cannot write the server's log {log}: {error.strerror}", "choose another with --log"
        ) from error
    with stream:
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", str(keeper.__file__), str(grace), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=child_environment(PYTHONUNBUFFERED="1", **(environment or {})),
            start_new_session=True,  # Ctrl-C on the terminal reaches this process alone
        )
    assert started.stdout is not None
    said = started.stdout.readline()
    if not said.strip().isdigit():
        started.wait()
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise SmolloraError(
            f"{command[0]} cannot be started: {lines[-1][:200] if lines else 'no message'}",
            "check --python or --env",
        )
    server = Server(started, int(said), log)
    try:
        yield server
    finally:
        server.stop(grace)


def wait_for_health(
    server: Server, base_url: str, name: str, *, seconds: float, say: Say | None = None
) -> float:
    """Wait until the server is well and lists the model; returns the seconds it took.

    Raises:
        SmolloraError: it ended, or the time is over; the last lines of its log are in the message.
    """
    start = time.monotonic()
    told = say or (lambda waited, line: None)
    while True:
        waited = time.monotonic() - start
        if not server.lives:
            raise _gone(server, f"the server ended after {waited:.0f} s with {_status(server)}")
        left = seconds - waited
        if left <= 0:
            raise _gone(server, f"the server is not ready after {seconds:.0f} s", slow=True)
        told(waited, (server.last_lines(1) or [""])[0])
        if _is_well(base_url, name, min(5.0, max(0.5, left))) and server.lives:
            return time.monotonic() - start
        time.sleep(POLL_SECONDS)


def _is_well(base_url: str, name: str, timeout: float) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/health", timeout=timeout) as answer:
            if answer.status != 200:
                return False
        request = urllib.request.Request(f"{base_url}/v1/models", headers=authorization())
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            listed = json.load(answer)
        return any(each.get("id") == name for each in listed.get("data", []))
    except (OSError, ValueError, AttributeError, urllib.error.URLError):
        return False


def authorization() -> dict[str, str]:
    """The header for a server that was started with VLLM_API_KEY in the environment."""
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _status(server: Server) -> str:
    status = server.keeper.returncode
    return f"signal {status - 128}" if status > 128 else f"exit code {status}"


def _gone(server: Server, what: str, *, slow: bool = False) -> SmolloraError:
    lines = "\n".join(f"  | {line[:200]}" for line in server.last_lines())
    hint = f"the whole log is {server.log}"
    if slow:
        hint = f"give it longer with --timeout, or see what it does: {server.log}"
    return SmolloraError(f"{what}\n{lines}" if lines else what, hint)
