"""`run` and the stages of a run, each a verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from smollora.commands.options import (
    AsJson,
    Force,
    FormatName,
    Name,
    Overrides,
    Quiet,
    RecipeName,
    Runs,
    console_for,
    split_recipe,
)
from smollora.errors import GateFailed
from smollora.launch import is_first


def execute(
    verb: str,
    recipe: str,
    overrides: list[str] | None,
    runs: Path,
    name: str | None,
    quiet: bool,
    as_json: bool,
    force: list[str] | None,
) -> None:
    """Run one stage, or all of them, and say how it ended."""
    from smollora.config import load_recipe
    from smollora.pipeline import STAGES, run_stages
    from smollora.stages import Run, raise_if_short

    recipe, given = split_recipe(recipe, overrides)
    resolved = load_recipe(recipe, given)
    console = console_for(quiet or as_json, stderr=as_json)
    run = Run(resolved, runs / (name or resolved.name), console)
    stages = list(STAGES) if verb == "run" else [verb]
    forced = list(force or []) + ([verb] if verb != "run" and not force else [])
    run_stages(run, stages, force=forced)
    if not is_first():
        return
    last = stages[-1]
    if as_json:
        summary = "probe" if verb == "run" else last
        typer.echo(json.dumps(run.read(summary), indent=2))
    if verb in ("run", "merge", "probe"):
        raise_if_short(run, stages)
    if verb == "run":
        probe = run.read("probe")
        base, merged = probe["base"]["emission"], probe["merged"]["emission"]
        typer.echo(
            f"passed: before, {base['k']} of {base['n']} prompts that need a tool emitted the"
            f" opening token; after, {merged['k']} of {merged['n']}."
            f" Report: {run.folder / 'report.html'}",
            err=as_json,
        )


def run(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    force: Force = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole plan and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The main job: inspect, prepare, verify, mix, train, merge, probe, report."""
    if dry_run:
        from smollora.config import load_recipe
        from smollora.plan import show_plan

        which, given = split_recipe(recipe, overrides)
        resolved = load_recipe(which, given)
        show_plan(resolved, runs / (name or resolved.name), Console())
        return
    execute("run", recipe, overrides, runs, name, quiet, as_json, force)


def stage_command(stage: str) -> Callable[..., None]:
    """The command of a stage that has no options of its own."""

    def command(
        recipe: RecipeName = "starter",
        overrides: Overrides = None,
        runs: Runs = Path("runs"),
        name: Name = None,
        quiet: Quiet = False,
        as_json: AsJson = False,
    ) -> None:
        execute(stage, recipe, overrides, runs, name, quiet, as_json, None)

    return command


def inspect(
    target: Annotated[
        str, typer.Argument(help="A recipe, a model folder, a Hub id, or pypi:NAME==VERSION.")
    ] = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the findings as one HTML page.")
    ] = None,
    format_name: FormatName = None,
) -> None:
    """What a model's delimiters are and what its chat template loses. With a recipe: that stage of
    its run.
    """
    from smollora.config import names_a_recipe

    recipe, _ = split_recipe(target, overrides)
    if names_a_recipe(recipe):
        execute("inspect", target, overrides, runs, name, quiet, as_json, None)
        return
    from smollora.inspection import describe_architecture, inspect_model, show_inspection

    found = inspect_model(target, format_name=format_name)
    if html is not None:
        from smollora.report.model_page import render_model_page
        from smollora.runs import write_whole

        write_whole(html, render_model_page(found, describe_architecture(found["architecture"])))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_inspection(found, console_for(quiet))
    if found["verdict"] != "ready":
        raise GateFailed(f"{target}: {found['verdict']}")


def prepare(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row instead of counting it.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Sources to rendered rows; every row kept or counted."""
    given = [*(overrides or []), *(["prepare.strict=true"] if strict else [])]
    execute("prepare", recipe, given, runs, name, quiet, as_json, None)


def mix(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan over the prepared rows and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Which rows are trained: shares by rows and by labelled tokens."""
    if not dry_run:
        execute("mix", recipe, overrides, runs, name, quiet, as_json, None)
        return
    from smollora.config import load_recipe
    from smollora.stages import Run, open_rows, plan_rows

    which, given = split_recipe(recipe, overrides)
    resolved = load_recipe(which, given)
    planned = Run(resolved, runs / (name or resolved.name), Console(quiet=True))
    _, lines = plan_rows(planned, open_rows(planned).table)
    typer.echo("\n".join(lines))
