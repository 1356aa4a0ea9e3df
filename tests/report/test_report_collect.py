"""What `collect` makes of run folders: whole, half finished, and spoiled.

Expected values are those that `conftest.build_run` wrote to the files, read back here by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smollora.errors import DataError
from smollora.evaluate.match import score_case
from smollora.report import collect
from smollora.report.contents import RIGHT, STAGES, Rate
from smollora.types import EvalCase, Generation

NewRun = Callable[[], Path]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def problems(run: Path) -> dict[str, str]:
    return {problem.file: problem.detail for problem in collect(run).problems}


def test_a_finished_run_is_read_whole(finished_run: Path) -> None:
    report = collect(finished_run)
    assert report.problems == ()
    assert report.run == "starter"
    assert set(report.sections().values()) == {"shown"}
    assert report.inspect and report.inspect.open and report.inspect.open.id == 49152
    assert [check.ok for check in report.inspect.checks].count(False) == 4
    assert report.prepare and report.prepare.rejected["unknown_tool"] == 71
    assert report.mix and [source.name for source in report.mix] == [
        "starter-calls",
        "near-misses",
        "general",
    ]
    assert len(report.preview) == 60
    assert len(report.curve) == 240
    assert report.train and report.train.peak_memory_bytes == 2_310_000_000
    assert report.merge and report.merge.max_logit_difference_reloaded == 0
    assert report.probe and report.probe.models["base"]["emission"].n == 208
    assert (report.probe.before, report.probe.after) == ("base", "merged")
    assert len(report.records) == 5 * 328
    assert report.suites and report.suites["bfcl"]["simple_python"]["merged"]["correct"].k == 31
    assert list(report.seconds) == list(STAGES)


def test_an_empty_folder_is_a_run_in_which_nothing_ran(tmp_path: Path) -> None:
    report = collect(tmp_path)
    assert set(report.sections().values()) == {"not run"}
    assert report.problems == ()


def test_no_folder_is_an_error_that_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run folder") as caught:
        collect(tmp_path / "missing")
    assert "runs/" in caught.value.hint


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_leaves_the_others(new_run: NewRun, stage: str) -> None:
    run = new_run()
    shutil.rmtree(run / stage)
    report = collect(run)
    assert report.problems == ()
    sections = report.sections()
    assert stage not in report.seconds
    assert "not run" in sections.values()
    assert list(sections.values()).count("shown") >= len(sections) - 3


def test_a_stage_without_summary_has_started_and_not_finished(new_run: NewRun) -> None:
    run = new_run()
    (run / "train/summary.json").unlink()
    (run / "merge/summary.json").unlink()
    (run / "merge/model.safetensors").touch()
    report = collect(run)
    assert report.train is None and len(report.curve) == 240
    assert report.sections()["training"] == "shown"
    assert report.sections()["merge"] == "started, not finished"


def test_a_broken_summary_is_a_problem_and_not_an_end(new_run: NewRun) -> None:
    run = new_run()
    (run / "probe/summary.json").write_text('{"passed": tr')
    (run / "eval/summary.json").write_text("[]")
    report = collect(run)
    assert report.probe is None and report.suites is None
    assert "not valid JSON" in problems(run)["probe/summary.json"]
    assert problems(run)["eval/summary.json"] == "holds list, expected an object"
    assert report.train is not None


def test_broken_lines_are_reported_and_the_others_are_read(new_run: NewRun) -> None:
    run = new_run()
    with (run / "train/curve.jsonl").open("a") as stream:
        stream.write('"text"\n{"loss": 1}\n{"step": 241, "lo')
    assert len(collect(run).curve) == 240
    assert problems(run).keys() == {f"train/curve.jsonl line {line}" for line in (241, 242, 243)}


def test_unicode_line_separators_do_not_cut_a_line(new_run: NewRun) -> None:
    """`str.splitlines` cuts at U+2028, U+2029 and U+0085, which JSON leaves inside strings."""
    run = new_run()
    first, rest = (run / "probe/records.jsonl").read_text().split("\n", 1)
    record = json.loads(first) | {"text": "a\u2028b\u2029c\u0085d"}
    text = json.dumps(record, ensure_ascii=False) + "\n" + rest
    (run / "probe/records.jsonl").write_text(text, encoding="utf-8")
    report = collect(run)
    assert report.problems == ()
    assert report.records[0].text == "a\u2028b\u2029c\u0085d"


def test_a_rate_over_no_cases_has_no_cases() -> None:
    assert not Rate(k=0, n=0, rate=None).has_cases
    assert not Rate(k=0, n=0, rate=0.0).has_cases
    assert not Rate(k=0, n=5, rate=None).has_cases
    assert Rate(k=0, n=5, rate=0.0).has_cases


def test_a_loss_that_is_not_a_number_is_reported_and_left_out(new_run: NewRun) -> None:
    run = new_run()
    with (run / "train/curve.jsonl").open("a") as stream:
        stream.write('{"step": 241, "loss": NaN}\n{"step": 242, "loss": Infinity}\n')
    assert [point.loss for point in collect(run).curve[-2:]] == [None, None]
    found = problems(run)["train/curve.jsonl line 241"]
    assert found == "loss is nan, expected a finite number"


@pytest.mark.parametrize("value", ["many", True, [1], {"n": 1}, float("nan"), 10**400])
def test_a_value_of_the_wrong_kind_is_reported_where_it_stands(
    new_run: NewRun, value: object
) -> None:
    run = new_run()
    change(run / "prepare/summary.json", rows_in=value)
    report = collect(run)
    assert report.prepare and report.prepare.rows_in is None and report.prepare.rows_kept == 2081
    assert "expected a finite number" in problems(run)["prepare/summary.json"]


def test_the_right_verdict_is_the_one_that_scoring_gives() -> None:
    """The report once knew only verdicts that no stage writes."""
    facts: Any = SimpleNamespace(open=SimpleNamespace(id=49152))
    case = EvalCase(id="c", category="no_tools", messages=())
    score = score_case(case, Generation(token_ids=(2,), finish="stop"), (), facts)
    assert score.verdict == RIGHT


def test_columns_of_different_lengths_are_no_row(new_run: NewRun) -> None:
    run = new_run()
    rows = [json.loads(line) for line in (run / "mix/preview.jsonl").read_text().splitlines()]
    rows[3]["owner"].pop()
    (run / "mix/preview.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(collect(run).preview) == 59
    assert "differ in length" in problems(run)["mix/preview.jsonl line 4"]


@pytest.mark.parametrize("form", ["top", "list", "mapping"])
def test_mix_sources_are_found_in_each_form(new_run: NewRun, form: str) -> None:
    run = new_run()
    path = run / "mix/summary.json"
    summary = json.loads(path.read_text())
    sources = summary.pop("sources")
    if form == "top":
        summary |= sources
    elif form == "list":
        summary["sources"] = [{"name": name, **values} for name, values in sources.items()]
    else:
        summary["sources"] = sources
    path.write_text(json.dumps(summary))
    mix = collect(run).mix
    assert mix and [(source.name, source.rows) for source in mix] == [
        ("starter-calls", 620),
        ("near-misses", 310),
        ("general", 250),
    ]


def test_another_schema_version_is_reported(new_run: NewRun) -> None:
    run = new_run()
    change(run / "merge/summary.json", schema_version=9)
    assert "schema_version is 9" in problems(run)["merge/summary.json"]


def test_a_format_without_closing_token_has_none(new_run: NewRun) -> None:
    run = new_run()
    change(run / "inspect/summary.json", close=None)
    report = collect(run)
    assert report.inspect and report.inspect.close is None
    assert report.problems == ()
