"""The main job from Python: the same stages as the command's, and rows that can be looked at."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from smollora import open_run, run_stage, show_row
from smollora.errors import ConfigError, DataError
from smollora.stages import Run
from tiny_runs import DELIMITERS, tiny_recipe, write_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    recipe = tiny_recipe(tmp_path, write_model(tmp_path / "m", tags=DELIMITERS))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return open_run(path, runs=tmp_path / "runs", quiet=True)


def test_a_stage_gives_its_summary_and_runs_what_it_needs(run: Run) -> None:
    found = run_stage(run, "verify")
    assert found["rows_proved"] == found["rows_with_calls"] > 0
    assert run.read("inspect")["open"]["text"] == "<tool_call>"
    assert run_stage(run, "verify") == found, "done already: the same summary, seconds included"


def test_a_row_shows_its_delimiters_in_colour_and_labelled(run: Run) -> None:
    run_stage(run, "prepare")
    view = show_row(run, "call", before=5)
    (row,) = view.rows
    assert row.labels.index(True) == 5 and "left out" in view.notes[1]
    opened, closed = (row.tokens.index(text) for text in DELIMITERS)
    assert row.labels[opened] and row.labels[closed] and opened < closed
    assert {row.token_ids[opened], row.token_ids[closed]} == set(view.delimiters)
    drawn = view._repr_html_()
    for text in ("&lt;tool_call&gt;", "&lt;/tool_call&gt;"):
        (piece,) = [part for part in drawn.split("<span") if part.endswith(f">{text}</span>")]
        assert "labelled, delimiter" in piece and "#8a2b12" in piece


def test_a_row_that_declines_has_no_delimiter_in_its_labels(run: Run) -> None:
    run_stage(run, "prepare")
    (row,) = show_row(run, "no_call", before=10_000).rows
    learned = {token for token, label in zip(row.token_ids, row.labels, strict=True) if label}
    assert learned and not learned & set(show_row(run, "call").delimiters)


def test_what_is_not_there_is_said(run: Run) -> None:
    with pytest.raises(ConfigError, match="no stage"):
        run_stage(run, "teach")
    run_stage(run, "prepare")
    with pytest.raises(DataError, match="of kind call is not there: the run has"):
        show_row(run, "call", nth=500)


def test_in_a_notebook_stages_say_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's output passes for a terminal: bars drawn there were 400 kB."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = open_run().console
    assert not console.is_terminal and not console.is_jupyter
