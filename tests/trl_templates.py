"""The PyPI wheel trl, for the chat templates in it: downloaded once, kept beside other wheels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from smollm3_tokenizer import cache_folder

WHEEL = "trl-1.16.0-py3-none-any.whl"
WHEEL_SHA256 = "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"


def trl_wheel() -> Path:
    """Path of the wheel.

    Raises:
        RuntimeError: what was downloaded is not what was published.
        subprocess.CalledProcessError: it could not be downloaded.
    """
    path = cache_folder() / "wheels" / WHEEL
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", str(path.parent), "trl==1.16.0"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    if hashlib.sha256(path.read_bytes()).hexdigest() != WHEEL_SHA256:
        path.unlink()
        raise RuntimeError(f"{WHEEL} is not the published wheel; it was deleted")
    return path
