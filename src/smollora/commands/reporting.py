"""`report`: the page of a run, or several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from smollora.commands.options import AsJson, Name, Quiet, Runs, split_recipe
from smollora.commands.stages import execute
from smollora.errors import ConfigError


def report(
    target: Annotated[
        str, typer.Argument(help="A recipe, or the folder of a run (runs/starter).")
    ] = "starter",
    others: Annotated[
        list[str] | None,
        typer.Argument(help="After a recipe: settings as key=value. After a folder: more folders."),
    ] = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Where the page of run folders goes."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """One self-contained HTML page from the files of the run. Several folders: side by side."""
    from smollora.config import names_a_recipe

    recipe, _ = split_recipe(target, others)
    if names_a_recipe(recipe):
        if html is not None:
            raise ConfigError(
                "--html goes with the folder of a run",
                f"smollora report {runs / (name or recipe)} --html {html}",
            )
        execute("report", target, others, runs, name, quiet, as_json, None)
        return
    folders = [Path(each).expanduser() for each in (target, *(others or []))]
    if name is not None:
        raise ConfigError("--name goes with a recipe", "leave it out: a folder names its run")
    values = _page_of_one(folders[0], html) if len(folders) == 1 else _side_by_side(folders, html)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo(f"{values['path']} ({values['bytes'] / 1e6:.1f} MB)")


def _page_of_one(folder: Path, html: Path | None) -> dict[str, Any]:
    from smollora.errors import DataError
    from smollora.report import is_run_folder, write_report

    if not is_run_folder(folder):
        raise DataError(
            f'"{folder}" is neither a recipe nor the folder of a run',
            "name a shipped recipe, a .yaml file, or a folder that `smollora run` made",
        )
    path = write_report(folder, html)
    return {"path": str(path), "bytes": path.stat().st_size}


def _side_by_side(folders: list[Path], html: Path | None) -> dict[str, Any]:
    from smollora.report import write_comparison

    if html is None:
        raise ConfigError("several runs need a file for their page", "add --html compare.html")
    found = write_comparison(folders, html)
    return {
        "path": str(html),
        "bytes": html.stat().st_size,
        "runs": list(found.labels),
        "passed": [run.probe.passed if run.probe else None for run in found.runs],
        "cases_shared": found.shared,
        "cases_that_differ": len(found.cases),
        "cases_of_one_run": found.not_shared,
        "cases_with_other_questions": found.other_question,
        "against_the_first": [
            {
                "run": pair.other,
                "both_right": pair.both_right,
                "now_right": pair.fixed,
                "now_wrong": pair.broken,
                "both_wrong": pair.both_wrong,
            }
            for pair in found.pairs
        ],
    }
