"""Tools of a conversation: what is offered to the model, and how a call of it is run.

In: a .py file (its functions, with type hints and docstrings) or a .json file (schemas alone; then
the person types the results). Out: a `Toolbox`. Code runs in a child process of its own, with the
person's rights, a limit of time and a limit of size; whatever goes wrong is a result that tells the
model so. The surprise: reading the schemas of a .py file runs that file as well, as importing does.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.data.validation import schema_problem
from smollora.errors import DataError
from smollora.types import ToolCall, ToolSpec

DESCRIBE_SECONDS = 60.0
DESCRIBE_BYTES = 4_000_000
PRINTED_BYTES = 2_000
"""Of what a tool prints, so much is shown to the person; none of it goes to the model."""
EXAMPLE = '[{"type": "function", "function": {"name": "...", "description": "...", ...}}]'


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to."""

    content: str
    """For the model: the result, or `{"error": ...}`."""
    failed: bool = False
    printed: str = ""
    """For the person: what the tool wrote to stdout and stderr."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one file; the empty one offers nothing."""

    specs: tuple[ToolSpec, ...] = ()
    path: Path | None = None
    runs_code: bool = False
    """False: the tools are schemas alone."""

    def problem(self, call: ToolCall) -> str | None:
        """Why a call cannot be run: no such tool, or arguments that break its schema."""
        spec = next((each for each in self.specs if each.name == call.name), None)
        if spec is None:
            names = ", ".join(each.name for each in self.specs) or "none"
            return f'there is no tool "{call.name}"; offered: {names}'
        broken = schema_problem(call, spec)
        return f"the arguments break the schema of {call.name}: {broken}" if broken else None

    def run(
        self,
        call: ToolCall,
        *,
        seconds: float,
        size: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Run a call that the person has said yes to.

        Args:
            call: of a tool of this box.
            seconds: how long it may run.
            size: how many bytes its result may have.
            stopped: asked now and then; True ends the tool.
        """
        assert self.path is not None and self.runs_code
        ended = _run_child(
            ["run", str(self.path), call.name],
            json.dumps(dict(call.arguments), ensure_ascii=False),
            seconds=seconds,
            size=size,
            stopped=stopped,
        )
        if isinstance(ended.found, str):
            return failure(f"{call.name} {ended.found}", ended.printed)
        if "error" in ended.found:
            said = str(ended.found["error"])[:size]
            return failure(f"{call.name} raised {said}", ended.printed)
        return Outcome(str(ended.found.get("result", "")), printed=ended.printed)


def failure(why: str, printed: str = "") -> Outcome:
    """The outcome of a call that gave no result, in words for the model."""
    return Outcome(json.dumps({"error": why}, ensure_ascii=False), failed=True, printed=printed)


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def load_tools(path: Path) -> Toolbox:
    """The tools of a .py or .json file.

    Raises:
        DataError: not there, neither of the two, or no tool in it that can be offered.
    """
    if not path.is_file():
        raise DataError(f"there is no tool file {path}", "give a .py or a .json file")
    if path.suffix == ".json":
        return Toolbox(_read_schemas(path), path)
    if path.suffix == ".py":
        return Toolbox(_describe(path), path.resolve(), runs_code=True)
    raise DataError(f"{path} is neither .py nor .json", "give Python functions or a JSON list")


def _describe(path: Path) -> tuple[ToolSpec, ...]:
    ended = _run_child(
        ["describe", str(path.resolve())], "", seconds=DESCRIBE_SECONDS, size=DESCRIBE_BYTES
    )
    if isinstance(ended.found, str):
        raise DataError(f"loading {path}: it {ended.found}", "take such work out of the file")
    if "error" in ended.found:
        raise DataError(f"loading {path}: {ended.found['error']}", "make it importable first")
    if problems := ended.found["problems"]:
        raise DataError(
            f"{path} holds a function that cannot be offered as a tool\n  "
            + "\n  ".join(map(str, problems)),
            "give each a type hint and a line under Args: for every argument, or begin its name"
            " with _",
        )
    if not ended.found["tools"]:
        raise DataError(f"{path} defines no function", "define one with hints and a docstring")
    return tuple(_spec(tool) for tool in ended.found["tools"])


def _read_schemas(path: Path) -> tuple[ToolSpec, ...]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}", f"write {EXAMPLE}") from error
    found = found.get("tools", [found]) if isinstance(found, dict) else found
    specs = []
    for number, tool in enumerate(found if isinstance(found, list) else [], 1):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise DataError(f"tool {number} of {path} has no name", f"write {EXAMPLE}")
        if not isinstance(inner.get("parameters", {}), Mapping):
            raise DataError(f"tool {number} of {path}: parameters is no object", f"write {EXAMPLE}")
        specs.append(_spec(inner))
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) < len(names):
        what = "no tools" if not specs else "two tools of one name"
        raise DataError(f"{path} holds {what}", f"write {EXAMPLE}")
    return tuple(specs)


def _spec(tool: Mapping[str, Any]) -> ToolSpec:
    empty = {"type": "object", "properties": {}}
    parameters = tool.get("parameters") or empty
    return ToolSpec(tool["name"], str(tool.get("description") or ""), parameters)


# ── the child process ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Ended:
    found: dict[str, Any] | str
    """What the child answered, or what happened to it instead, as "ran longer than 3 s"."""
    printed: str


def _run_child(
    arguments: list[str],
    given: str,
    *,
    seconds: float,
    size: int,
    stopped: Callable[[], bool] = lambda: False,
) -> _Ended:
    """Run `child.py` in a process group of its own, which is killed whatever happens."""
    program = Path(__file__).with_name("child.py")
    room = size + 200  # the frame of JSON around the result
    with tempfile.TemporaryFile() as stdin:  # a pipe would block where the child never reads
        stdin.write(given.encode(errors="backslashreplace"))
        stdin.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", str(program), *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is heard here, and all that it started can be ended
        )
    answer, printed = bytearray(), bytearray()
    why = ""
    try:
        why = _listen(child, answer, printed, room, time.monotonic() + seconds, stopped)
    finally:
        _kill(child)
    text = printed[:PRINTED_BYTES].decode(errors="replace").strip()
    if why == "time":
        return _Ended(f"ran longer than {seconds:g} s and was ended", text)
    if why == "size":
        return _Ended(f"returned more than {size:,} bytes, which is too long to pass on", text)
    if why == "stopped":
        return _Ended("was interrupted by the person", text)
    try:
        found = json.loads(answer)
    except ValueError:
        return _Ended(f"ended without a result (exit code {child.returncode})", text)
    if len(str(found.get("result", "")).encode(errors="replace")) > size:
        return _Ended(f"returned more than {size:,} bytes, which is too long to pass on", text)
    return _Ended(found, text)


def _listen(
    child: subprocess.Popen[bytes],
    answer: bytearray,
    printed: bytearray,
    room: int,
    end: float,
    stopped: Callable[[], bool],
) -> str:
    """Read until the answer is whole: "" then, or "time", "size", "stopped"."""
    with selectors.DefaultSelector() as ready:
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            ready.register(stream, selectors.EVENT_READ)
        while True:
            if stopped():
                return "stopped"
            if time.monotonic() > end:
                return "time"
            for key, _ in ready.select(timeout=0.1):
                assert not isinstance(key.fileobj, int)
                piece = os.read(key.fd, 65536)
                if key.fileobj is child.stdout:
                    answer += piece
                    if not piece or answer.endswith(b"\n"):
                        _drain(child, printed)
                        return ""
                    if len(answer) > room:
                        return "size"
                elif not piece:
                    ready.unregister(key.fileobj)
                elif len(printed) < PRINTED_BYTES:
                    printed += piece


def _drain(child: subprocess.Popen[bytes], printed: bytearray) -> None:
    """What the child printed before it answered and nobody has read yet."""
    assert child.stderr is not None
    os.set_blocking(child.stderr.fileno(), False)
    with suppress(BlockingIOError):
        while len(printed) < PRINTED_BYTES:
            piece = os.read(child.stderr.fileno(), 65536)
            if not piece:
                return
            printed += piece


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
