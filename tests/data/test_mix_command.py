"""`smollora mix --dry-run` prints the plan over the prepared rows and writes nothing."""

from __future__ import annotations

from pathlib import Path

from smollora.data.shards import PreparedRow, write_rows
from smollora.types import Rendered
from tiny_runs import smollora, write_recipe


def row(group: str, kind: str, labelled: int) -> PreparedRow:
    trained = (False,) * 3 + (True,) * labelled
    rendered = Rendered("r", (1,) * len(trained), (0,) * len(trained), trained)
    return PreparedRow(rendered, f"my-{group}", group, kind, ("user", "assistant"), ((),))


def test_the_plan_is_printed_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [row("tool", "call", 10)] * 7 + [row("general", "no_tools", 30)] * 9
    write_rows(rows, tmp_path / "runs" / "tiny" / "prepare" / "rows" / "00000.parquet")
    recipe = write_recipe(tmp_path / "tiny.yaml", {"name": "tiny"})
    before = sorted((tmp_path / "runs").rglob("*"))
    ended = smollora("mix", recipe, "--runs", tmp_path / "runs", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("mix of 10 rows and 160 labelled tokens, shares by rows")
    assert "wanted  70.0%  rows 7 of 7 (70.0%)  labelled tokens 70 of 70 (43.8%)" in lines[1]
    assert "wanted  30.0%  rows 3 of 9 (30.0%)  labelled tokens 90 of 270 (56.2%)" in lines[2]
    assert sorted((tmp_path / "runs").rglob("*")) == before


def test_without_prepared_rows_the_person_is_told(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", {"name": "tiny"})
    ended = smollora("mix", recipe, "--runs", tmp_path / "runs", "--dry-run")
    assert ended.code == 2
    assert "hint: run `prepare` again" in ended.err
