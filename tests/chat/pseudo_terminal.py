"""A program in a real pseudo-terminal, driven as by a person: wait for words, type, press keys."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CTRL_C, CTRL_D = "\x03", "\x04"


class PseudoTerminal:
    """A running program; `text` is all that it wrote."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], columns: int = 80, cwd: str = "."
    ) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

        def own_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            list(argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(env),
            cwd=cwd,
            preexec_fn=own_the_terminal,
        )
        os.close(slave)
        self.master = master
        self.text = ""
        self._seen = 0

    def wait_for(self, words: str, seconds: float = 60.0) -> str:
        """Read until `words` come after what was waited for before; what came up to them."""
        end = time.monotonic() + seconds
        while words not in self.text[self._seen :]:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{words!r} did not come; so far:\n{self.text}")
        start = self._seen
        self._seen = self.text.index(words, start) + len(words)
        return self.text[start : self._seen]

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # Linux says so where the other side has closed
            return False
        self.text += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)

    def type(self, text: str, end: str = "\n") -> None:
        os.write(self.master, (text + end).encode())

    def rest(self, seconds: float = 60.0) -> None:
        """Wait until the program sleeps, as it does when it waits for a key: Python hears a Ctrl-C
        that comes between the prompt and that sleep only with the next key.
        """
        end, asleep = time.monotonic() + seconds, 0
        while asleep < 5 and time.monotonic() < end:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
            asleep = asleep + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0
            time.sleep(0.05)

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def ends(self, seconds: float = 60.0) -> int:
        """The exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.wait(timeout=max(0.1, end - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
