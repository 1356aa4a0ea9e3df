"""The whole plan on SmolLM3's own tokens: faults found, labels proved, overfitted, merged, asked.

The tokenizer and the vocabulary are the published ones, the class is the real one, the weights are
few and random. The stock-like template below is written for this test, with the stock one's faults.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm3_tokenizer import smollm3_tokenizer
from smollora.config import load_recipe
from smollora.pipeline import STAGES, run_stages
from smollora.stages import Run, raise_if_short
from tiny_models import tiny_model

pytestmark = pytest.mark.network

OPEN, CLOSE, STOP, PAD = 128015, 128016, 128012, 128004
"""As HuggingFaceTB/SmolLM3-3B publishes them (FACTS 1); config.json pads with another id than
the tokenizer, which pads with the stop token."""

STOCK_LIKE = """\
{%- set thinks = enable_thinking is not defined or enable_thinking -%}
{%- set reasoning_mode = "/think" if thinks else "/no_think" -%}
{{- "<|im_start|>system\\n## Metadata\\n\\nToday Date: " ~ strftime_now("%d %B %Y") ~ "\\n" -}}
{{- "Reasoning Mode: " ~ reasoning_mode ~ "\\n\\n## Custom Instructions\\n\\nHelp.\\n\\n" -}}
{%- if tools -%}
  {{- "### Tools\\n\\n<tools>\\n" -}}
  {%- for tool in tools -%}{{- (tool | string) ~ "\\n" -}}{%- endfor -%}
  {{- "</tools>\\n\\n<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" or message.role == "tool" -%}
    {{- "<|im_start|>user\\n" ~ content ~ "<|im_end|>\\n" -}}
  {%- elif message.role == "assistant" -%}
    {%- generation -%}
      {{- "<|im_start|>assistant\\n" ~ content ~ "<|im_end|>\\n" -}}
    {%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
"""Drops calls, shows results as the user's words, prints tools with Python's quotes, leaves the
system turn open without tools, marks too much."""

TOOLS = {
    "get_weather": ("The weather in a city.", {"city": {"type": "string"}}),
    "convert": ("Converts money.", {"amount": {"type": "number"}, "to": {"type": "string"}}),
}


def tools_json(*names: str) -> str:
    return json.dumps(
        [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": TOOLS[name][0],
                    "parameters": {"type": "object", "properties": TOOLS[name][1]},
                },
            }
            for name in names
        ]
    )


def hermes_row(number: int, tool: str, asked: str, answer: str, *more: tuple[str, str]) -> Any:
    shown = tools_json(tool)
    system = f"You may call tools.\n<tools>\n{shown}\n</tools>\n"
    turns = [("system", system), ("human", asked), ("gpt", answer), *more]
    return {
        "id": f"hermes-{number}",
        "conversations": [{"from": role, "value": value} for role, value in turns],
        "tools": shown,
    }


def hermes_call(name: str, **arguments: Any) -> str:
    """Arguments first, as the data set has it."""
    return f"<tool_call>\n{json.dumps({'arguments': arguments, 'name': name})}\n</tool_call>"


TOOL_ROWS = [
    hermes_row(
        1,
        "get_weather",
        "Weather in Porto?",
        hermes_call("get_weather", city="Porto"),
        ("tool", '<tool_response>\n{"name": "get_weather", "content": "rain"}\n</tool_response>'),
        ("gpt", "It rains in Porto."),
    ),
    hermes_row(2, "get_weather", "And in Faro?", hermes_call("get_weather", city="Faro")),
    hermes_row(3, "get_weather", "How is Łódź?", hermes_call("get_weather", city="Łódź")),
    hermes_row(4, "convert", "12 to CHF", hermes_call("convert", amount=12, to="CHF")),
    hermes_row(
        5,
        "convert",
        "3 to CHF and to USD",
        hermes_call("convert", amount=3, to="CHF")
        + "\n"
        + hermes_call("convert", amount=3, to="USD"),
    ),
    hermes_row(6, "convert", "Weather in Porto?", "I can only convert money."),
    hermes_row(7, "get_weather", "And now?", hermes_call("get_wether", city="Porto")),
    hermes_row(8, "get_weather", "And then?", hermes_call("get_weather", city="Porto") + " Done."),
]
GENERAL_ROWS = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
    for asked, said in (
        ("Hello", "Hi!"),
        ("Two plus two?", "4"),
        ("Bye", "Bye!"),
        ("Sky?", "Blue."),
    )
]


@dataclass(frozen=True)
class Finished:
    """A run that went through all stages."""

    run: Run

    def summary(self, stage: str) -> dict[str, Any]:
        return self.run.read(stage)

    def records(self, model: str) -> dict[str, dict[str, Any]]:
        text = (self.run.folder / "probe" / "records.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        return {row["case_id"]: row for row in rows if row["model"] == model}


def make_model(folder: Path) -> Path:
    """SmolLM3 as published, but for its size: class, vocabulary, ids, NoPE layers, tied head."""
    model = tiny_model(
        "smollm3",
        layers=4,
        vocabulary=128256,
        no_rope_layers=[1, 1, 1, 0],
        initializer_range=0.125,
        embedding_std=0.4,
        bos_token_id=128000,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    model.save_pretrained(folder)
    tokenizer = smollm3_tokenizer()
    tokenizer.save_pretrained(folder)
    published = json.loads((folder / "tokenizer_config.json").read_text())
    published["clean_up_tokenization_spaces"] = True  # as published; it must not touch the JSON
    (folder / "tokenizer_config.json").write_text(json.dumps(published))
    (folder / "chat_template.jinja").write_text(STOCK_LIKE, encoding="utf-8")
    generation = {"bos_token_id": 128000, "eos_token_id": STOP, "pad_token_id": PAD}
    sampled = {"temperature": 0.6, "top_p": 0.95, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps({**generation, **sampled}))
    return folder


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_cases(folder: Path) -> Path:
    """Training prompts, asked again: what was learned by heart must come."""

    def case(name: str, category: str, tool: str, asked: str, *expected: Any) -> dict[str, Any]:
        return {
            "id": name,
            "category": category,
            "messages": [
                {"role": "system", "content": "You may call tools."},
                {"role": "user", "content": asked},
            ],
            "tools": json.loads(tools_json(tool)),
            "expected": [{"name": tool, "arguments": arguments} for arguments in expected],
        }

    weather, money = "get_weather", "convert"
    hello = {"id": "hello", "category": "no_tools", "tools": None, "expected": []}
    return write_lines(
        folder / "cases.jsonl",
        [
            case("porto", "single", weather, "Weather in Porto?", {"city": "Porto"}),
            case("łódź", "single", weather, "How is Łódź?", {"city": "Łódź"}),
            case("chf", "single", money, "12 to CHF", {"amount": 12, "to": "CHF"}),
            case(
                "both",
                "parallel",
                money,
                "3 to CHF and to USD",
                {"amount": 3, "to": "CHF"},
                {"amount": 3, "to": "USD"},
            ),
            case("cannot", "irrelevant", money, "Weather in Porto?"),
            {**hello, "messages": [{"role": "user", "content": "Hello"}]},
        ],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("smollm3")
    make_model(folder / "model")
    shipped = load_recipe("smollm3").model_dump(mode="json")
    shipped["prepare"]["overlap_with"] = []  # BFCL's questions would be downloaded
    shipped["prepare"]["sources"] = [
        {"name": "hermes", "path": str(write_lines(folder / "t.jsonl", TOOL_ROWS)), "kind": "tool"},
        {
            "name": "chat",
            "path": str(write_lines(folder / "g.jsonl", GENERAL_ROWS)),
            "kind": "general",
        },
    ]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(shipped), encoding="utf-8")
    recipe = load_recipe(
        folder / "recipe.yaml",
        [
            f"model.source={folder / 'model'}",
            "mix.tool_share=0.6",
            *("train.lr=1e-2", "train.epochs=45", "train.max_epochs=null"),
            *("train.batch_tokens=1728", "train.dtype=float32", "train.compile='off'"),
            *("merge.dtype=float32", "merge.positions=200"),  # of 128,256 logits each
            *(f"probe.cases={make_cases(folder)}", "probe.max_new_tokens=96"),
            "probe.base_max_new_tokens=16",
        ],
    )
    assert recipe.train.embeddings == load_recipe("smollm3").train.embeddings == "lora"
    run = Run(recipe, folder / "runs" / "smollm3", Console(quiet=True))
    assert run_stages(run, list(STAGES)) == dict.fromkeys(STAGES, "done")
    return Finished(run)


def test_inspect_finds_the_stock_faults_and_repairs_them(finished: Finished) -> None:
    found = finished.summary("inspect")
    assert (found["open"]["id"], found["close"]["id"]) == (OPEN, CLOSE)
    assert not found["open"]["special"]
    assert found["stop_ids"] == [STOP]
    assert found["added_ids"] == []
    failed = {check["name"] for check in found["template"]["checks"] if not check["ok"]}
    assert failed >= {
        *("calls_rendered", "results_unlike_user", "tools_as_json"),
        *("system_closed_without_tools", "generation_markers_exact"),
    }
    assert found["template"]["repaired"] is True
    assert all(check["ok"] for check in found["template"]["repaired_checks"])
    assert found["architecture"]["tied_embeddings"] is True
    assert found["architecture"]["layers_without_rotary_embedding"] == [3]
    stock = finished.run.folder / "inspect" / "stock_template.jinja"
    assert stock.read_text(encoding="utf-8") == STOCK_LIKE


def test_the_bad_rows_are_counted_and_the_others_are_kept(finished: Finished) -> None:
    found = finished.summary("prepare")
    assert (found["rows_in"], found["rows_kept"]) == (12, 10)
    assert found["rejected"] == {"unknown_tool": 1, "text_after_call": 1}


def test_verify_proves_that_both_ids_stand_in_the_labelled_region(finished: Finished) -> None:
    import pyarrow.parquet as pq

    found = finished.summary("verify")
    assert (found["rows_with_calls"], found["rows_proved"], found["failures"]) == (5, 5, [])
    table = pq.read_table(finished.run.folder / "prepare" / "rows").to_pylist()
    calling = [row for row in table if row["kind"] == "call"]
    assert len(calling) == 5
    for row in table:
        labelled = [t for t, on in zip(row["token_ids"], row["trained"], strict=True) if on]
        wanted = sum(map(len, json.loads(row["calls"])))
        assert labelled.count(OPEN) == labelled.count(CLOSE) == wanted
        assert labelled[-1] == STOP
        assert not {128011, 128013, 128014} & set(labelled), "a header or a result is trained"
    assert labelled_text(calling[0]) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Porto"}}\n</tool_call>'
        "<|im_end|>It rains in Porto.<|im_end|>"
    )


def labelled_text(row: dict[str, Any]) -> str:
    labelled = [t for t, on in zip(row["token_ids"], row["trained"], strict=True) if on]
    return str(smollm3_tokenizer().decode(labelled))


def test_training_learns_the_rows_by_heart(finished: Finished) -> None:
    found = finished.summary("train")
    assert found["loss_first"] > 5
    assert found["loss_last"] < 0.1


def test_the_merge_passes_its_proof_and_unties_the_head(finished: Finished) -> None:
    found = finished.summary("merge")
    assert found["passed"]
    assert found["max_logit_difference_in_memory"] <= 1e-4
    assert found["max_logit_difference_reloaded"] <= 1e-4
    assert (found["tied_before"], found["tied_after"]) == (True, False)


CALLS = {
    "porto": [("get_weather", {"city": "Porto"})],
    "łódź": [("get_weather", {"city": "Łódź"})],
    "chf": [("convert", {"amount": 12, "to": "CHF"})],
    "both": [("convert", {"amount": 3, "to": "CHF"}), ("convert", {"amount": 3, "to": "USD"})],
}


@pytest.mark.parametrize("name", CALLS)
def test_the_merged_model_opens_writes_json_closes_and_stops(finished: Finished, name: str) -> None:
    ids = finished.records("merged")[name]["token_ids"]
    assert ids[0] == OPEN
    assert ids[-2:] == [CLOSE, STOP]
    calls = []
    for block in " ".join(map(str, ids[:-1])).split(str(OPEN))[1:]:
        body, _ = block.split(str(CLOSE))
        value = json.loads(smollm3_tokenizer().decode([int(token) for token in body.split()]))
        assert list(value) == ["name", "arguments"]
        calls.append((value["name"], value["arguments"]))
    assert calls == CALLS[name]


def test_the_merged_model_calls_nothing_where_nothing_is_to_be_called(finished: Finished) -> None:
    answers = finished.records("merged")
    assert answers["cannot"]["text"] == "I can only convert money.<|im_end|>"
    assert answers["hello"]["text"] == "Hi!<|im_end|>"


def test_the_base_emitted_no_call_and_the_gate_is_passed_after(finished: Finished) -> None:
    found = finished.summary("probe")
    assert found["base"]["emission"]["k"] == 0
    assert found["base_stock"]["emission"]["k"] == 0
    assert found["merged"]["emission"] | {"low": 0, "high": 0} == {
        **{"k": 4, "n": 4, "rate": 1.0},
        **{"low": 0, "high": 0},
    }
    assert found["merged"]["right_call"]["k"] == 4
    assert found["merged"]["stops_after_call"]["k"] == 4
    assert found["passed"], found["reasons"]
    raise_if_short(finished.run, ["merge", "probe"])


def test_transformers_alone_gets_the_call_out_of_the_merged_folder(finished: Finished) -> None:
    """No line of ours between the folder and the ids: template, generation config, greedy."""
    folder = finished.run.merged
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "system", "content": "You may call tools."},
        {"role": "user", "content": "And in Faro?"},
    ]
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=json.loads(tools_json("get_weather")),
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        date_string="08 July 2025",
    )
    out = model.generate(**prompt, do_sample=False, max_new_tokens=60)
    said = out[0, prompt["input_ids"].shape[1] :].tolist()
    assert said[0] == OPEN
    assert said[-2:] == [CLOSE, STOP]
    assert tokenizer.decode(said) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Faro"}}\n</tool_call>'
        "<|im_end|>"
    )


def test_the_report_is_written_and_a_second_run_skips_everything(finished: Finished) -> None:
    page = (finished.run.folder / "report.html").read_text(encoding="utf-8")
    assert str(OPEN) in page
    assert run_stages(finished.run, list(STAGES)) == dict.fromkeys(STAGES, "skipped")
