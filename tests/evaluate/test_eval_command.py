"""`smollora eval` end to end on models that take seconds: any model, retention, bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smollora.evaluate.harness import METRICS, score_text
from smollora.evaluate.retention import loss_change, loss_record
from smollora.likelihood import row_losses
from smollora.templates.engine import load_shipped
from smollora.types import Rendered
from tiny_models import tiny_model
from tiny_runs import CASES, Ended, smollora, write_model, write_rows

SHIPPED = load_shipped("chatml_tools")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "oslo"}}\n</tool_call>'
HARNESSES = Path(__file__).parents[2] / "src" / "smollora" / "evaluate" / "harnesses"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("m") / "tiny", template=SHIPPED, tags=TAGS)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "cases.jsonl", CASES)


def go(model: Path | str, *flags: object) -> Ended:
    return smollora("eval", model, "probe.max_new_tokens=4", *flags)


def one_message(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
    assert "hint: " in ended.err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ── what it does ──────────────────────────────────────────────────────────────────────────────


def test_any_model_folder_answers_a_file_of_cases(model: Path, cases: Path, tmp_path: Path) -> None:
    said = go(model, "--suite", cases, "--out", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["suites"][str(cases)]["single"]["model"]["emission"]["n"] == 1
    assert found["suites"][str(cases)]["no_tools"]["model"]["false_call"]["n"] == 1
    assert found == json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [row["case_id"] for row in lines(tmp_path / "out" / "records.jsonl")] == [
        "c1",
        "c2",
        "c3",
    ]
    assert go(model, "--suite", cases, "--out", tmp_path / "out").out.count("c") > 3


def test_retention_is_measured_before_and_after(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = go(
        *(model, "probe.base_max_new_tokens=4", "--base", model, "--suite", "retention"),
        *("--limit", 3, "--out", out, "--json"),
    )
    assert said.code == 0, said.err
    kept = json.loads(said.out)["retention"]
    assert kept["loss"]["base"] == kept["loss"]["model"]
    assert kept["loss"]["base"]["rows"] == 3
    assert kept["loss_change"]["model"] == {"nats_per_token": 0.0, "low": 0.0, "high": 0.0}
    assert kept["instructions_change"]["model"] == {"lost": 0, "gained": 0}
    again = smollora("eval", "--rescore", out, "--json")
    assert json.loads(again.out)["retention"] == kept


def test_records_are_judged_again_by_what_their_cases_say_now(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert go(model, "--suite", cases, "--out", out).code == 0
    rows = lines(out / "records.jsonl")
    rows[0] |= {
        "attempts": [
            {
                "raw": CALL,
                "status": "ok",
                "call": {"name": "get_weather", "arguments": {"city": "oslo"}},
                "span": [0, 3],
            }
        ]
    }
    write_rows(out / "records.jsonl", rows)
    said = smollora("eval", "--rescore", out / "records.jsonl")
    assert said.code == 0, said.err
    assert "1 verdicts changed" in said.out
    assert lines(out / "records.jsonl")[0]["verdict"] == "right"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["suites"][str(cases)]["single"]["model"]["right_call"]["k"] == 1


def test_the_loss_of_rows_is_the_one_that_the_library_computes() -> None:
    net = tiny_model("llama")
    ids = tuple(torch.randint(0, 480, (30,), generator=torch.Generator().manual_seed(1)).tolist())
    trained = tuple(place >= 20 for place in range(30))
    labels = torch.tensor([[token if on else -100 for token, on in zip(ids, trained, strict=True)]])
    with torch.no_grad():
        expected = float(net(input_ids=torch.tensor([ids]), labels=labels).loss)
    ((total, tokens),) = row_losses(net, [Rendered("r", ids, (0,) * 30, trained)])
    assert tokens == 10
    assert total / tokens == pytest.approx(expected, abs=1e-4)


def test_a_change_of_loss_has_an_interval_around_it() -> None:
    before = [loss_record("a", str(place), 10.0 + place, 5) for place in range(40)]
    after = [loss_record("b", str(place), 10.5 + place + place % 2, 5) for place in range(40)]
    found = loss_change(before, after)
    assert found["nats_per_token"] == pytest.approx(0.2)  # 40 x 0.5 and 20 x 1, over 200 tokens
    assert 0.1 < found["low"] < 0.2 < found["high"] < 0.3


# ── other harnesses ───────────────────────────────────────────────────────────────────────────


def test_exported_prompts_carry_the_tools_and_answers_are_scored_as_text(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    said = go(model, "--suite", cases, "--export", tmp_path / "out")
    assert said.code == 0, said.err
    rows = lines(tmp_path / "out" / "test.jsonl")
    assert "get_weather" in rows[0]["prompt"]
    assert "Oslo" in rows[0]["prompt"]
    right = {"right": 1.0, "emission": 1.0, "right_tool": 1.0, "right_call": 1.0}
    assert score_text(rows[0], CALL) == right
    assert score_text(rows[0], "It rains.") == {"right": 0.0, "emission": 0.0}
    assert score_text(rows[1], CALL) == {"right": 0.0, "false_call": 1.0}
    assert score_text(rows[1], "I cannot.") == {"right": 1.0, "false_call": 0.0}


def test_the_task_of_lm_eval_names_functions_and_metrics_that_there_are() -> None:
    from smollora.evaluate.harnesses.lm_eval import utils

    text = (HARNESSES / "lm_eval" / "smollora_calls.yaml").read_text(encoding="utf-8")
    task = yaml.safe_load(text.replace("!function utils.", ""))
    assert callable(getattr(utils, task["custom_dataset"]))
    assert callable(getattr(utils, task["process_results"]))
    assert [each["metric"] for each in task["metric_list"]] == list(METRICS)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        (["not JSON"], "row 1"),
        ([*map(json.dumps, CASES), '{"id": "x"}'], "row 4"),
        (['{"id": "x", "category": "c", "messages": "hello"}'], "row 1"),
        ([json.dumps({**CASES[0], "expected": [{"name": "f", "arguments": "{}"}]})], "case c1"),
        ([json.dumps({**CASES[0], "messages": [{"role": "robot", "content": "x"}]})], "row 1"),
        ([json.dumps(CASES[0]), json.dumps(CASES[0])], "two cases with the id c1"),
        ([], "is empty"),
    ],
    ids=[
        *("no JSON", "keys missing", "messages are text", "arguments are text", "no such role"),
        *("an id twice", "empty"),
    ],
)
def test_a_broken_file_of_cases_is_named_with_its_row(
    model: Path, tmp_path: Path, rows: Sequence[str], word: str
) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    one_message(go(model, "--suite", path), 2, word, "cases.jsonl")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--suite", "bfcl:simple_cobol"], "no single-turn category simple_cobol"),
        (["--suite", "bfcl:multi_turn_base"], "no single-turn category multi_turn_base"),
        (["--suite", "gsm8k"], '"gsm8k" is no suite'),
        (["--suite", "absent.jsonl"], "absent.jsonl is not there"),
        (["--limit", "0", "--suite", "retention"], "--limit"),
        (["--model", "merged", "--suite", "retention"], '"merged" is no model here'),
        (["--suite", "retention", "--export", "x"], "no calls to export"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    model: Path, tmp_path: Path, flags: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = go(model, *flags)
    assert said.code == 2
    assert word in said.err
    assert "Traceback" not in said.err


def test_a_model_without_a_template_is_refused(tmp_path: Path, cases: Path) -> None:
    bare = write_model(tmp_path / "bare", template=None)
    one_message(go(bare, "--suite", cases), 2, "no chat template")


def test_an_adapter_whose_base_is_gone_asks_for_it(tmp_path: Path, cases: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "gone/for/good"}', encoding="utf-8"
    )
    one_message(go(tmp_path / "adapter", "--suite", cases), 2, "gone/for/good", "--base")


def test_an_endpoint_where_nobody_is_ends_with_a_message(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    said = go(
        *(model, "--suite", cases, "--endpoint", "http://127.0.0.1:9"),
        *("--out", tmp_path / "out"),
    )
    one_message(said, 2, "127.0.0.1:9")
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "cases.jsonl").unlink(),
        lambda folder: (folder / "records.jsonl").write_text("", encoding="utf-8"),
        lambda folder: (folder / "summary.json").write_text("{}", encoding="utf-8"),
        lambda folder: (folder / "cases.jsonl").write_text("", encoding="utf-8"),
    ],
    ids=["no cases", "no records", "another summary", "cases of something else"],
)
def test_an_evaluation_that_is_not_whole_is_not_scored_again(
    model: Path, cases: Path, tmp_path: Path, spoil: Any
) -> None:
    assert go(model, "--suite", cases, "--out", tmp_path / "out").code == 0
    spoil(tmp_path / "out")
    one_message(smollora("eval", "--rescore", tmp_path / "out"), 2)
