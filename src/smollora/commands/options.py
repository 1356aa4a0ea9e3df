"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from smollora.commands.completion import (
    complete_format,
    complete_recipe,
    complete_setting,
    complete_stage,
)

RecipeName = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe (starter, smollm3) or a .yaml file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings as key=value, for instance train.lr=1e-4.",
        autocompletion=complete_setting,
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; default: the recipe's.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the last line only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the stage's summary as JSON.")]
Force = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        help="Run this stage again, and those after it.",
        autocompletion=complete_stage,
    ),
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="How the model writes calls; default: as its template does.",
        autocompletion=complete_format,
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds for one request to a server.")
]
Model = Annotated[str, typer.Argument(help="A model folder, a Hub id, or pypi:NAME==VERSION.")]


def split_recipe(recipe: str, overrides: list[str] | None) -> tuple[str, list[str]]:
    """`smollora run train.lr=1e-4` means the starter recipe with one override."""
    given = list(overrides or [])
    if "=" in recipe and not recipe.endswith((".yaml", ".yml")) and ":" not in recipe.split("=")[0]:
        return "starter", [recipe, *given]
    return recipe, given


def console_for(quiet: bool, *, stderr: bool = False) -> Console:
    """Lines are wrapped on a terminal only: in a file or a pipe one line stays one line."""
    console = Console(quiet=quiet, stderr=stderr)
    return console if console.is_terminal else Console(quiet=quiet, stderr=stderr, width=240)
