"""`chat`: talk to a model in the terminal, or ask it one thing through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smollora.commands.options import FormatName
from smollora.errors import ConfigError

if TYPE_CHECKING:
    from smollora.chat.answerer import Answerer
    from smollora.chat.session import Session
    from smollora.chat.tools import Toolbox


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model or run folder, a Hub id, pypi:NAME==VERSION; default: the starter run's."
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of an OpenAI-compatible server.")
    ] = None,
    system: Annotated[str, typer.Option("--system", help="The system prompt.")] = "",
    tools: Annotated[
        Path | None,
        typer.Option("--tools", help="A .py of functions or a .json of tools; each run is asked."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, for instance max_new_tokens=64; /set changes it."),
    ] = None,
    load: Annotated[
        Path | None, typer.Option("--load", help="Go on with a saved conversation.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for an answer of the server.", min=0.1)
    ] = 300.0,
    format_name: FormatName = None,
) -> None:
    """Talk to a model: streamed answers, tools after a yes, and a look at its tokens.

    With --endpoint, MODEL is the model's name there. In a pipe, stdin is the message and stdout the
    answer.
    """
    from smollora.chat.tools import Toolbox, load_tools

    box = load_tools(tools) if tools else Toolbox()
    if endpoint is None:
        _local(model, system, box, settings, load, format_name)
    else:
        _served(endpoint, model, system, box, settings, load, timeout)


def _local(
    model: str | None,
    system: str,
    box: Toolbox,
    settings: list[str] | None,
    saved: Path | None,
    format_name: str | None,
) -> None:
    from smollora.chat.local import open_local
    from smollora.chat.session import Session

    opened = open_local(model, format_name=format_name)
    session = Session(system=system, tools=box.specs, settings=opened.settings())
    session = _begun(session, settings, saved)
    # In a pipe the question is there before the weights are: nothing to compute ahead of it.
    opened.load(session if sys.stdin.isatty() else None, alone=True)
    _talk(session, opened.answerer, box, f"{opened.folder}, {opened.answerer.fmt.name} calls")


def _served(
    endpoint: str,
    model: str | None,
    system: str,
    box: Toolbox,
    settings: list[str] | None,
    saved: Path | None,
    timeout: float,
) -> None:
    from smollora.chat.remote import EndpointAnswerer
    from smollora.chat.session import Session
    from smollora.endpoint import Endpoint

    session = _begun(Session(system=system, tools=box.specs), settings, saved)
    with Endpoint(endpoint, model, timeout=timeout) as server:
        name = server.connect()
        _talk(session, EndpointAnswerer(server), box, f"{name} at {server.url}")


def _begun(session: Session, settings: list[str] | None, saved: Path | None) -> Session:
    from dataclasses import replace

    from smollora.chat.session import load
    from smollora.chat.settings import changed

    if saved is not None:
        session = load(session, saved)
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is no setting", "write --set max_new_tokens=64")
        session = replace(session, settings=changed(session.settings, key, value))
    return session


def _talk(session: Session, answerer: Answerer, box: Toolbox, who: str) -> None:
    from smollora.chat.commands import Talk
    from smollora.chat.loop import answer_pipe, converse
    from smollora.chat.terminal import Screen
    from smollora.models import cache_folder

    screen = Screen()
    talk = Talk(session, answerer, box, colours=screen.colours)
    for note in talk.answerer.notes(session):
        screen.notice(note)
    if not screen.asks:
        code = answer_pipe(talk, screen)
    else:
        screen.notice(f"{who}; /help lists the commands")
        code = converse(talk, screen, cache_folder() / "chat_history")
    if code:
        sys.exit(code)  # typer's own Exit(130) would be explained as an interrupted run
