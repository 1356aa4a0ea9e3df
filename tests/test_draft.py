"""`smollora init`: the recipe that it writes is one, fits what was given, and plans."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from smollora.config import RATES, Recipe, load_recipe
from smollora.draft import SAMPLE, plan_draft
from smollora.draft.text import show_draft
from smollora.recipe_keys import recipe_keys
from smollora.templates.engine import load_shipped
from tiny_runs import (
    call_row,
    general_row,
    general_rows,
    no_call_row,
    smollora,
    tool_rows,
    write_model,
    write_rows,
)

TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "My Model")


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "calls.jsonl", tool_rows())


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "chat.jsonl", general_rows())


def drafted(model: Path, *paths: Path, **more: Any) -> tuple[Recipe, str]:
    """The recipe that comes of it, and its text."""
    text = show_draft(plan_draft(str(model), [str(path) for path in paths], **more))
    return Recipe.model_validate(yaml.safe_load(text)), text


def test_the_recipe_loads_and_plans_a_run(
    stock: Path, calls: Path, chat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    said = smollora("init", stock, "--data", calls, "--data", chat, "--out", out)
    assert (said.code, said.err) == (0, "")
    recipe = load_recipe(out)
    assert recipe.model.source == str(stock) and recipe.name == "my-model"
    assert [(s.name, s.path, s.kind) for s in recipe.prepare.sources] == [
        ("calls", str(calls), "tool"),
        ("chat", str(chat), "general"),
    ]
    plan = smollora("run", out, "--dry-run", "--runs", tmp_path / "runs", "train.compile=off")
    assert plan.code == 0, plan.err
    rows = re.search(r"training: (\d+) rows", plan.out)
    assert rows and 8 <= int(rows[1]) <= 24


def test_every_commented_key_is_right_when_the_comment_mark_is_taken_away(
    stock: Path, calls: Path, chat: Path
) -> None:
    recipe, text = drafted(stock, calls, chat)
    names = {part for key in recipe_keys() if not key.in_list for part in key.path.split(".")} | {
        *RATES
    }
    marked = rf"^( *)# (?= *(?:{'|'.join(sorted(names))}):(?: |$))"
    bare = re.sub(marked, r"\1", text, flags=re.MULTILINE)
    values = yaml.safe_load(
        "\n".join(line for line in bare.splitlines() if not re.match(r" *#", line))
    )
    assert Recipe.model_validate(values) == recipe
    assert set(values["train"]) == set(Recipe().train.model_dump())
    assert set(values["prepare"]["slurm"]) == set(Recipe().prepare.slurm.model_dump())


def test_every_key_stands_under_its_meaning(stock: Path, calls: Path) -> None:
    _, text = drafted(stock, calls)
    words = " ".join(re.sub(r"^ *# ?", "", line) for line in text.splitlines())
    for key in recipe_keys():
        if not key.in_list:
            assert key.description.removesuffix(".") in words, key.path


def test_a_model_without_delimiters_is_equipped_and_one_with_them_is_not(
    stock: Path, calls: Path, tmp_path: Path
) -> None:
    recipe, text = drafted(stock, calls)
    assert recipe.model.equip
    assert re.search(r"-> <tool_call> is \d+ tokens", text)
    assert "the stock one loses: tools_reach_prompt" in text
    ready = write_model(tmp_path / "ready", template=load_shipped("chatml_tools"), tags=TAGS)
    recipe, text = drafted(ready, calls)
    assert not recipe.model.equip
    assert "-> the stock one passes the audit" in text


def test_delimiter_rows_are_trained_where_there_are_delimiters(stock: Path, calls: Path) -> None:
    assert drafted(stock, calls)[0].train.embeddings == "tool_tokens"
    assert drafted(stock, calls, format_name="pythonic")[0].train.embeddings == "frozen"


def test_targets_are_those_that_the_weights_have(stock: Path, calls: Path, tmp_path: Path) -> None:
    recipe, text = drafted(stock, calls)
    assert set(recipe.train.targets) == set(Recipe().train.targets)
    assert "read off the weights" in text
    bare = write_model(tmp_path / "bare", without=["*.safetensors"])
    recipe, text = drafted(bare, calls)
    assert recipe.train.targets == Recipe().train.targets
    assert "the weights are not here" in text


def test_the_length_holds_the_longest_sampled_row_and_never_passes_the_context(
    stock: Path, tmp_path: Path
) -> None:
    assert drafted(stock, write_rows(tmp_path / "a.jsonl", [call_row("Oslo")]))[
        0
    ].prepare.max_length in (512, 1024)
    long = call_row("Oslo")
    long["messages"][0]["content"] = "What is the weather in Oslo? " * 200
    recipe, text = drafted(stock, write_rows(tmp_path / "b.jsonl", [long]))
    longest = re.search(r"the longest of the sampled rows has ([\d,]+) tokens", text)
    assert longest
    tokens = int(longest[1].replace(",", ""))
    assert recipe.prepare.max_length == min(4096, 2 ** (tokens - 1).bit_length())
    assert recipe.train.batch_tokens >= recipe.prepare.max_length
    long["messages"][0]["content"] *= 20
    assert drafted(stock, write_rows(tmp_path / "c.jsonl", [long]))[0].prepare.max_length == 4096


def test_what_is_missing_of_a_mix_comes_from_the_starter_set(
    stock: Path, calls: Path, chat: Path
) -> None:
    only_calls = drafted(stock, calls)[0].prepare.sources
    assert [(s.path, s.kind) for s in only_calls][1:] == [("starter:general", "general")]
    only_chat = drafted(stock, chat)[0].prepare.sources
    assert [(s.path, s.kind) for s in only_chat][1:] == [("starter:tools", "tool")]
    assert len(drafted(stock, calls, chat)[0].prepare.sources) == 2


def test_rows_that_offer_tools_and_never_call_are_general(stock: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "declines.jsonl", [no_call_row("Oslo"), general_row("Rome")])
    assert drafted(stock, rows)[0].prepare.sources[0].kind == "general"


def test_forms_counts_and_bad_rows_of_the_sample_are_told(stock: Path, tmp_path: Path) -> None:
    shared = {
        "conversations": [
            {"from": "human", "value": "Hello?"},
            {"from": "gpt", "value": "Hello!"},
        ]
    }
    lines = write_rows(tmp_path / "mixed.jsonl", [*tool_rows(), shared, {"broken": 1}])
    _, text = drafted(stock, lines)
    head = " ".join(re.sub(r"^# ?", "", line) for line in text.split("name:")[0].splitlines())
    assert f"{lines}: 18 rows, form openai, hermes; of 18: 8 call, 8 no_call, 1 no_tools" in head
    assert "rejected: 1 unknown_form; row 18: no known form has the keys broken" in head


def test_a_long_file_is_counted_from_a_sample(stock: Path, tmp_path: Path) -> None:
    row = json.dumps(call_row("Oslo")) + "\n"
    many = tmp_path / "many.jsonl"
    many.write_text(row * (4 * SAMPLE))
    about = plan_draft(str(stock), [str(many)]).head
    assert any(f"about {4 * SAMPLE:,} rows" in line for line in about)
    packed = tmp_path / "many.jsonl.gz"
    packed.write_bytes(gzip.compress((row * (2 * SAMPLE)).encode()))
    about = plan_draft(str(stock), [str(packed)]).head
    assert any(f"more than {SAMPLE:,} rows" in line for line in about)


def test_two_files_of_one_name_become_two_sources(stock: Path, tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write_rows(tmp_path / folder / "train.jsonl", tool_rows()))
    names = [source.name for source in drafted(stock, *paths)[0].prepare.sources]
    assert names[:2] == ["train", "train-2"]


def test_a_recipe_that_is_there_is_kept_unless_forced(
    stock: Path, calls: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("name: precious\n")
    said = smollora("init", stock, "--data", calls, "--out", out)
    assert said.code == 2 and "is there already" in said.err and "--force" in said.err
    assert out.read_text() == "name: precious\n"
    assert smollora("init", stock, "--data", calls, "--out", out, "--force").code == 0
    assert load_recipe(out).name == "my-model"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{stock}"], "no data was named"),
        (["{stock}", "--data", "absent.jsonl"], "absent.jsonl is not there"),
        (["no/such/model", "--data", "{calls}"], "there is no model folder"),
        (["{stock}", "--data", "{calls}", "--out", "{tmp}/mine.txt"], "no name for a recipe"),
        (["{stock}", "--data", "{stranger}"], "none of 1 rows is a conversation: 1 unknown_form"),
    ],
    ids=["no data", "no file", "no model", "no yaml", "no conversation"],
)
def test_what_cannot_be_drafted_is_one_message_and_writes_nothing(
    arguments: list[str],
    words: str,
    stock: Path,
    calls: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    stranger = write_rows(tmp_path / "stranger.jsonl", [{"left": 1, "right": 2}])
    before = set(tmp_path.iterdir())
    given = {"stock": stock, "calls": calls, "tmp": tmp_path, "stranger": stranger}
    said = smollora("init", *(each.format(**given) for each in arguments))
    assert said.code == 2
    assert words in said.err and "hint: " in said.err
    assert set(tmp_path.iterdir()) == before
