"""The starter set: large, varied, every call valid, nothing of the held-out part in it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

from smollora.data.sources import read_conversation
from smollora.data.starter import Split, build_general_rows, build_rows, load_domains
from smollora.types import Conversation

SPLITS: tuple[Split, ...] = ("train", "heldout")


@lru_cache(maxsize=2)
def tool_rows(split: Split) -> tuple[dict[str, Any], ...]:
    return tuple(build_rows(split))


@lru_cache(maxsize=2)
def records(split: Split) -> tuple[dict[str, Any], ...]:
    return (*tool_rows(split), *build_general_rows(split, with_tools=1))


def shown_calls(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls as they stand in the row's text, read with nothing of ours."""
    said = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    blocks = [b for text in said for b in re.findall(r"<tool_call>(.*?)</tool_call>", text, re.S)]
    return [json.loads(block) for block in blocks]


def offered(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tools = json.loads(record["tools"]) or []
    return {tool["function"]["name"]: tool["function"] for tool in tools}


def words(text: str) -> str:
    """A request, its case, spaces and punctuation aside."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def asked(record: dict[str, Any]) -> list[str]:
    return [words(turn["value"]) for turn in record["conversations"] if turn["from"] == "human"]


# ── size and balance ──────────────────────────────────────────────────────────────────────────


def test_there_are_at_least_600_conversations_80_tools_and_12_domains() -> None:
    domains = load_domains("train")
    authored = [case for domain in domains for case in domain.cases]
    assert len(authored) >= 600
    assert len({name for domain in domains for name in domain.tools}) >= 80
    assert len([domain for domain in domains if domain.tools]) >= 12
    assert len({" ".join(json.dumps(case).split()) for case in authored}) == len(authored)


def test_rows_teach_to_call_to_decline_to_ask_and_to_go_on() -> None:
    kinds = Counter(record["subcategory"] for record in tool_rows("train"))
    for kind in ("single", "parallel", "missing", "near_miss", "near_absent", "irrelevant"):
        assert kinds[kind] >= 50, kind
    assert kinds["multi_turn"] >= 50
    conversations = [c for c in map(read, tool_rows("train")) if c.has_calls]
    assert any(m.role == "tool" for c in conversations for m in c.messages)
    assert any(len(m.calls) > 2 for c in conversations for m in c.messages)


def test_a_request_with_a_gap_and_its_twin_without_stand_under_one_list() -> None:
    """Asking back is learnt from the contrast: same tools, nearly the same words."""
    rows = {(r["subcategory"], asked(r)[0]): r for r in tool_rows("train")}
    pairs = [
        (domain.tools[before["ask"]], before, case)
        for domain in load_domains("train")
        for before, case in pairwise(domain.cases)
        if "twin" in case and "ask" in before
    ]
    assert len(pairs) >= 150
    for tool, gap, whole in pairs:
        (name, arguments), *more = whole["c"]
        required = tool["parameters"]["required"]
        assert (name, more) == (tool["name"], [])
        assert set(required) <= set(arguments), whole
        asks, calls = rows["missing", words(gap["u"])], rows["single", words(whole["u"])]
        assert asks["conversations"][0] == calls["conversations"][0], whole
        same = set(words(gap["u"]).split()) & set(words(whole["u"]).split())
        assert len(same) >= len(set(words(gap["u"]).split())) / 2, (gap, whole)
    openings = Counter(" ".join(gap["a"].split()[:2]) for _, gap, _ in pairs)
    assert max(openings.values()) < len(pairs) / 10, openings


def test_a_near_miss_and_its_twin_that_fits_stand_under_one_list() -> None:
    rows = {(r["subcategory"], asked(r)[0]): r for r in tool_rows("train")}
    pairs = [
        (before, case)
        for domain in load_domains("train")
        for before, case in pairwise(domain.cases)
        if "twin" in case and "near" in before
    ]
    assert len(pairs) >= 150
    for near, fitting in pairs:
        assert {name for name, _ in fitting["c"]} <= set(near["near"])
        declines = rows["near_miss", words(near["u"])]
        calls = rows["single", words(fitting["u"])]
        assert declines["conversations"][0] == calls["conversations"][0], fitting


def test_no_twin_is_held_out() -> None:
    assert not any("twin" in case for d in load_domains("heldout") for case in d.cases)


def test_the_rows_are_the_same_every_time_and_differ_by_seed() -> None:
    first = tool_rows("train")
    assert first == tuple(build_rows("train"))
    assert first != tuple(build_rows("train", seed=4))
    assert len({record["id"] for record in first}) == len(first)


def test_a_share_of_the_rows_is_made_of_whole_tool_lists() -> None:
    """Half a list would lose what is saved by computing its prompt once."""

    def by_list(rows: Iterable[dict[str, Any]]) -> Counter[tuple[str, str]]:
        return Counter((r["category"], r["conversations"][0]["value"]) for r in rows)

    some = list(build_rows("train", share=0.3))
    whole, part = by_list(tool_rows("train")), by_list(some)
    assert 0.2 < part.total() / whole.total() < 0.4
    assert part.keys() <= whole.keys()
    cut = [name for name, count in part.items() if count != whole[name]]
    assert len(cut) < len(part) / 20, "two lists may be alike"
    kinds = {r["subcategory"] for r in some}
    assert kinds == {r["subcategory"] for r in tool_rows("train")}


def test_many_rows_stand_under_one_tool_list() -> None:
    """What makes the starter set cheap to train: common prompts are computed once."""
    prompts = Counter(r["conversations"][0]["value"] for r in tool_rows("train"))
    assert sum(count for count in prompts.values() if count > 4) > len(records("train")) / 4


def test_arrays_objects_and_numbers_with_units_are_drawn_before_plain_arguments() -> None:
    used = {request for r in tool_rows("train") for request in asked(r)[:1] if shown_calls(r)}
    there: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for domain in load_domains("train"):
        for case in domain.cases:
            if len(case.get("c", [])) != 1 or case.keys() & {"lang", "ask", "twin"}:
                continue
            values = list(case["c"][0][1].values())
            nested = any(isinstance(value, list | dict) for value in values)
            unit = re.search(r"\b\d+(kg|cm|C|F|K|m|g|V|ml|min|h)\b", case["u"])
            if unit and not any(type(value) in (int, float) for value in values):
                unit = None
            kind = "nested" if nested else "unit" if unit else "plain"
            there[kind] += 1
            taken[kind] += words(case["u"]) in used
    assert there["nested"] > 500 and there["unit"] > 150
    share = {kind: taken[kind] / there[kind] for kind in there}
    assert min(share["nested"], share["unit"]) > share["plain"] + 0.2


# ── every call ────────────────────────────────────────────────────────────────────────────────


def read(record: dict[str, Any]) -> Conversation:
    conversation = read_conversation(record, "starter", 1)
    assert isinstance(conversation, Conversation), (record["id"], conversation)
    return conversation


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_read_by_the_reader_that_reads_hermes(split: str) -> None:
    for record in records(split):
        conversation = read(record)
        assert set(record) >= {"id", "conversations", "tools", "category", "subcategory", "task"}
        assert [tool.name for tool in conversation.tools] == list(offered(record))
        assert not any("<tool" in message.content for message in conversation.messages)


@pytest.mark.parametrize("split", SPLITS)
def test_every_call_is_of_an_offered_tool_and_valid_against_its_schema(split: str) -> None:
    count = 0
    validators: dict[str, jsonschema.Draft202012Validator] = {}
    for record in records(split):
        for call in shown_calls(record):
            schema = {"additionalProperties": False, **offered(record)[call["name"]]["parameters"]}
            key = json.dumps(schema)
            if key not in validators:
                validators[key] = jsonschema.Draft202012Validator(schema)
            validators[key].validate(call["arguments"])
            count += 1
    assert count >= 100


@pytest.mark.parametrize("split", SPLITS)
def test_every_tool_has_a_schema_that_is_one_and_says_what_it_does(split: str) -> None:
    for domain in load_domains(split):
        for tool in domain.tools.values():
            schema = tool["parameters"]
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object", tool["name"]
            assert set(schema.get("required", ())) <= set(schema["properties"]), tool["name"]
            assert len(tool["description"]) > 10, tool["name"]


def test_no_two_domains_have_a_tool_of_one_name() -> None:
    """A request of another domain is declined: no tool on offer may be the one that it needs."""
    for split in SPLITS:
        names = Counter(name for domain in load_domains(split) for name in domain.tools)
        assert [name for name, count in names.items() if count > 1] == []


def test_results_belong_to_their_calls() -> None:
    for record in records("train"):
        turns = record["conversations"]
        for before, turn in pairwise(turns):
            if turn["from"] != "tool":
                continue
            called = [json.loads(b)["name"] for b in re.findall(r"\n(\{.*\})\n</", before["value"])]
            answered = [json.loads(b)["name"] for b in re.findall(r"\n(\{.*\})\n</", turn["value"])]
            assert answered == called, record["id"]


# ── held out ──────────────────────────────────────────────────────────────────────────────────


def test_held_out_tools_never_occur_in_training() -> None:
    names = {split: {n for r in records(split) for n in offered(r)} for split in SPLITS}
    assert len(names["heldout"]) >= 20
    assert not names["train"] & names["heldout"]
    said = {turn["value"] for r in records("train") for turn in r["conversations"]}
    found = {word for text in said for word in re.findall(r"\w+", text)}
    assert not found & {name for name in names["heldout"] if "_" in name or name != name.lower()}


@pytest.mark.parametrize("kind", ["tools", "general"])
def test_held_out_requests_never_occur_in_training(kind: str) -> None:
    """Small talk in the middle of a conversation ("thanks") may; what is asked first may not."""
    held = build_rows("heldout") if kind == "tools" else build_general_rows("heldout")
    first = {asked(record)[0] for record in held}
    assert len(first) >= 50
    trained = {request for record in records("train") for request in asked(record)}
    assert first & trained == set()


def test_held_out_domains_are_others() -> None:
    domains = {split: {r["category"] for r in build_rows(split)} for split in SPLITS}
    assert not domains["train"] & domains["heldout"]


# ── files that are written ────────────────────────────────────────────────────────────────────


def written_files() -> list[tuple[str, str]]:
    return sorted(
        {
            (call["arguments"]["path"], call["arguments"]["content"])
            for record in records("train")
            for call in shown_calls(record)
            if call["name"] == "write_file"
        }
    )


class _Tags(HTMLParser):
    """Open tags that need a closing one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(text: str) -> None:
    parser = _Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []


def check_shell(text: str) -> None:
    if shell := shutil.which("bash"):
        subprocess.run([shell, "-n"], input=text.encode(), check=True, capture_output=True)


def check_script(text: str) -> None:
    """JavaScript has no parser here: its brackets must at least match."""
    closing = {")": "(", "]": "[", "}": "{"}
    stack: list[str] = []
    for letter in re.sub(
        r"`[^`]*`|'[^'\n]*'|\"[^\"\n]*\"|//[^\n]*|/\*.*?\*/", "", text, flags=re.S
    ):
        if letter in closing.values():
            stack.append(letter)
        elif letter in closing:
            assert stack.pop() == closing[letter]
    assert stack == []


PARSERS = {
    ".py": ast.parse,
    ".json": json.loads,
    ".yml": yaml.safe_load,
    ".yaml": yaml.safe_load,
    ".toml": tomllib.loads,
    ".svg": ElementTree.fromstring,
    ".xml": ElementTree.fromstring,
    ".html": check_html,
    ".sh": check_shell,
    ".js": check_script,
}


def test_what_write_file_writes_can_be_parsed() -> None:
    parsed: Counter[str] = Counter()
    for path, content in written_files():
        assert content.strip(), path
        kind = Path(path).suffix
        if kind in PARSERS:
            try:
                PARSERS[kind](content)
            except Exception as error:
                pytest.fail(f"{path}: {error}")
            parsed[kind] += 1
    assert sum(parsed.values()) >= 6
    assert parsed[".py"] >= 2
