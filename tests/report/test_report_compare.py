"""What stands beside what when runs are compared, and what is not compared at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import build_run, change
from smollora.errors import ConfigError, DataError
from smollora.report import collect
from smollora.report.compare import Comparison, compare, labels_of, recipe_differences
from smollora.report.compare_page import compare_runs, render_comparison
from tiny_runs import smollora


def rewrite(run: Path, **of_case: dict[str, Any]) -> None:
    """Change the merged model's records by case id ("simple_000")."""
    path = run / "probe/records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["model"] == "merged":
            line.update(of_case.get(line["case_id"].replace("-", "_"), {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    return build_run(tmp_path / "one"), build_run(tmp_path / "two")


def found(*runs: Path) -> Comparison:
    return compare_runs(runs)


def test_equal_runs_differ_in_nothing(runs: tuple[Path, Path]) -> None:
    same = found(*runs)
    assert (same.shared, len(same.cases), same.recipe) == (328, 0, ())
    page = render_comparison(same)
    assert "0 of 328 shared cases differ" in page
    assert "No setting differs." in page and "No case differs." in page


def test_cases_whose_verdict_differs_are_found_and_what_got_worse_comes_first(
    runs: tuple[Path, Path],
) -> None:
    one, two = runs
    rewrite(two, simple_000={"verdict": "no_call"}, multiple_016={"verdict": "right"})
    seen = found(one, two)
    assert [case.question.case_id for case in seen.cases] == ["simple-000", "multiple-016"]
    assert [answer.models for answer in seen.cases[0].answers] == [("A one",), ("B two",)]
    (pair,) = seen.pairs
    assert (pair.fixed, pair.broken) == (1, 1)
    assert pair.both_right + pair.both_wrong == 326


def test_an_id_that_means_another_question_is_counted_and_not_compared(
    runs: tuple[Path, Path],
) -> None:
    one, two = runs
    rewrite(two, simple_000={"verdict": "no_call", "request": "Something else?"})
    seen = found(one, two)
    assert (seen.shared, seen.other_question, len(seen.cases)) == (327, 1, 0)


def test_cases_of_one_run_are_counted(runs: tuple[Path, Path]) -> None:
    one, two = runs
    path = two / "probe/records.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"simple-0' not in line]
    path.write_text("\n".join(kept))
    seen = found(one, two)
    assert (seen.shared, seen.not_shared) == (248, 80)


def test_a_run_without_a_probe_stands_beside_one_with_it(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "manifest.json").write_text("{}")
    page = render_comparison(found(build_run(tmp_path / "whole"), bare))
    assert "No verdict yet" in page and "not run" in page and "no such gate" in page


def test_settings_that_differ_are_named_by_their_keys() -> None:
    one = "train: {lr: 1.0e-3, rank: 16}\nprepare:\n  sources: [{name: a, share: 0.5}]\n"
    two = "train: {lr: 2.0e-3, rank: 16}\nprepare:\n  sources: [{name: a, share: 1.0}]\nnew: x\n"
    assert dict(recipe_differences([one, two])) == {
        "train.lr": ("0.001", "0.002"),
        "prepare.sources.a.share": ("0.5", "1.0"),
        "new": (None, "x"),
    }


@pytest.mark.parametrize("broken", [None, "{", "- 1", "a: &a [*a]", "x: !!python/name:os.system"])
def test_a_recipe_that_cannot_be_read_has_no_settings(broken: str | None) -> None:
    assert recipe_differences([broken, "a: 1"]) == (("a", (None, "1")),)


def test_runs_are_named_by_the_part_of_the_path_that_tells_them_apart(tmp_path: Path) -> None:
    def named(*paths: str) -> list[str]:
        return labels_of([tmp_path / path for path in paths])

    assert named("runs/a", "runs/b") == ["A a", "B b"]
    assert named("monday/runs/x", "tuesday/runs/x") == ["A monday", "B tuesday"]


def test_rates_keep_the_runs_own_intervals(runs: tuple[Path, Path]) -> None:
    one, two = runs
    summary = json.loads((two / "probe/summary.json").read_text())
    emission = {"k": 61, "n": 100, "rate": 0.61, "low": 0.512, "high": 0.7}
    change(two / "probe/summary.json", merged=summary["merged"] | {"emission": emission})
    seen = found(one, two)
    first, second = dict(seen.after.rows)["emission"]
    assert first and second and (first.k, second.k, second.low) == (205, 61, 0.512)
    assert "51.2% to 70.0%" in render_comparison(seen)


def test_three_runs_have_three_columns(tmp_path: Path) -> None:
    seen = found(*(build_run(tmp_path / name) for name in ("x", "y", "z")))
    assert [pair.other for pair in seen.pairs] == ["B y", "C z"]
    assert all(len(cells) == 3 for _, cells in seen.losses)


def test_bad_folders_are_refused_with_the_next_step(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    one, _ = runs
    with pytest.raises(DataError, match="is not there"):
        found(one, tmp_path / "absent")
    with pytest.raises(DataError, match="holds no run"):
        found(one, tmp_path)
    with pytest.raises(ConfigError, match="named twice"):
        found(one, one)
    with pytest.raises(ConfigError, match="side by side"):
        compare_runs([one] * 9)


def test_comparing_only_reads(runs: tuple[Path, Path]) -> None:
    data = [collect(run) for run in runs]
    assert compare(["A", "B"], data).runs == tuple(data)


# ── the verb ───────────────────────────────────────────────────────────────────────────────────


def test_the_verb_writes_the_page_of_several_runs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "side.html"
    ended = smollora("report", *runs, "--html", target, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["cases_shared"] == 328
    assert target.read_text("utf-8").startswith("<!doctype html>")
    assert not (runs[0] / "report.html").exists()


def test_the_verb_writes_the_page_of_one_folder(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert smollora("report", runs[0]).code == 0
    assert (runs[0] / "report.html").is_file()
    assert smollora("report", runs[0], "--html", tmp_path / "one.html").code == 0
    assert (tmp_path / "one.html").read_bytes() == (runs[0] / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{one}", "{two}"), "add --html"),
        (("{one}", "{one}", "--html", "x.html"), "named twice"),
        (("nowhere",), "neither a recipe nor the folder of a run"),
        (("{one}", "nowhere", "--html", "x.html"), "is not there"),
        (("{one}", "--name", "x"), "--name goes with a recipe"),
        (("starter", "--html", "x.html"), "--html goes with the folder"),
    ],
)
def test_wrong_use_is_one_message_and_exit_code_2(
    runs: tuple[Path, Path], arguments: tuple[str, ...], says: str
) -> None:
    given = [each.format(one=runs[0], two=runs[1]) for each in arguments]
    ended = smollora("report", *given)
    assert ended.code == 2 and says in ended.err and "Traceback" not in ended.err
