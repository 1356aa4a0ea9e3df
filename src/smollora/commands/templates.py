"""`repair` and `template`: a chat template mended, and what it makes of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from smollora.commands.options import AsJson, FormatName, Model


def repair(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for tokenizer files and template.")],
    format_name: FormatName = None,
    as_json: AsJson = False,
) -> None:
    """The nearest chat template that loses nothing, with the diff and a reason for each change."""
    from smollora.template_repair import as_dict, describe, plan_repair, write_repaired

    plan = plan_repair(model, format_name=format_name)
    write_repaired(plan, out)
    if as_json:
        typer.echo(json.dumps(as_dict(plan), indent=2, ensure_ascii=False))
        return
    typer.echo(plan.diff, nl=False)
    typer.echo("\n".join([*describe(plan), f"written to {out}"]))


def template(
    model: Model,
    conversation: Annotated[
        Path, typer.Argument(help="JSON: a list of messages, or messages and tools.")
    ],
    tools: Annotated[Path | None, typer.Option("--tools", help="JSON list of tools.")] = None,
    generate_prompt: Annotated[
        bool, typer.Option("--generate-prompt", help="End with the header of the model's turn.")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Show ids, owners and labels of the tokens.")
    ] = False,
    date: Annotated[
        str | None, typer.Option("--date", help="The day that the template reads.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A template variable, for instance enable_thinking=false."),
    ] = None,
    format_name: FormatName = None,
    as_json: AsJson = False,
) -> None:
    """A conversation as the model gets it: the formatted chat, its ids, owners and labels."""
    from smollora.template_view import as_dict, as_rich, read_chat, read_variables, show_template

    messages, offered = read_chat(conversation, tools)
    view = show_template(
        model,
        messages,
        offered,
        add_generation_prompt=generate_prompt,
        date=date,
        format_name=format_name,
        **read_variables(settings or []),
    )
    if as_json:
        typer.echo(json.dumps(as_dict(view), indent=2, ensure_ascii=False))
    elif tokens:
        console = Console(highlight=False, soft_wrap=True)
        colour = console.is_terminal and not console.no_color and not console.is_dumb_terminal
        for line in as_rich(view, colour=colour):
            if colour:
                console.print(line)
            else:
                typer.echo(line.plain)
    else:
        typer.echo(view.text, nl=False)
