"""The command as a person meets it: what goes wrong is one message that says what to type next.

Everything runs through `smollora.cli.main`. A traceback fails the test that caused it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smollora import cli, pipeline
from smollora.data.ledger import read_ledger
from smollora.stages import Run
from smollora.templates.engine import ChatTemplate, load_shipped
from tiny_runs import (
    CASES,
    CITIES,
    DELIMITERS,
    WEATHER,
    Ended,
    call_row,
    changed,
    no_call_row,
    smollora,
    tiny_recipe,
    tool_rows,
    write_model,
    write_recipe,
    write_rows,
)

VERBS = [
    *pipeline.STAGES,
    *("run", "eval", "repair", "template"),
    *("init", "check", "doctor", "serve", "chat"),
]
BEFORE_TRAIN = ("inspect", "prepare", "verify", "mix")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recipe(tmp_path: Path, model: Path) -> dict[str, Any]:
    return tiny_recipe(tmp_path, model)


Go = Callable[..., Ended]


@pytest.fixture
def go(tmp_path: Path, recipe: dict[str, Any]) -> Go:
    """`go("train", mix__rows=3)`: that verb on the tiny recipe with settings changed."""

    def ended(verb: str, *flags: object, **settings: Any) -> Ended:
        path = write_recipe(tmp_path / "recipe.yaml", changed(recipe, **settings))
        return smollora(verb, path, "--runs", tmp_path / "runs", *flags)

    return ended


def done(folder: Path) -> set[str]:
    """Stages of the tiny run whose marker is there."""
    return {path.parent.name for path in (folder / "runs" / "tiny").glob("*/.done")}


def one_message(ended: Ended, code: int, *words: str) -> None:
    """The command ended with `code` and one message that holds `words` and a hint."""
    said = ended.err.splitlines()
    heads = [line for line in said if line.startswith(("error: ", "fell short: "))]
    assert ended.code == code
    assert len(heads) == 1, ended.err
    assert "Traceback" not in ended.err
    message = "\n".join(said[said.index(heads[0]) :])
    for word in words:
        assert word in message
    assert "\n  hint: " in message


def source(path: Path, kind: str = "tool") -> dict[str, str]:
    return {"name": path.stem, "path": str(path), "kind": kind}


# ── help and usage ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_answers_without_importing_torch(arguments: list[str]) -> None:
    program = (
        "import sys; from smollora.cli import main\n"
        f"sys.argv = ['smollora', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'transformers', 'peft', 'pyarrow', 'tokenizers'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Usage: smollora" in found.stdout
    assert found.stdout.splitlines()[-1] == "set()"


def project() -> dict[str, Any]:
    """What pyproject.toml says of the package."""
    path = Path(__file__).parent.parent / "pyproject.toml"
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return found


def test_the_version_is_that_of_the_package() -> None:
    said = smollora("--version")
    assert (said.code, said.out) == (0, f"smollora {project()['version']}\n")


def test_help_names_every_verb() -> None:
    said = smollora("--help")
    assert said.code == 0
    assert set(re.findall(r"^  (\w+)  +\w", said.out, re.MULTILINE)) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    said = smollora(verb, "--help")
    assert said.code == 0
    assert f"Usage: smollora {verb}" in said.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Usage: smollora"),
        (["trian"], "No such command"),
        (["run", "--fast"], "--fast"),
        (["run", "--name"], "--name"),
        (["eval", "--limit", "many"], "--limit"),
    ],
    ids=["nothing", "unknown verb", "unknown flag", "flag without value", "no number"],
)
def test_wrong_usage_ends_with_2_and_without_a_traceback(arguments: list[str], word: str) -> None:
    said = smollora(*arguments)
    assert said.code == 2
    assert word in said.err + said.out


# ── recipes and settings ──────────────────────────────────────────────────────────────────────


def test_an_unknown_recipe_is_named_beside_those_that_exist(tmp_path: Path) -> None:
    said = smollora("run", "smolm3", "--runs", tmp_path)
    one_message(said, 2, '"smolm3"', "smollm3", "starter")


def test_all_mistakes_in_the_settings_are_reported_at_once(tmp_path: Path) -> None:
    wrong = ["trian.lr=1e-4", "train.rnk=8", "mix.tool_share=1.5", "train.schedule=square"]
    said = smollora("run", "starter", *wrong, "--runs", tmp_path)
    one_message(said, 2, "4 setting(s) wrong", "trian", "train.rnk", "tool_share", "schedule")
    assert "rank" in said.err, "the keys that exist are named"
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("override", ["train.lr", "=3", "train.lr=[", "train=3", "name.first=x"])
def test_a_malformed_override_is_explained(tmp_path: Path, override: str) -> None:
    one_message(smollora("run", "starter", override, "--runs", tmp_path), 2)


def test_a_gate_on_a_rate_that_does_not_exist_is_refused_before_anything_runs(
    go: Go, tmp_path: Path
) -> None:
    one_message(go("run", probe__gate={"emision": 0.9}), 2, "emision", "emission")
    assert not done(tmp_path)


def test_an_unknown_stage_to_force_is_named_beside_those_that_exist(go: Go) -> None:
    one_message(go("run", "--force", "traim"), 2, "traim", "train")


def test_a_setting_alone_means_the_starter_recipe(tmp_path: Path) -> None:
    said = smollora("run", "train.lrr=1", "--runs", tmp_path)
    one_message(said, 2, "recipe starter", "train.lrr")


def test_a_recipe_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    one_message(smollora("run", path, "--runs", tmp_path), 2, "latin.yaml", "UTF-8")


# ── data files ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "is not there"), (b"", "is empty"), (b"\n \n", "holds no rows")],
    ids=["missing", "empty", "blank"],
)
def test_a_data_file_without_rows_is_named(
    go: Go, recipe: dict[str, Any], tmp_path: Path, content: bytes | None, word: str
) -> None:
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_bytes(content)
    sources = [source(path), recipe["prepare"]["sources"][1]]
    one_message(go("prepare", prepare__sources=sources), 2, "mine.jsonl", word)


def test_a_json_file_that_is_no_list_is_refused(
    go: Go, recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"rows": []}')
    sources = [source(path), recipe["prepare"]["sources"][1]]
    one_message(go("prepare", prepare__sources=sources), 2, "mine.json", "list")


BAD_ROWS: dict[str, tuple[bytes, str]] = {
    "broken JSON": (b'{"messages": [', "bad_json"),
    "no UTF-8": (b'{"messages": "\xff"}', "bad_unicode"),
    "no object": (b"7", "not_an_object"),
    "unknown form": (b'{"text": "hello"}', "unknown_form"),
    "calls that are no list": (
        b'{"messages": [{"role": "user", "content": "hi"},'
        b' {"role": "assistant", "content": "x", "tool_calls": 5}]}',
        "bad_call",
    ),
    "half a surrogate pair": (
        b'{"messages": [{"role": "user", "content": "\\ud800"},'
        b' {"role": "assistant", "content": "x"}]}',
        "bad_unicode",
    ),
    "a delimiter typed in an answer": (
        b'{"messages": [{"role": "user", "content": "hi"},'
        b' {"role": "assistant", "content": "I would write <tool_call> here."}]}',
        "tag_in_answer",
    ),
}


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_rejected_and_counted_and_the_run_goes_on(
    go: Go, recipe: dict[str, Any], tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "tools.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    said = go("mix")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "runs/tiny/prepare/summary.json").read_text())
    assert summary["rejected"] == {reason: 1}
    assert (summary["rows_in"], summary["rows_kept"]) == (25, 24)
    rejected = read_ledger(tmp_path / "runs/tiny/prepare/rejected.parquet")
    assert [(r["source"], r["row"], r["reason"]) for r in rejected] == [("tools", 1, reason)]


def test_strict_stops_at_the_first_bad_row_and_names_it(go: Go, tmp_path: Path) -> None:
    path = tmp_path / "tools.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    one_message(go("prepare", prepare__strict=True), 2, "row 17 of tools", "bad_json")


def test_a_length_that_no_row_fits_says_why_nothing_is_left(go: Go) -> None:
    one_message(go("prepare", prepare__max_length=16), 2, "none of 24 rows", "24 too_long")


def test_rows_without_any_call_are_not_trained(
    go: Go, recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "talk.jsonl", [no_call_row(city) for city in CITIES])
    sources = [source(path), recipe["prepare"]["sources"][1]]
    one_message(go("train", prepare__sources=sources), 2, "no call rows")
    assert done(tmp_path) == {"inspect", "prepare", "verify"}


def test_a_mix_without_one_of_its_kinds_is_refused(go: Go, recipe: dict[str, Any]) -> None:
    sources = recipe["prepare"]["sources"][:1]
    one_message(go("mix", prepare__sources=sources), 2, "30% general", "mix.tool_share")


def test_calls_to_tools_that_are_not_offered_are_counted_by_reason(
    go: Go, recipe: dict[str, Any], tmp_path: Path
) -> None:
    astray = {**call_row("Oslo"), "tools": [{**WEATHER, "name": "get_time"}]}
    write_rows(tmp_path / "tools.jsonl", [astray, *tool_rows()])
    assert go("prepare").code == 0
    summary = json.loads((tmp_path / "runs/tiny/prepare/summary.json").read_text())
    assert summary["rejected"] == {"unknown_tool": 1}


# ── models ────────────────────────────────────────────────────────────────────────────────────


def with_model(go: Go, folder: Path, verb: str = "inspect") -> Ended:
    return go(verb, model__source=str(folder))


def test_a_model_folder_that_is_not_there_is_named(go: Go, tmp_path: Path) -> None:
    one_message(with_model(go, tmp_path / "a/b/c"), 2, "a/b/c")


@pytest.mark.parametrize("tags", [(), DELIMITERS], ids=["to be equipped", "with delimiters"])
def test_a_model_without_weights_is_refused(go: Go, tmp_path: Path, tags: tuple[str, ...]) -> None:
    folder = write_model(tmp_path / "m", tags=tags, without=["*.safetensors"])
    one_message(with_model(go, folder), 2, "no safetensors weights")
    assert not (tmp_path / "runs/tiny/base").exists()


@pytest.mark.parametrize("tags", [(), DELIMITERS], ids=["to be equipped", "with delimiters"])
def test_weights_that_are_no_weights_are_refused(
    go: Go, tmp_path: Path, tags: tuple[str, ...]
) -> None:
    folder = write_model(tmp_path / "m", tags=tags)
    (folder / "model.safetensors").write_bytes(b"<html>404</html>")
    one_message(with_model(go, folder), 2, "safetensors" if tags else "cannot load the model")


def test_a_model_without_a_tokenizer_is_refused(go: Go, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", without=["tokenizer*", "special_tokens_map.json"])
    one_message(with_model(go, folder), 2, "holds no tokenizer.json", "copy tokenizer.json")


def test_a_model_without_a_config_is_refused(go: Go, tmp_path: Path) -> None:
    one_message(with_model(go, write_model(tmp_path / "m", without=["config.json"])), 2)


def test_a_model_without_a_chat_template_says_how_to_give_one(go: Go, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", template=None)
    one_message(with_model(go, folder), 2, "no chat template", "shipped:chatml_tools")
    said = go("inspect", model__source=str(folder), model__template="shipped:chatml_tools")
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("tags", "settings", "as_calls"),
    [
        ((), {}, True),
        ((), {"model__tools_as": "json"}, False),
        (DELIMITERS, {}, False),
        (DELIMITERS, {"model__tools_as": "calls"}, True),
        ((), {"model__template": "shipped:chatml_tools"}, False),
    ],
    ids=["new delimiters", "json asked for", "known delimiters", "calls asked for", "by name"],
)
def test_tools_are_shown_as_calls_where_the_delimiters_are_new(
    go: Go, tmp_path: Path, tags: tuple[str, ...], settings: dict[str, Any], as_calls: bool
) -> None:
    said = go("inspect", model__source=str(write_model(tmp_path / "m", tags=tags)), **settings)
    assert said.code == 0, said.err
    source = (tmp_path / "runs/tiny/base/chat_template.jinja").read_text(encoding="utf-8")
    assert ("set tools_as_calls = true" in source) is as_calls
    prompt = ChatTemplate(source).render(
        [{"role": "user", "content": "Hi"}],
        [{"name": "ping", "parameters": {"type": "object", "properties": {"n": {}}}}],
    )
    assert ('{"name": "ping", "arguments": {"n"?: any}}' in prompt) is as_calls


def test_tools_as_calls_want_the_template_that_can(go: Go, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text(load_shipped("chatml_tools"), encoding="utf-8")
    said = go("inspect", model__tools_as="calls", model__template=str(mine))
    one_message(said, 2, "model.tools_as=calls", "model.tools_as=auto")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", ["not valid Jinja"]),
        (
            "{% for m in messages %}[INST]{{ m['content'] }}{% endfor %}",
            ["no shipped template", "generation_prompt_matches"],
        ),
    ],
    ids=["broken", "of another family"],
)
def test_a_template_that_cannot_be_repaired_is_refused(
    go: Go, tmp_path: Path, template: str, words: list[str]
) -> None:
    one_message(with_model(go, write_model(tmp_path / "m", template=template)), 2, *words)


@pytest.mark.parametrize(
    "setting",
    [
        {"model__template": "missing.jinja"},
        {"model__template": "shipped:nothing"},
        {"model__format": "morse"},
        {"model__equip": False},
    ],
    ids=lambda setting: "=".join(map(str, *setting.items())),
)
def test_a_model_setting_that_cannot_be_met_is_refused(go: Go, setting: dict[str, Any]) -> None:
    one_message(go("inspect", **setting), 2)


def test_target_layers_that_match_nothing_are_listed_beside_those_there(go: Go) -> None:
    one_message(go("train", train__targets=["c_attn"]), 2, "c_attn", "q_proj")


def test_a_loss_that_is_not_a_number_stops_the_training(go: Go, tmp_path: Path) -> None:
    said = go("train", train__lr=1e30, train__epochs=5, train__batch_tokens=512)
    one_message(said, 2, "not a number", "train.lr")
    assert "train" not in done(tmp_path)


# ── cases ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", [None, "", '{"id": "c1"}\n', "{broken\n"])
def test_cases_that_cannot_be_read_are_refused_before_the_training(
    go: Go, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_text(content)
    one_message(go("run", probe__cases=str(path)), 2, "mine.jsonl")
    assert "train" not in done(tmp_path)


def test_a_stock_template_that_refuses_tools_does_not_stop_the_probe(
    go: Go, tmp_path: Path
) -> None:
    stock = (
        "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    folder = write_model(tmp_path / "m", template=stock)
    said = go("run", model__source=str(folder), model__template="shipped:chatml_tools")
    assert said.code == 0, said.err
    summary = json.loads((tmp_path / "runs/tiny/probe/summary.json").read_text())
    assert "base_stock" not in summary
    assert "no tools here" in summary["stock_template_refuses"]


# ── what a machine does to a run ──────────────────────────────────────────────────────────────


def stage_that(act: Callable[[], None]) -> Callable[[Run], dict[str, Any]]:
    """A stage that does `act` and nothing else."""

    def stage(run: Run) -> dict[str, Any]:
        act()
        return {}

    return stage


def raising(error: BaseException) -> Callable[[Run], dict[str, Any]]:
    def act() -> None:
        raise error

    return stage_that(act)


def test_ctrl_c_ends_with_130_and_keeps_what_is_finished(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed = stage_that(lambda: signal.raise_signal(signal.SIGINT))
    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "train", pressed)
        said = go("run")
    assert said.code == 130
    assert "the same command goes on" in said.err
    assert "Traceback" not in said.err
    assert done(tmp_path) == set(BEFORE_TRAIN)
    again = go("run")
    assert again.code == 0, again.err
    assert re.findall(r"^(\w+) +unchanged", again.out, re.MULTILINE) == list(BEFORE_TRAIN)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    assert go("prepare").code == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        said = go("run")
    one_message(said, 2, "No space left on device", "free some space")
    assert done(tmp_path) == {"inspect", "prepare"}
    assert not list((tmp_path / "runs/tiny").glob("**/.*.json.*")), "no half-written file is left"
    assert go("mix").code == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "goes on"]),
        # What safetensors 0.8 raises from save_file on a full tmpfs.
        (Exception("I/O error: No space left on device (os error 28)"), ["disk is full"]),
        (MemoryError(), ["out of memory", "batch_tokens"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), ["out of memory"]),
        # What torch 2.13 raises where the CPU has no memory left.
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ["out of memory"]),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), ["/srv/x", "Permission"]),
    ],
    ids=["disk", "disk, safetensors", "memory", "CUDA memory", "CPU memory", "permission"],
)
def test_what_a_machine_lacks_is_one_message(
    go: Go,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: list[str],
) -> None:
    monkeypatch.setitem(pipeline.STAGES, "train", raising(error))
    one_message(go("run"), 2, *words)
    assert done(tmp_path) == set(BEFORE_TRAIN)


def test_a_runs_folder_that_is_a_file_is_one_message(go: Go, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    one_message(go("run", "--runs", path), 2, "taken")


def test_our_own_bugs_show_their_traceback(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.STAGES, "prepare", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        go("run")


# ── gates ─────────────────────────────────────────────────────────────────────────────────────


def test_a_gate_that_falls_short_ends_with_1_and_keeps_everything(go: Go, tmp_path: Path) -> None:
    gate = {"emission": 0.95, "false_call": 0.5}
    said = go("run", probe__gate=gate)
    one_message(said, 1, "emission 0.0%, wanted at least 95%")
    assert "false_call" not in said.err, "a gate that holds is no reason"
    assert done(tmp_path) == {*BEFORE_TRAIN, "train", "merge", "probe", "report"}
    assert (tmp_path / "runs/tiny/report.html").is_file()
    again = go("run", probe__gate=gate)
    assert again.code == 1, "a second look is no pass"
    assert "unchanged" in again.out


def test_a_rate_over_no_cases_does_not_pass_its_gate(go: Go, tmp_path: Path) -> None:
    write_rows(tmp_path / "cases.jsonl", CASES[1:])
    one_message(go("run", probe__gate={"emission": 0.0}), 1, "emission no cases")


def test_a_merge_out_of_tolerance_ends_with_1(go: Go) -> None:
    one_message(
        go("merge", merge__tolerance=1e-30, merge__rounding_times=0), 1, "merge: logits differ"
    )


def test_a_merge_is_not_judged_by_the_probe_of_before(go: Go) -> None:
    assert go("run", probe__gate={"emission": 0.95}).code == 1
    assert go("merge", probe__gate={"emission": 0.95}).code == 0


# ── what is printed ───────────────────────────────────────────────────────────────────────────


def test_json_is_all_that_stands_on_standard_output(go: Go) -> None:
    said = go("run", "--json")
    assert said.code == 0
    assert json.loads(said.out)["passed"] is True
    assert json.loads(go("mix", "--json").out)["stage"] == "mix"


def test_quiet_prints_one_line(go: Go) -> None:
    said = go("run", "--quiet")
    assert said.code == 0
    assert len(said.out.splitlines()) == 1
    assert said.out.startswith("passed: ")


def test_the_libraries_below_print_nothing_of_their_own(tmp_path: Path, model: Path) -> None:
    """transformers drew a bar for every file of 1 MB, peft a FutureWarning a run."""
    path = write_recipe(tmp_path / "recipe.yaml", tiny_recipe(tmp_path, model))
    command = [sys.executable, "-m", "smollora.cli", "merge", str(path), "--runs", str(tmp_path)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, env=alone
    )
    assert ended.stderr == ""


def test_every_stage_prints_one_line_and_the_mix_its_plan_before(go: Go) -> None:
    said = go("run").out.splitlines()
    lines = [line.split()[0] for line in said if not line.startswith("  ")]
    assert [line.split()[0] for line in said if line.startswith("  ")] == ["tool", "general"]
    stages = list(pipeline.STAGES)
    at = stages.index("mix")
    assert lines == [*stages[:at], "mix", *stages[at:], "passed:"]


def test_a_dry_run_prints_every_key_and_writes_nothing(go: Go, tmp_path: Path) -> None:
    said = go("run", "--dry-run")
    assert said.code == 0, said.err
    for key in ("max_length: 1024", "schedule: cosine", "stock_prompt_cases: 1", "seed: 7"):
        assert key in said.out, f"{key} is missing, whether given or a default"
    assert re.search(r"^train +would run$", said.out, re.MULTILINE)
    assert "20 rows" in said.out
    assert not (tmp_path / "runs").exists()


# ── inspect ───────────────────────────────────────────────────────────────────────────────────


def test_inspect_says_what_is_in_the_way_of_a_model_and_ends_with_1(model: Path) -> None:
    said = smollora("inspect", model)
    assert said.code == 1
    assert "ordinary tokens" in said.err
    assert "call_without_arguments" in said.out


def test_inspect_of_what_a_run_made_is_ready(go: Go, tmp_path: Path) -> None:
    assert go("inspect").code == 0
    said = smollora("inspect", tmp_path / "runs/tiny/base", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["verdict"] == "ready"


def test_inspect_takes_a_wheel_for_a_model_and_not_for_a_setting() -> None:
    one_message(smollora("inspect", "pypi:nothing==1.0"), 2, "no sha256 is known", "nothing==1.0")


# ── eval ──────────────────────────────────────────────────────────────────────────────────────


def test_eval_asks_both_models_of_a_finished_run(go: Go, tmp_path: Path) -> None:
    assert go("run").code == 0
    said = go("eval", "--suite", tmp_path / "cases.jsonl", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)["suites"][str(tmp_path / "cases.jsonl")]
    assert set(found) == {"single", "near_miss", "no_tools"}
    assert found["single"]["base"]["emission"]["n"] == 1
    assert found["single"]["merged"]["false_call"]["rate"] is None, "no cases is not 0%"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--suite", "gsm8k"], '"gsm8k" is no suite'),
        (["--model", "tuned", "--suite", "x.jsonl"], '"tuned" is no model'),
        (["--suite", "missing.jsonl"], "run `smollora run` first"),
    ],
    ids=["no suite", "no model", "no run"],
)
def test_eval_refuses_what_is_not_there(
    go: Go, tmp_path: Path, flags: list[str], word: str
) -> None:
    if "gsm8k" in flags:
        for folder in ("base", "merge/model"):
            (tmp_path / "runs/tiny" / folder).mkdir(parents=True)
    one_message(go("eval", *flags), 2, word)


def test_the_entry_point_is_the_one_that_is_tested_here() -> None:
    assert project()["scripts"] == {"smollora": f"{cli.__name__}:{cli.main.__name__}"}
