"""`doctor --cures`: the cheapest cure that is enough."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from smollora.commands.options import console_for
from smollora.commands.probing import read_gate
from smollora.errors import ConfigError, GateFailed

Cures = Annotated[
    bool,
    typer.Option(
        "--cures",
        help="Measure what is enough: the stock prompt, the repaired template, worked examples, a"
        " grammar of calls, or training.",
    ),
]
Cure = Annotated[
    list[str] | None,
    typer.Option(
        "--cure",
        help="With --cures: only this one (stock, repaired, examples, grammar, required, trained,"
        " trained_grammar); may be repeated.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="With --cures: the trained model: an adapter's folder or a merged model's; with"
        " --endpoint its name there.",
    ),
]
Gate = Annotated[
    list[str] | None,
    typer.Option("--gate", help="With --cures: RATE=LIMIT of a cure that is enough; repeatable."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="With --cures: folder for cures.json and every answer."),
]


def measure(
    model: str,
    *,
    cures: list[str] | None,
    adapter: str | None,
    gate: list[str] | None,
    out: Path | None,
    endpoint: str | None,
    name: str | None,
    cases: Path | None,
    limit: int | None,
    max_tokens: int | None,
    timeout: float,
    format_name: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure the cures and print the verdict.

    Raises:
        GateFailed: no cure is enough.
        SmolloraError: the person must act.
    """
    from smollora.cures.plan import LIMIT, Settings, plan_cures
    from smollora.cures.run import measure_cures, save_cures
    from smollora.cures.subject import find_subject
    from smollora.cures.table import show_cures
    from smollora.endpoint import Endpoint

    console = console_for(quiet or as_json, stderr=as_json)
    subject = find_subject(
        model, format_name=format_name, adapter=adapter, served=endpoint is not None
    )
    folder = out or (subject.run / "cures" if subject.run else None)
    if folder is not None and folder.is_file():
        raise ConfigError(f"{folder} is a file, not a folder", "choose another --out")
    settings = Settings(
        cures=tuple(dict.fromkeys(cures or ())),
        cases=str(cases) if cases else "starter:probe",
        limit=limit or (None if cases and cases.suffix == ".jsonl" else LIMIT),
        gate=read_gate(gate),
        most=max_tokens,
    )
    server = Endpoint(endpoint, name, timeout=timeout) if endpoint else None
    plan = plan_cures(subject, settings, endpoint=server, folder=folder)
    keep = partial(save_cures, folder=folder) if folder is not None else None
    measured = measure_cures(plan, console, keep)
    summary = measured.summary
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    elif quiet:
        typer.echo(f"verdict: {summary['verdict']}")
    else:
        show_cures(summary, console)
        if folder is not None:
            console.print(f"written to {folder}", markup=False, highlight=False)
    if measured.problems:
        raise measured.problems[0]
    if summary["enough"] is None and summary["verdict"] != "unfinished":
        raise GateFailed(f"{model}: {summary['verdict']}", summary["fix"])
