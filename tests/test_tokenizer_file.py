"""A tokenizer read from its files does what transformers' own does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from smollm3_tokenizer import smollm3_tokenizer
from smollora.errors import ModelError
from smollora.models import load_tokenizer, read_tokenizer
from smollora.tokenizer_file import load_tokenizer_files
from tiny_models import tiny_tokenizer

TEXT = 'Ünïcode 東京 🙂 <tool_call>\n{"name": "get_weather"}</tool_call><|im_end|>\n  x'


def assert_same(folder: Path) -> None:
    ours, theirs = load_tokenizer_files(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(TEXT)
    assert ids == theirs.encode(TEXT, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.special_tokens_map == dict(theirs.special_tokens_map)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True
    )
    kept = {i for i in ids if ours.decode([i], skip_special_tokens=True)}
    assert kept.isdisjoint(ours.all_special_ids), "special is what decoding leaves out"
    assert set(theirs.all_special_ids) <= set(ours.all_special_ids)
    assert len(ours) == len(theirs)
    for name in ("bos_token", "eos_token", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("template", [None, "{{ messages }}", {"default": "a", "tool_use": "b"}])
def test_a_saved_tokenizer_is_the_same(template: str | dict[str, str], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    assert_same(tmp_path)


@pytest.mark.slow
def test_smollm3s_is_the_same(tmp_path: Path) -> None:
    smollm3_tokenizer().save_pretrained(tmp_path)
    assert_same(tmp_path)


def test_tokens_that_only_the_settings_name_are_added(tmp_path: Path) -> None:
    """Older folders keep added tokens in tokenizer_config.json alone."""
    tokenizer = tiny_tokenizer(tags=())
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    entry = {"content": "<tool_call>", "special": False, "normalized": False}
    settings["added_tokens_decoder"] = {str(len(tokenizer)): entry}
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert load_tokenizer_files(tmp_path).encode("<tool_call>") == [len(tokenizer)]


def test_special_tokens_may_be_objects(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token"] = {"content": "<|endoftext|>", "special": True}
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert load_tokenizer_files(tmp_path).eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({"chat_template": "old"}, "old"),
        ({"chat_template": [{"name": "rag", "template": "r"}]}, {"rag": "r"}),
        ({"chat_template": None}, None),
    ],
)
def test_templates_of_the_settings_are_read(
    written: dict[str, object], wanted: object, tmp_path: Path
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | written
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert load_tokenizer_files(tmp_path).chat_template == wanted
    (tmp_path / "chat_template.jinja").write_text("new", encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path).chat_template
    found = load_tokenizer_files(tmp_path).chat_template
    assert (found if isinstance(found, str) else found["default"]) == "new"
    assert theirs == found or theirs == "new"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\x00\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"chat_template": [1]}'),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_a_broken_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as said:
        load_tokenizer_files(tmp_path)
    assert said.value.hint


def test_a_folder_without_a_tokenizer_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer_files(tmp_path)


@pytest.mark.parametrize("load", [load_tokenizer, read_tokenizer, load_tokenizer_files])
def test_a_folder_without_a_tokenizer_is_said_to_lack_one(
    load: Callable[[Path], object], tmp_path: Path
) -> None:
    """transformers makes a tokenizer of no words out of the settings alone, and elsewhere begins a
    list of what it cannot instantiate.
    """
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json: nothing there") as raised:
        load(tmp_path)
    assert "copy tokenizer.json" in raised.value.hint


def test_a_folder_with_another_kind_of_tokenizer_says_which(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x00")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    for load in (load_tokenizer, load_tokenizer_files):
        with pytest.raises(ModelError, match=r"only tokenizer\.model") as raised:
            load(tmp_path)
        assert "save_pretrained" in raised.value.hint


def test_a_tokenizer_that_cannot_be_loaded_is_quoted_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded: ") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in raised.value.message
