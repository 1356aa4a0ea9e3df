"""`smollora probe MODEL`: every kind of target, columns side by side, the gate, and what people get
wrong.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollora.config import ProbeSection
from smollora.evaluate.cases import probe_cases, read_cases, starter_cases
from smollora.generate import LocalGenerator
from smollora.templates.engine import load_shipped
from tiny_runs import (
    CASES,
    DELIMITERS,
    smollora,
    tiny_recipe,
    write_model,
    write_recipe,
    write_rows,
)

TEMPLATE = load_shipped("chatml_tools")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that could call."""
    return write_model(tmp_path_factory.mktemp("m") / "m", template=TEMPLATE, tags=DELIMITERS)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("c") / "cases.jsonl", CASES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that write into it copy it."""
    folder = tmp_path_factory.mktemp("run")
    source = write_model(folder / "source", template=TEMPLATE, tags=DELIMITERS)
    recipe = write_recipe(folder / "tiny.yaml", tiny_recipe(folder, source))
    ended = smollora("run", recipe, "--runs", folder / "runs")
    assert ended.code == 0, ended.err
    return folder / "runs" / "tiny"


def answers(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """(exit code, summary, standard error) of `smollora probe ... --json`."""
    ended = smollora("probe", *arguments, "--json")
    return ended.code, json.loads(ended.out) if ended.out else {}, ended.err


SMALL = ("--max-new-tokens", "4", "--gate", "none")


# ── targets ───────────────────────────────────────────────────────────────────────────────────


def test_a_model_folder_is_one_column_and_its_records_hold_raw_ids(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, summary, err = answers(model, "--cases", cases, *SMALL, "--out", out)
    assert code == 0, err
    assert summary["columns"] == ["model"] and summary["cases"] == 3
    assert summary["model"]["emission"]["n"] == 1
    assert json.loads((out / "summary.json").read_text())["model"] == summary["model"]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["case_id"] for record in records] == ["c1", "c2", "c3"]
    for record in records:
        assert 1 <= len(record["token_ids"]) <= 4
        assert len(record["tokens"]) == len(record["token_ids"])
        assert record["opener_logprob"] < 0


def test_a_run_folder_is_asked_in_all_its_columns_and_keeps_them(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(finished, run, symlinks=True)
    before = json.loads((run / "probe" / "summary.json").read_text())
    code, summary, err = answers(run)
    assert code == 0, err
    assert summary["columns"] == ["base", "adapter", "merged"]
    assert [step["says"].split(":")[0] for step in summary["steps"]] == [
        "base and adapter agree",
        "adapter and merged agree",
    ]
    kept = json.loads((run / "probe" / "summary.json").read_text())
    assert kept["base_stock"] == before["base_stock"], "what was not asked again stays"
    assert kept["merged"] == before["merged"], "the same model, asked the same"
    assert set(kept["by_category"]) == {"base", "base_stock", "adapter", "merged"}
    names = {json.loads(line)["model"] for line in (run / "probe/records.jsonl").open()}
    assert names == {"base", "base_stock", "adapter", "merged"}
    code, alone, _ = answers(run, "--columns", "base")
    after = json.loads((run / "probe" / "summary.json").read_text())
    assert alone["judged"] == "base" and after["judged"] == "merged"
    assert len(after["steps"]) == 2


def test_an_adapter_folder_finds_its_base(finished: Path, cases: Path, tmp_path: Path) -> None:
    code, summary, err = answers(finished / "train" / "adapter", "--cases", cases, *SMALL)
    assert code == 0, err
    assert summary["columns"] == ["base", "adapter"]
    away = tmp_path / "adapter"
    shutil.copytree(finished / "train" / "adapter", away)
    config = json.loads((away / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (away / "adapter_config.json").write_text(json.dumps(config))
    lost = smollora("probe", away)
    assert lost.code == 2 and "--base MODEL" in lost.err
    code, given, err = answers(away, "--base", finished / "base", "--cases", cases, *SMALL)
    assert code == 0, err
    assert given["adapter"] == summary["adapter"]


def test_a_recipe_means_the_stage_of_its_run(finished: Path) -> None:
    recipe = finished.parent.parent / "tiny.yaml"
    ended = smollora("probe", recipe, "--runs", finished.parent, "--json")
    assert ended.code == 0, ended.err
    assert set(json.loads(ended.out)) >= {"base", "merged", "by_language", "by_system"}
    wrong = smollora("probe", recipe, "--limit", "3")
    assert wrong.code == 2 and "probe.limit" in wrong.err


def test_drawn_answers_are_a_column_of_their_own(model: Path, cases: Path, tmp_path: Path) -> None:
    hot = tmp_path / "hot"
    shutil.copytree(model, hot)
    said = {"do_sample": True, "temperature": 1.9, "top_p": 0.99}
    (hot / "generation_config.json").write_text(json.dumps(said))
    out = tmp_path / "out"
    code, summary, err = answers(hot, "--cases", cases, *SMALL, "--sampled", 3, "--out", out)
    assert code == 0, err
    assert summary["columns"] == ["model", "model_sampled"]
    assert summary["model_sampled"]["emission"]["n"] == 3
    assert "model_sampled draws with temperature 1.9, top_p 0.99" in summary["notes"]
    drawn = [json.loads(line) for line in (out / "records.jsonl").open()][3:]
    assert len({tuple(record["token_ids"]) for record in drawn[:3]}) > 1
    again = answers(hot, "--cases", cases, *SMALL, "--sampled", 3)[1]
    assert again["model_sampled"] == summary["model_sampled"]


# ── a server ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(
    folder: Path, *, cut_stop: bool = False, fails: int = 0, logprobs: bool = False
) -> Iterator[str]:
    """The model of `folder` behind what vLLM answers to prompts of ids; greedy."""
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    lock = threading.Lock()
    left = [fails]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def reply(self, code: int, body: Any) -> None:
            payload = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                left[0] -= 1
                if left[0] >= 0:
                    return self.reply(500, {"error": {"message": "out of luck"}})
                stops = () if cut_stop else asked.get("stop_token_ids", ())
                generator = LocalGenerator(network, stop_ids=stops, opener_id=None, pad_id=0)
                (made,) = generator.generate([asked["prompt"]], max_new_tokens=asked["max_tokens"])
                with torch.no_grad():
                    logits = network(torch.tensor([asked["prompt"]])).logits[0, -1]
            choice = {"text": "", "finish_reason": made.finish, "token_ids": list(made.token_ids)}
            if logprobs:
                wanted = asked.get("logprob_token_ids", ())
                scores = logits.float().log_softmax(-1)
                first = {f"token_id:{token}": float(scores[token]) for token in wanted}
                choice["logprobs"] = {"top_logprobs": [first]}
            return self.reply(200, {"choices": [choice]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_healthy_server_agrees_with_the_model_that_it_serves(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(finished, run, symlinks=True)
    with serving(run / "merge" / "model") as url:
        code, summary, err = answers(run, "--endpoint", url, "--columns", "merged,served")
    assert code == 0, err
    assert summary["columns"] == ["merged", "served"]
    assert [step["says"] for step in summary["steps"]] == [
        "merged and served agree: all 3 answers are the same"
    ]
    kept = json.loads((run / "probe" / "summary.json").read_text())
    assert {"base", "merged", "served"} <= set(kept) and kept["judged"] == "served"


def test_prompts_that_a_server_does_not_answer_are_harness_errors(
    finished: Path, cases: Path
) -> None:
    merged = finished / "merge" / "model"
    with serving(merged, fails=1) as url:
        code, summary, err = answers(merged, "--endpoint", url, "--cases", cases, *SMALL)
    assert code == 2
    assert "1 of 3 prompts got no answer from served" in err
    assert summary["columns"] == ["served"] and summary["harness_errors"] == {"served": 1}
    counted = summary["served"]["emission"]["n"] + summary["served"]["false_call"]["n"]
    assert counted == 2, "no failure of the model"


def test_a_server_that_is_not_there_is_one_message(model: Path) -> None:
    ended = smollora("probe", model, "--endpoint", "http://127.0.0.1:9")
    assert ended.code == 2 and "Traceback" not in ended.err


def test_a_server_alone_is_asked_for_its_model(model: Path) -> None:
    with serving(model) as url:
        ended = smollora("probe", "--endpoint", url)
    assert ended.code == 2 and "smollora probe MODEL --endpoint URL" in ended.err


# ── where columns part ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def broken(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a merge that went wrong: the last norm has its sign turned."""
    run = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(finished, run)
    network = AutoModelForCausalLM.from_pretrained(run / "merge" / "model")
    network.model.norm.weight.data *= -1
    network.save_pretrained(run / "merge" / "model")
    return run


def margin_by_hand(
    folder: Path, case: dict[str, Any], records: list[dict[str, Any]], parting: dict[str, Any]
) -> float:
    """How much likelier the left token is there, by transformers alone: its template, its pass."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        case["messages"], tools=case["tools"] or None, add_generation_prompt=True, return_dict=False
    )
    (record,) = (r for r in records if r["case_id"] == case["id"] and r["model"] != "adapter")
    ids = [*prompt, *record["token_ids"][: parting["place"]]]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0, -1].float()
    return float(logits[parting["left"]["token_id"]] - logits[parting["right"]["token_id"]])


def test_the_margins_at_a_broken_merge_are_those_of_its_own_pass(
    broken: Path, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = (broken, "--columns", "adapter,merged", "--cases", cases, *SMALL)
    code, summary, err = answers(*asked, "--out", out)
    assert code == 0, err
    (step,) = summary["steps"]
    records = [json.loads(line) for line in (out / "records.jsonl").open()]
    assert step["same_ids"] + len(step["partings"]) == 3 and step["partings"]
    for parting in step["partings"]:
        case = next(case for case in CASES if case["id"] == parting["case_id"])
        found = margin_by_hand(broken / "merge" / "model", case, records, parting)
        # the margin of the right column counts for its own token
        assert parting["right"]["margin"] == pytest.approx(-found, abs=0.02)
        assert parting["left"]["margin"] is not None
    shown = smollora("probe", *asked)
    assert "where adapter and merged part" in shown.out
    assert "margin between the two tokens" in shown.out


def test_a_server_that_gives_no_logprobs_leaves_the_local_margin(
    finished: Path, broken: Path, cases: Path
) -> None:
    asked = ("--columns", "merged,served", "--cases", cases, *SMALL)
    with serving(broken / "merge" / "model") as url:
        _, summary, _ = answers(finished, "--endpoint", url, *asked)
    partings = summary["steps"][0]["partings"]
    assert partings
    for parting in partings:
        assert parting["right"]["margin"] is None
        assert parting["margin"] == abs(parting["left"]["margin"])


def test_a_server_that_gives_logprobs_is_asked_for_those_of_both_tokens(
    finished: Path, broken: Path, cases: Path
) -> None:
    asked = ("--columns", "merged,served", "--cases", cases, *SMALL)
    with serving(broken / "merge" / "model", logprobs=True) as url:
        _, summary, _ = answers(finished, "--endpoint", url, *asked)
    for parting in summary["steps"][0]["partings"]:
        # greedy: the token that the server wrote is the likeliest one there
        assert parting["right"]["margin"] >= 0


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────


def test_below_the_gate_is_exit_code_1_with_the_reason_last(model: Path, cases: Path) -> None:
    ended = smollora("probe", model, "--cases", cases, "--max-new-tokens", 2)
    assert ended.code == 1
    assert "emission 0.0%, wanted at least 95%" in ended.err
    assert "SHORT model emission" in ended.out
    kept = smollora("probe", model, "--cases", cases, "--max-new-tokens", 2,
                    "--gate", "false_call=0.5")  # fmt: skip
    assert kept.code == 0, kept.err


def test_a_model_without_delimiters_gets_a_verdict_and_no_rates(tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", template=TEMPLATE)
    code, summary, err = answers(bare)
    assert code == 1
    assert "cannot emit a call: <tool_call> is" in err and "ordinary tokens" in err
    assert summary["passed"] is False and "model" not in summary


def test_a_template_that_hides_the_tools_is_said(tmp_path: Path, cases: Path) -> None:
    stock = write_model(tmp_path / "stock", tags=DELIMITERS)  # ChatML that drops tools
    _, summary, _ = answers(stock, "--cases", cases, *SMALL)
    assert any("shows no tools" in note for note in summary["notes"])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--columns", "merged"], "no column merged"),
        (["--columns", "mergd"], "columns: base, adapter"),
        (["--columns", "served"], "--endpoint URL"),
        (["--gate", "emision=0.9"], "rates: emission"),
        (["--gate", "emission"], "RATE=LIMIT"),
        (["--cases", "gone.jsonl"], "gone.jsonl is not there"),
        (["train.lr=1"], "no recipe"),
    ],
)
def test_what_people_get_wrong_is_one_message(model: Path, arguments: list[str], says: str) -> None:
    ended = smollora("probe", model, *arguments)
    assert ended.code == 2 and says in ended.err, ended.err


def test_a_broken_row_is_named_and_the_others_are_asked(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    write_rows(path, [CASES[0], {"id": "x", "category": "single"}, CASES[2]])
    path.write_text(path.read_text() + "{broken\n")
    code, summary, err = answers(model, "--cases", path, *SMALL)
    assert code == 2 and "row 2" in err and "messages" in err
    assert summary["cases"] == 2
    assert [row.split(" of ")[0] for row in summary["broken_rows"]] == ["row 2", "row 4"]
    only = write_rows(tmp_path / "only.jsonl", [{"id": "x"}])
    assert smollora("probe", model, "--cases", only).code == 2


def test_the_table_shows_every_column_and_what_parts_them(finished: Path, cases: Path) -> None:
    ended = smollora("probe", finished, "--cases", cases, *SMALL)
    assert ended.code == 0, ended.err
    for said in ("base", "adapter", "merged", "emission", "by category", "near_miss"):
        assert said in ended.out
    assert "adapter and merged agree" in ended.out


# ── the shipped cases ─────────────────────────────────────────────────────────────────────────


def test_the_shipped_cases_ask_everything_that_a_probe_must() -> None:
    cases = [*starter_cases(), *probe_cases()]
    by_category: dict[str, set[bool]] = {}
    for case in cases:
        by_category.setdefault(case.category, set()).add(bool(case.expected))
    calling = {"single", "parallel", "after_question", "long_argument", "nested"}
    quiet = {"needless", "irrelevant", "no_tools", "missing", "near_miss", "after_result"}
    assert all(by_category[name] == {True} for name in calling)
    assert all(by_category[name] == {False} for name in quiet)
    assert {case.language for case in cases} == {"en", "fr", "de", "es", "it", "pt"}
    assert all(
        case.messages[-1].role == "tool" for case in cases if case.category == "after_result"
    )
    assert len({case.id for case in cases}) == len(cases)
    called = {call.name for case in cases for call in case.expected}
    assert {"write_file", "save_config"} <= called


def test_the_calls_of_the_shipped_cases_fit_their_schemas_and_their_requests() -> None:
    import jsonschema

    for case in probe_cases():
        tools = {tool.name: tool for tool in case.tools}
        said = case.messages[-1].content
        for call in case.expected:
            jsonschema.validate(dict(call.arguments), dict(tools[call.name].parameters))
            if call.name == "write_file":
                assert call.arguments["path"] in said
                assert call.arguments["content"].strip() in said


def test_cases_of_a_file_keep_calls_and_results(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "category": "after_result",
        "language": "fr",
        "messages": [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ],
        "tools": CASES[0]["tools"],
    }
    (case,) = read_cases(write_rows(tmp_path / "c.jsonl", [row]))
    assert case.messages[1].calls[0].arguments == {"city": "Oslo"}
    assert case.messages[2].call_id == "1" and case.language == "fr"


def test_the_default_gate_is_the_recipes(model: Path, cases: Path) -> None:
    _, summary, _ = answers(model, "--cases", cases, "--max-new-tokens", 2)
    assert set(summary["gate"]) == set(ProbeSection().gate)
