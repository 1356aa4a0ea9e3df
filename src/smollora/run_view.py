"""The main job from Python, a stage at a time, and a look at what a stage made.

    from smollora import open_run, run_stage, show_row
    run = open_run("starter", ["train.epochs=2"])
    run_stage(run, "prepare")["rows_kept"]
    show_row(run, "call")

In: a recipe. Out: the summaries that the stages write, and one prepared row as a notebook shows it.
The surprise: a stage runs the unfinished ones before it, and is skipped where it is done already;
the same cell twice costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from smollora.config import Kind, load_recipe
from smollora.errors import ConfigError, DataError
from smollora.pipeline import STAGES, run_stages
from smollora.stages import Run, load_renderer, open_rows
from smollora.template_view import TemplateView, TokenRow


def open_run(
    recipe: str | Path = "starter",
    settings: Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    quiet: bool = False,
) -> Run:
    """A run to go through stage by stage; nothing is done yet.

    Args:
        recipe: a shipped recipe or a .yaml file.
        settings: as on the command line, for instance `["train.lr=1e-4"]`.
        runs: the folder that holds the folders of runs.
        name: of the run's folder; None: the recipe's name.
        quiet: stages say nothing.

    Raises:
        ConfigError: no such recipe or key, or a wrong value.
    """
    resolved = load_recipe(recipe, settings)
    # In a notebook plain lines: rich's own output there wants ipywidgets, and its bar a terminal.
    plain = False if "ipykernel" in sys.modules else None
    console = Console(quiet=quiet, force_jupyter=plain, force_terminal=plain)
    return Run(resolved, Path(runs) / (name or resolved.name), console)


def run_stage(run: Run, stage: str) -> dict[str, Any]:
    """Run a stage, and before it what it needs; its summary.

    Args:
        run: from `open_run`.
        stage: inspect, prepare, verify, mix, train, merge, probe or report.

    Raises:
        SmolloraError: what the stage cannot do, and what to do about it.
    """
    if stage not in STAGES:
        raise ConfigError(f'there is no stage "{stage}"', f"stages: {', '.join(STAGES)}")
    run_stages(run, [stage])
    return {} if stage == "report" else run.read(stage)


def show_row(run: Run, kind: Kind = "call", *, nth: int = 0, before: int = 30) -> TemplateView:
    """One prepared row: its tokens with owners and labels, delimiters in colour.

    Args:
        run: with the stage `prepare` done.
        kind: call, no_call or no_tools.
        nth: which of them, from 0.
        before: tokens of the prompt that are shown in front of the first label.

    Raises:
        DataError: there are not so many rows of this kind.
    """
    rows, renderer = open_rows(run), load_renderer(run)
    places = [place for place, found in enumerate(rows.table.kind) if found == kind]
    if not 0 <= nth < len(places):
        raise DataError(
            f"row {nth} of kind {kind} is not there: the run has {len(places)} of them",
            "ask for a smaller number, or prepare more rows",
        )
    row = rows[places[nth]]
    ids, owner, trained = row.rendered.token_ids, row.rendered.owner, row.rendered.trained
    start = max(0, trained.index(True) - before)
    tokens = tuple(renderer.tokenizer.decode([token]) for token in ids[start:])
    left_out = [f"the {start} tokens of the prompt before these are left out"] if start else []
    return TemplateView(
        "".join(tokens),
        ids[start:],
        (TokenRow(ids[start:], tokens, owner[start:], trained[start:]),),
        row.roles,
        (f"{kind} row {row.rendered.conversation_id}", *left_out),
        renderer.facts.ids,
    )
