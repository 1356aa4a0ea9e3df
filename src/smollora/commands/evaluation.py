"""`eval`: public suites asked of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smollora.commands.options import (
    AsJson,
    Name,
    Overrides,
    Quiet,
    RecipeName,
    Runs,
    console_for,
    split_recipe,
)


def evaluate(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="bfcl:CATEGORY or a .jsonl of cases; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="The first so many cases of each suite.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="base or merged; default: both.")
    ] = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Public suites (BFCL) asked of a finished run's base and merged model."""
    import time

    from smollora.config import load_recipe
    from smollora.evaluate.run import DEFAULT_SUITES
    from smollora.evaluate.run import evaluate as ask_suites
    from smollora.stages import Run

    which, given = split_recipe(recipe, overrides)
    resolved = load_recipe(which, given)
    console = console_for(quiet or as_json, stderr=as_json)
    run = Run(resolved, runs / (name or resolved.name), console)
    start = time.monotonic()
    found = ask_suites(
        run, suite or DEFAULT_SUITES, limit=limit, models=model or ["base", "merged"]
    )
    found["seconds"] = round(time.monotonic() - start, 1)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for suite_name, categories in found["suites"].items():
        for category, by_model in categories.items():
            for model_name, rates in by_model.items():
                shown = [
                    f"{key} {rate['k']}/{rate['n']}"
                    for key, rate in rates.items()
                    if rate["rate"] is not None
                ]
                typer.echo(f"{suite_name} {category} {model_name}: {', '.join(shown)}")
