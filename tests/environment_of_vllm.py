"""vLLM's environment, made while other tests run: 1.5 GB of wheels are fetched and unpacked.

The tests that serve with it give `smollora serve --install` themselves, as a person would. It waits
for one that is under way, and makes the environment anew where that one failed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

from fake_vllm import child_of_tests, hear_signals


def begin_install() -> Callable[[], None]:
    """Start it; what is returned ends it if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smollora", "serve", "--install", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_of_tests(),
        preexec_fn=hear_signals,
    )

    def end() -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=60)

    return end
