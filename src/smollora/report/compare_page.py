"""Turns a `Comparison` into one self-contained HTML page, under the rules of the run's own page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError, DataError
from smollora.report.collect import collect
from smollora.report.compare import Comparison, compare, labels_of
from smollora.report.contents import STAGES
from smollora.report.html import headline
from smollora.report.lists import lists
from smollora.report.pages import fitting_page
from smollora.runs import write_whole

MOST_RUNS = 8
"""Columns that a page has room for."""


def is_run_folder(path: Path) -> bool:
    """True for a folder with the files of a run."""
    return path.is_dir() and (
        (path / "manifest.json").is_file()
        or any((path / stage / "summary.json").is_file() for stage in STAGES)
    )


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read run folders and put them beside each other.

    Raises:
        DataError: one of them is no run folder.
        ConfigError: too few or too many, or one of them twice.
    """
    for folder in folders:
        if not is_run_folder(folder):
            what = "holds no run" if folder.is_dir() else "is not there"
            raise DataError(f"{folder} {what}", "name folders that `smollora run` made, as runs/A")
    if not 2 <= len(folders) <= MOST_RUNS:
        raise ConfigError(
            f"{len(folders)} runs cannot stand side by side", f"name 2 to {MOST_RUNS} run folders"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("the same run folder is named twice", "name each run once")
    return compare(labels_of(folders), [collect(folder) for folder in folders])


def render_comparison(found: Comparison) -> str:
    """The page, under `PAGE_BYTES` as UTF-8.

    Raises:
        SmolloraError: the page is larger even without cases.
    """
    fixed = {
        "found": found,
        "headlines": [headline(run) for run in found.runs],
    }

    def values_at(share: float) -> Mapping[str, Any]:
        inspect = next((run.inspect for run in found.runs if run.inspect), None)
        return {**fixed, "lists": lists((), found.cases, inspect, share)}

    return fitting_page("compare.html.jinja", values_at, ", ".join(found.labels))


def write_comparison(folders: Sequence[Path], target: Path) -> Comparison:
    """Write the page of several runs.

    Raises:
        ConfigError, DataError: see `compare_runs`.
        SmolloraError: the file cannot be written.
    """
    found = compare_runs(folders)
    write_whole(target, render_comparison(found).encode())
    return found
