"""`init` and `check`: a recipe for a model and its data, and data held against a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smollora.commands.options import AsJson, FormatName, Model, console_for
from smollora.errors import ConfigError, GateFailed


def init(
    model: Model,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="Rows: a file, a folder, hub:OWNER/NAME, or starter:tools; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The recipe's file.")] = Path("recipe.yaml"),
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; default: the model's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    format_name: FormatName = None,
) -> None:
    """Writes a recipe for a model and its data, every key with what it means."""
    import yaml

    from smollora.config import check_recipe
    from smollora.draft import plan_draft, refuse_to_overwrite
    from smollora.draft.text import show_draft
    from smollora.runs import write_whole

    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out} is no name for a recipe", "let it end in .yaml")
    refuse_to_overwrite(out, force)
    draft = plan_draft(model, rows or [], name=name, format_name=format_name)
    text = show_draft(draft)
    check_recipe(yaml.safe_load(text), str(out))
    write_whole(out, text)
    for line in draft.head:
        typer.echo(line)
    typer.echo(f"written to {out}; next: smollora run {out} --dry-run")


def check(
    files: Annotated[list[str], typer.Argument(help="Files or folders of rows that are trained.")],
    model: Annotated[
        str,
        typer.Option("--model", help="What they are for: a folder, a Hub id, pypi:NAME==VERSION."),
    ],
    checks: Annotated[
        str, typer.Option("--checks", help="What decides the exit code: all, data or model.")
    ] = "all",
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=16, help="Tokens of the longest row.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read at most so many rows of each file.")
    ] = None,
    may_reject: Annotated[
        int, typer.Option("--may-reject", min=0, help="Unusable rows that a file may have.")
    ] = 0,
    format_name: FormatName = None,
    as_json: AsJson = False,
) -> None:
    """Rows held against the model that they are for: what inspect and verify say of them."""
    from smollora.team_checks import as_dict, check_file, describe, open_model

    if checks not in ("all", "data", "model"):
        raise ConfigError(f"--checks {checks} is not known", "all, data or model")
    opened = open_model(model, format_name=format_name)
    found = []
    if checks != "model":
        found = [
            check_file(path, opened, max_length=max_length, limit=limit, may_reject=may_reject)
            for path in files
        ]
    if as_json:
        typer.echo(json.dumps(as_dict(opened, found), indent=2, ensure_ascii=False))
    else:
        console = console_for(False)
        for line in describe(opened, found, of_model=checks != "data"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    short = [each.path for each in found if not each.ok]
    if checks != "data" and not all(check.ok for check in opened.checks):
        short.insert(0, model)
    if short:
        raise GateFailed(
            f"checks failed: {', '.join(short)}",
            "rows: mend or remove them (docs/data.md explains the reasons); model: smollora repair",
        )
