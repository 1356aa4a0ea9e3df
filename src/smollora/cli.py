"""The command line: gathers the verbs of `commands/` and turns errors into messages and exit codes.

Heavy libraries are imported inside the verbs, so that --help answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from typing import Annotated, NoReturn

import typer

from smollora import __version__
from smollora.commands import (
    chatting,
    doctoring,
    evaluation,
    probing,
    reporting,
    serving,
    stages,
    starting,
    templates,
)
from smollora.errors import SmolloraError
from smollora.launch import is_first

OTHERS_WAIT = 3.0
"""Seconds that the other processes of a training live on after an error: the launcher ends all when
one ends, and the first one, which meets the same error, is to say it."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Finds out why a chat model calls no tools, teaches it its native tool-call tokens,"
        " and proves it on token ids."
    ),
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"smollora {__version__}")
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command()(stages.run)
app.command()(stages.inspect)
app.command()(stages.prepare)
app.command(
    "verify",
    help="Proof that the labelled region holds the delimiter ids; refuses to go on otherwise.",
)(stages.stage_command("verify"))
app.command()(stages.mix)
app.command("train", help="LoRA on the mixed rows.")(stages.stage_command("train"))
app.command("merge", help="Adapter and base become one model, proved on logits.")(
    stages.stage_command("merge")
)
app.command()(probing.probe)
app.command()(reporting.report)
app.command()(templates.repair)
app.command()(templates.template)
app.command("eval")(evaluation.evaluate)
app.command(context_settings={"allow_extra_args": True})(serving.serve)
app.command()(doctoring.doctor)
app.command()(chatting.chat)
app.command()(starting.init)
app.command()(starting.check)


def main() -> None:
    """Entry point: 0 passed, 1 a gate fell short, 2 the person must act, 130 interrupted."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:  # where installed, transformers imports it
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # and without a GPU it warns on stdout
    try:
        interrupted = app(standalone_mode=False) == 130  # what typer makes of Ctrl-C
    except SmolloraError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    except Exception as error:
        _explain_or_raise(error)
    if interrupted:
        print(
            "interrupted: finished stages are kept; the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)


def _explain_or_raise(error: Exception) -> NoReturn:
    """Wrong usage, a full disk, too little memory: one message, exit 2. Everything else is our bug
    and shows its traceback.
    """
    text = str(error)
    out_of_memory = ("OutOfMemoryError", "MemoryError")
    if hasattr(error, "format_message") and hasattr(error, "show"):
        error.show()  # click's usage errors, of which typer carries a copy of its own
    elif type(error).__name__ in out_of_memory or "can't allocate memory" in text:
        hint = "lower train.batch_tokens or probe.batch_tokens"
        _complain(SmolloraError("out of memory", hint))
    elif getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        hint = "free some space; finished stages are kept, the same command goes on"
        _complain(SmolloraError("the disk is full", hint))
    elif isinstance(error, OSError) and error.strerror and error.filename:
        hint = "check the path and who may write there, or choose another folder with --runs"
        _complain(SmolloraError(f"{error.filename}: {error.strerror}", hint))
    else:
        raise error
    sys.exit(2)


def _complain(error: SmolloraError) -> None:
    if is_first():
        print(f"{error.label}: {error}", file=sys.stderr)
    else:
        time.sleep(OTHERS_WAIT)


if __name__ == "__main__":
    main()
