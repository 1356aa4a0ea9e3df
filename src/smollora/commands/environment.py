"""`doctor --self`: the environment, its versions and what will be slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from smollora.commands.options import console_for
from smollora.errors import GateFailed

Self = Annotated[
    bool,
    typer.Option(
        "--self", help="Look at this environment: versions, hardware, what will be slow and why."
    ),
]


def look_at_self(runs: Path, as_json: bool) -> None:
    """The findings as a table or as JSON.

    Raises:
        GateFailed: something will not work.
    """
    from smollora.environment import as_dict, check_environment, show, verdict

    findings = check_environment(runs)
    if as_json:
        typer.echo(json.dumps(as_dict(findings), indent=2))
    else:
        show(findings, console_for(False))
    if any(each.state == "wrong" for each in findings):
        raise GateFailed(verdict(findings), "the column on the right says what to do")
