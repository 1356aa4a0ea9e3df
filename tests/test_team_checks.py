"""`smollora check`, the pytest plugin and the pre-commit hook: rows held against their model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from smollora import team_checks
from smollora.errors import ConfigError, DataError
from smollora.formats.hermes import HERMES
from smollora.team_checks import MODEL_CHECKS, ROW_CHECKS, check_file, open_model
from smollora.templates.audit import audit
from smollora.templates.engine import load_shipped
from smollora.templates.repair import NotRepairable
from tiny_models import tiny_tokenizer
from tiny_runs import CHATML, call_row, general_row, no_call_row, smollora, write_model, write_rows

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

GOOD = [call_row("Oslo"), no_call_row("Lima"), general_row("Rome"), call_row("Bern")]


def broken_rows() -> list[object]:
    """Rows with one fault each, and the reason that docs/data.md gives for it."""
    unknown = call_row("Oslo")
    unknown["messages"][1]["tool_calls"][0]["function"]["name"] = "get_wether"
    schema = call_row("Oslo")
    schema["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"town": "Oslo"}
    silent = {"messages": [{"role": "user", "content": "Hello?"}]}
    return [call_row("Bern"), unknown, schema, silent]


REASONS = {"unknown_tool": 1, "arguments_break_schema": 1, "no_answer": 1}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has the delimiters and a template that loses nothing."""
    folder = tmp_path_factory.mktemp("models") / "ready"
    return write_model(folder, template=load_shipped("chatml_tools"), tags=TAGS)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as most small ones are: no delimiters, and a template that drops tools and calls."""
    return write_model(tmp_path_factory.mktemp("models") / "stock")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "good.jsonl", GOOD)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "bad.jsonl", broken_rows())


def failed(checks: tuple[team_checks.Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.ok]


# ── the checks ────────────────────────────────────────────────────────────────────────────────


def test_good_rows_for_a_model_that_is_ready_pass_every_check(ready: Path, good: Path) -> None:
    model = open_model(str(ready))
    found = check_file(good, model)
    assert [check.name for check in model.checks] == list(MODEL_CHECKS)
    assert [check.name for check in found.checks] == list(ROW_CHECKS)
    assert failed(model.checks) == [] and failed(found.checks) == []
    assert (found.rows, found.calling, found.rejected) == (4, 2, {})
    assert model.notes == ()


def test_every_bad_row_is_named_with_its_reason(ready: Path, bad: Path) -> None:
    found = check_file(bad, open_model(str(ready)))
    assert found.rejected == REASONS
    assert failed(found.checks) == ["rows_kept"]
    detail = next(check.detail for check in found.checks if check.name == "rows_kept")
    assert detail.startswith("3 of 4 rows cannot be trained: ")
    for row, word in ((2, "get_wether"), (3, "city"), (4, "no_answer")):
        assert re.search(rf"row {row}: .*{word}", detail), detail


def test_so_many_bad_rows_may_be_allowed(ready: Path, bad: Path) -> None:
    model = open_model(str(ready))
    assert not check_file(bad, model, may_reject=2).ok
    assert check_file(bad, model, may_reject=3).ok


def test_faults_of_the_model_are_the_models_and_not_the_rows(stock: Path, good: Path) -> None:
    model = open_model(str(stock))
    lost = [c.name for c in audit(CHATML, tiny_tokenizer(tags=()), fmt=HERMES) if not c.ok]
    assert failed(model.checks) == ["delimiters_are_tokens", *lost]
    assert len(lost) > 5
    assert check_file(good, model).ok
    assert "added as tokens" in model.notes[0] and "repaired" in model.notes[1]


def test_a_template_that_drops_calls_and_cannot_be_repaired_fails_each_call_row(
    stock: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotRepairable("no template near this one passes", "", [])

    monkeypatch.setattr(team_checks, "repair", refuse)
    found = check_file(good, open_model(str(stock)))
    assert "delimiters" in failed(found.checks) and "round_trip" in failed(found.checks)
    detail = next(check.detail for check in found.checks if check.name == "round_trip")
    assert detail.startswith("2 of 4 rows:") and "row 1" in detail and "row 4" in detail


def test_a_row_that_does_not_fit_is_told(ready: Path, good: Path) -> None:
    found = check_file(good, open_model(str(ready)), max_length=120)
    assert set(found.rejected) == {"too_long"}


def test_the_limit_reads_so_many_rows(ready: Path, bad: Path) -> None:
    assert check_file(bad, open_model(str(ready)), limit=1).ok


def test_without_a_template_rows_cannot_be_checked(tmp_path: Path, good: Path) -> None:
    model = open_model(str(write_model(tmp_path / "bare", template=None)))
    assert failed(model.checks)[-1] == "has_template"
    with pytest.raises(ConfigError, match="no chat template"):
        check_file(good, model)


def test_a_file_that_is_not_there_is_named(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl is not there"):
        check_file(tmp_path / "absent.jsonl", open_model(str(ready)))


# ── smollora check ────────────────────────────────────────────────────────────────────────────


def test_check_ends_with_0_where_all_holds(ready: Path, good: Path) -> None:
    said = smollora("check", good, "--model", ready)
    assert (said.code, said.err) == (0, "")
    assert f"{good}: 4 rows, 2 with calls: 7 of 7 checks hold" in said.out


def test_check_ends_with_1_and_names_the_file(ready: Path, good: Path, bad: Path) -> None:
    said = smollora("check", good, bad, "--model", ready)
    assert said.code == 1
    assert said.err.startswith(f"fell short: checks failed: {bad}\n  hint: ")
    assert 'calls "get_wether"' in said.out


def test_check_of_the_data_leaves_the_models_faults_aside(stock: Path, good: Path) -> None:
    assert smollora("check", good, "--model", stock).code == 1
    assert smollora("check", good, "--model", stock, "--checks", "data").code == 0
    assert smollora("check", good, "--model", stock, "--checks", "model").code == 1


def test_check_as_json(stock: Path, bad: Path) -> None:
    said = smollora("check", bad, "--model", stock, "--json")
    found = json.loads(said.out)
    assert said.code == 1
    assert found["files"][0]["rejected"] == REASONS
    assert {check["name"] for check in found["model_checks"]} == set(MODEL_CHECKS)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["absent.jsonl", "--model", "{ready}"], "absent.jsonl is not there"),
        (["{good}", "--model", "nowhere/at/all"], "there is no model folder"),
        (["{good}", "--model", "{ready}", "--checks", "some"], "--checks some"),
        (["{good}", "--model", "{ready}", "--format", "klingon"], "klingon"),
        (["{good}"], "--model"),
    ],
    ids=["no file", "no model", "checks", "format", "model not given"],
)
def test_check_of_what_cannot_be_checked_ends_with_2(
    arguments: list[str], word: str, ready: Path, good: Path
) -> None:
    said = smollora("check", *(each.format(ready=ready, good=good) for each in arguments))
    assert said.code == 2
    assert word in said.err


def test_checking_needs_no_torch(ready: Path, good: Path) -> None:
    program = (
        "import sys; from smollora.team_checks import check_file, open_model\n"
        f"assert check_file({str(good)!r}, open_model({str(ready)!r})).ok\n"
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ── the pre-commit hook ───────────────────────────────────────────────────────────────────────

HOOK = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))[0]


def test_the_hook_is_one_that_pre_commit_accepts() -> None:
    clientlib = pytest.importorskip("pre_commit.clientlib")
    loaded = clientlib.load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    assert [hook["id"] for hook in loaded] == ["smollora-check"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [("rows/train.jsonl", True), ("train.jsonl.gz", True), ("a.parquet", True), ("a.py", False)],
)
def test_the_hook_takes_files_of_rows(name: str, taken: bool) -> None:
    assert bool(re.search(HOOK["files"], name)) is taken


def test_the_hooks_entry_says_no_to_a_bad_file(ready: Path, good: Path, bad: Path) -> None:
    program, *entry = shlex.split(HOOK["entry"])
    assert program == "smollora"
    arguments = [*entry, "--model", str(ready), "--checks", "data"]
    assert smollora(*arguments, good).code == 0
    assert smollora(*arguments, good, bad).code == 1


# ── the pytest plugin ─────────────────────────────────────────────────────────────────────────

PLUGIN = ("-p", "smollora.pytest_plugin", "--strict-markers")


def test_the_plugin_is_declared_under_the_name_of_its_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = "smollora.pytest_plugin"
    assert project["entry-points"]["pytest11"] == {name: name}


def test_the_plugin_loads_nothing_until_it_is_asked() -> None:
    program = (
        "import sys, smollora.pytest_plugin\n"
        "print(sorted(name for name in sys.modules if name.startswith('smollora')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "['smollora', 'smollora.pytest_plugin']\n", done.stderr


def test_a_check_is_an_item_beside_the_teams_own_tests(
    pytester: pytest.Pytester, ready: Path, good: Path
) -> None:
    pytester.makepyfile(test_own="def test_own(): pass")
    asked = ("--smollora-data", str(good), "--smollora-model", str(ready))
    result = pytester.runpytest(*PLUGIN, *asked, "-v")
    result.assert_outcomes(passed=1 + len(MODEL_CHECKS) + len(ROW_CHECKS))
    result.stdout.fnmatch_lines(
        ["*test_own.py::test_own PASSED*", "*smollora::model::calls_rendered PASSED*"]
    )
    assert f"smollora::{good}::round_trip PASSED" in result.stdout.str()


def test_a_failure_reads_as_what_was_found_and_not_as_a_traceback(
    pytester: pytest.Pytester, ready: Path, bad: Path
) -> None:
    asked = ("--smollora-data", str(bad), "--smollora-model", str(ready))
    result = pytester.runpytest(*PLUGIN, *asked)
    result.assert_outcomes(passed=len(MODEL_CHECKS) + len(ROW_CHECKS) - 1, failed=1)
    said = result.stdout.str()
    assert "rows_kept: 3 of 4 rows cannot be trained" in said
    assert 'calls "get_wether"' in said
    assert "Traceback" not in said and "team_checks.py" not in said


def test_items_are_chosen_by_option_keyword_and_mark(
    pytester: pytest.Pytester, stock: Path, good: Path
) -> None:
    pytester.makepyfile(test_own="def test_own(): pass")
    asked = (*PLUGIN, "--smollora-data", str(good), "--smollora-model", str(stock))
    pytester.runpytest(*asked, "--smollora-checks", "data", "-m", "smollora").assert_outcomes(
        passed=len(ROW_CHECKS), deselected=1
    )
    pytester.runpytest(*asked, "-k", "calls_rendered").assert_outcomes(
        failed=1, deselected=len(MODEL_CHECKS) + len(ROW_CHECKS)
    )


def test_without_a_template_one_item_fails_and_the_rest_say_why(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    bare = write_model(tmp_path / "bare", template=None, tags=TAGS)
    result = pytester.runpytest(*PLUGIN, "--smollora-model", str(bare), "-rs")
    result.assert_outcomes(passed=1, failed=1, skipped=len(MODEL_CHECKS) - 2)
    assert "has_template: the tokenizer has no chat template" in result.stdout.str()
    assert "not tried: has_template failed" in result.stdout.str()


def test_a_model_that_is_not_there_is_one_line_an_item(
    pytester: pytest.Pytester, good: Path
) -> None:
    asked = ("--smollora-data", str(good), "--smollora-model", "no/such/model")
    result = pytester.runpytest(*PLUGIN, *asked, "--smollora-checks", "data")
    result.assert_outcomes(failed=len(ROW_CHECKS))
    assert "there is no model folder no/such/model" in result.stdout.str()


def test_data_without_a_model_is_a_usage_error(pytester: pytest.Pytester, good: Path) -> None:
    result = pytester.runpytest(*PLUGIN, "--smollora-data", str(good))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--smollora-data needs --smollora-model*"])
