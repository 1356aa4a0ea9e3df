"""`smollora doctor MODEL --cures`: runs, adapters, servers, and what people get wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from doctor_models import ServedTokenizer, save_folder
from fake_server import FakeServer
from served_model import Scripted
from smollora.cures.examples import EXAMPLE_TOOLS, with_examples
from smollora.cures.verdict import gate_for
from smollora.errors import ConfigError, DataError
from smollora.evaluate.cases import probe_cases, read_cases, starter_cases
from smollora.templates.engine import load_shipped
from smollora.types import Conversation, EvalCase, Message, ToolCall
from tiny_models import TAGS
from tiny_runs import (
    CASES,
    CHATML,
    DELIMITERS,
    Ended,
    smollora,
    tiny_recipe,
    write_model,
    write_recipe,
    write_rows,
)

SOUND = load_shipped("chatml_tools")
SMALL = ("--max-tokens", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with ChatML as most small models carry it."""
    return write_model(tmp_path_factory.mktemp("m") / "m", template=CHATML, tags=TAGS)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("c") / "cases.jsonl", CASES)


def cures(*arguments: object) -> Ended:
    return smollora("doctor", *arguments, "--cures")


# ── on this machine ───────────────────────────────────────────────────────────────────────────


def test_a_run_is_asked_under_its_published_template_and_after_its_training(
    tmp_path: Path, cases: Path
) -> None:
    source = write_model(tmp_path / "source", template=CHATML, tags=DELIMITERS)
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_recipe(tmp_path, source))
    assert smollora("run", recipe, "--runs", tmp_path / "runs").code == 0
    run = tmp_path / "runs" / "tiny"
    ended = cures(run, "--cases", cases, *SMALL, "--json")
    found = json.loads(ended.out)
    assert found["verdict"] == "nothing is enough" and ended.code == 1
    assert list(found["lines"]) == [
        *("stock", "repaired", "examples", "grammar", "required", "trained", "trained_grammar")
    ]
    # the base of a run carries the repaired template already; the published one drops the tools
    lines = found["lines"]
    assert all(line["seconds_per_case"] * 3 == pytest.approx(line["seconds"], abs=0.01)
               for line in lines.values())  # fmt: skip
    assert lines["stock"]["prompt_tokens"] < lines["repaired"]["prompt_tokens"]
    assert "tools_reach_prompt" in found["template_faults"]
    assert found["trained"] == str(run / "merge" / "model")
    assert json.loads((run / "cures" / "cures.json").read_text()) == found
    ended = cures(run, "--cases", cases, *SMALL, "--adapter", run / "train" / "adapter", "--json")
    assert json.loads(ended.out)["lines"]["trained"]["prompts"] == 3


def test_a_required_call_of_a_model_of_random_weights_begins_with_the_delimiter(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cures(model, "--cases", cases, *SMALL, "--cure", "required", "--out", out)
    records = [json.loads(line) for line in (out / "cures_records.jsonl").open()]
    opened = {record["case_id"]: record["tokens"][0] == "<tool_call>" for record in records}
    assert opened == {"c1": True, "c2": True, "c3": False}  # c3 offers no tool


# ── examples ──────────────────────────────────────────────────────────────────────────────────


def test_examples_are_sound_turns_whose_tools_no_case_offers() -> None:
    every = [*starter_cases(), *probe_cases()]
    names = {tool.name for case in every for tool in case.tools}
    assert not names & {tool.name for tool in EXAMPLE_TOOLS}
    case = next(case for case in every if case.tools and case.messages[0].role == "system")
    shown = with_examples(case)
    assert shown.messages[0] == case.messages[0] and shown.messages[-1] == case.messages[-1]
    assert sum(len(turn.calls) for turn in shown.messages[: -len(case.messages) + 1]) == 2
    conversation = Conversation("c", "examples", shown.messages, shown.tools)
    calls = [call for turn in conversation.messages for call in turn.calls]
    from smollora.data.validation import schema_problem

    tools = {tool.name: tool for tool in shown.tools}
    assert [schema_problem(call, tools[call.name]) for call in calls[:2]] == [None, None]


def test_a_case_without_tools_gets_no_examples() -> None:
    case = EvalCase("x", "no_tools", (Message("user", "Hello"),))
    assert with_examples(case) is case


# ── the gate ──────────────────────────────────────────────────────────────────────────────────


def wanting(category: str = "single", call: bool = True) -> EvalCase:
    expected = (ToolCall("f", {}),) if call else ()
    return EvalCase(category, category, (Message("user", "?"),), (), expected)


def test_a_gate_that_no_case_can_be_held_to_is_not_a_reason_to_train() -> None:
    usual = {"emission": 0.9, "false_call_no_tools": 0.02, "false_call_irrelevant": 0.15}
    own = [wanting(), wanting("my_own_words", call=False)]
    held, notes = gate_for(own, usual, given=False)
    assert held == {"emission": 0.9, "false_call": 0.15} and len(notes) == 1
    assert gate_for([wanting(), wanting("no_tools", call=False)], usual, given=False)[0] == {
        "emission": 0.9,
        "false_call_no_tools": 0.02,
    }
    with pytest.raises(ConfigError, match="false_call_irrelevant"):
        gate_for(own, {"false_call_irrelevant": 0.1}, given=True)
    with pytest.raises(DataError, match="wants a call"):
        gate_for([wanting(call=False)], usual, given=False)


# ── a server ──────────────────────────────────────────────────────────────────────────────────


class Structured(FakeServer):
    """A server that holds an answer to its structural tag, in the one way that the tests need: a
    required call is the case's own.
    """

    def generate(self, prompt: Sequence[int], body: dict[str, Any]) -> tuple[list[int], str]:
        key = body.get("structured_outputs")
        if key is not None:
            form = json.loads(key["structural_tag"])["format"]
            if form["type"] == "token":
                return [form["token"]], "length"
            assert form["type"] == "token_triggered_tags" and len(form["trigger_tokens"]) == 1
            if form["at_least_one"]:
                return [form["trigger_tokens"][0]], "length"
        return super().generate(prompt, body)


def serving(folder: Path, cases: Path, kind: type[FakeServer] = FakeServer) -> FakeServer:
    """The scripted model of the doctor's tests behind a server: sound on a sound prompt."""
    save_folder(folder, CHATML)
    tokenizer = ServedTokenizer(CHATML)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return kind(tokenizer, Scripted(tokenizer, read_cases(cases), stop=stop), frozenset({stop}))


def test_a_server_that_passes_a_grammar_over_is_found_out(tmp_path: Path, cases: Path) -> None:
    with serving(tmp_path / "m", cases) as server:
        ended = cures(tmp_path / "m", "--endpoint", server.url, "--cases", cases, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["verdict"]) == (0, "template"), ended.err
    assert found["lines"]["stock"]["rates"]["emission"]["k"] == 0
    for cure in ("grammar", "required"):
        assert found["lines"][cure]["unavailable"] == "the server passes structured outputs over"


def test_a_server_is_given_the_grammar_of_each_prompt(tmp_path: Path, cases: Path) -> None:
    with serving(tmp_path / "m", cases, Structured) as server:
        ended = cures(
            *(tmp_path / "m", "--endpoint", server.url, "--cases", cases, "--json"),
            *("--cure", "grammar", "--cure", "required"),
        )
        asked = [body for path, body, _ in server.asked if path == "/v1/completions"]
    found = json.loads(ended.out)
    assert found["verdict"] == "unfinished"
    assert found["lines"]["grammar"]["rates"]["right_call"]["k"] == 1
    # one try before each line; the case without tools has no grammar
    assert [("structured_outputs" in body) for body in asked].count(False) == 2
    assert len(asked) == 2 * (3 + 1)
    # prompts of a line are asked side by side: they come in any order
    of_grammar = [body for body in asked[1:4] if "structured_outputs" in body]
    assert len(of_grammar) == 2
    for body in of_grammar:
        tag = json.loads(body["structured_outputs"]["structural_tag"])["format"]["tags"][0]
        schema = tag["content"]["elements"][1]["json_schema"]
        assert schema["anyOf"][0]["properties"]["name"] == {"const": "get_weather"}


def test_a_trained_model_on_a_server_must_be_offered_there(tmp_path: Path, cases: Path) -> None:
    with serving(tmp_path / "m", cases) as server:
        ended = cures(
            *(tmp_path / "m", "--endpoint", server.url, "--cases", cases, "--adapter", "tuned"),
            *("--cure", "trained"),
        )
    assert ended.code == 2 and "tuned" in ended.err and "fake" in ended.err


def test_a_server_that_fails_is_no_failing_of_the_model(tmp_path: Path, cases: Path) -> None:
    with serving(tmp_path / "m", cases) as server:
        server.trouble = lambda path, count: "500" if "completions" in path and count > 3 else ""
        ended = cures(
            *(tmp_path / "m", "--endpoint", server.url, "--cases", cases, "--json"),
            *("--cure", "repaired"),
        )
    assert ended.code == 2 and "error" in ended.err and "Traceback" not in ended.err


# ── what people get wrong ─────────────────────────────────────────────────────────────────────


def refused(ended: Ended, *words: str) -> None:
    """One message, exit 2."""
    assert ended.code == 2, ended.out
    assert ended.err.count("error:") == 1 and "hint:" in ended.err and "Traceback" not in ended.err
    for word in words:
        assert word in ended.err, ended.err


def test_a_cure_that_is_none_and_options_without_cures(model: Path, cases: Path) -> None:
    refused(cures(model, "--cure", "prayer"), "prayer", "examples")
    refused(cures(model, "--cure", "trained"), "--adapter")
    refused(cures(model, "--cure", "trained_grammar"), "--adapter")
    refused(smollora("doctor", model, "--adapter", "x"), "--cures")
    refused(cures(model, "--gate", "luck=1"), "luck")
    refused(cures(model, "--gate", "none"), "gate")
    refused(smollora("doctor", "--cures"), "--cures")


def test_a_missing_extra_is_said_before_anything_is_loaded(
    model: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr("smollora.cures.ways.load_with_adapter", None)
    refused(cures(model, "--cases", cases), "llguidance", "pip install 'smollora[grammar]'")


def test_adapters_that_are_none_or_of_another_base(
    model: Path, cases: Path, tmp_path: Path
) -> None:
    refused(cures(model, "--adapter", tmp_path), "neither an adapter nor a model")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"target_modules": ["q_proj"], "r": 2}')
    (adapter / "smollora.json").write_text('{"base": "of another model"}')
    refused(cures(model, "--adapter", adapter), "other weights")
    refused(cures(adapter), "is an adapter", "--adapter")


def test_models_without_weights_template_or_delimiters(cases: Path, tmp_path: Path) -> None:
    weightless = write_model(tmp_path / "w", tags=TAGS, without=["*.safetensors"])
    refused(cures(weightless, "--cases", cases, *SMALL), "safetensors")
    refused(cures(tmp_path / "nowhere"), "no model folder")
    bare = write_model(tmp_path / "b", template=None, tags=TAGS)
    refused(cures(bare), "no chat template")
    ended = cures(write_model(tmp_path / "d"))
    assert ended.code == 1 and "<tool_call>" in ended.err and "smollora run" in ended.err


def test_broken_cases_and_folders_of_other_cures(model: Path, cases: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1}\n')
    refused(cures(model, "--cases", broken), "row 1")
    refused(cures(model, "--cases", tmp_path / "none.jsonl"), "not there")
    out = tmp_path / "out"
    assert cures(model, "--cases", cases, *SMALL, "--cure", "stock", "--out", out).code == 0
    again = cures(model, "--cases", cases, "--max-tokens", 5, "--cure", "repaired", "--out", out)
    refused(again, "other cases")
