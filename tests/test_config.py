"""Recipes: one place for defaults, unknown keys refused, every mistake at once."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import smollora
from smollora.config import (
    Recipe,
    check_recipe,
    dump_recipe,
    load_recipe,
    shipped_recipes,
)
from smollora.errors import ConfigError
from smollora.types import PARTS

SOURCE = Path(smollora.__file__).parent


def sections(model: type[BaseModel] = Recipe, at: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Every section of a recipe with its dotted place."""
    found = [(at, model)]
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += sections(kind, f"{at}.{name}".lstrip("."))
    return found


# ── shipped recipes ───────────────────────────────────────────────────────────────────────────


def test_the_shipped_recipes_are_the_ones_that_the_help_names() -> None:
    assert shipped_recipes() == ("smollm3", "starter")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_is_called_as_its_file(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_smollm3_recipe_is_the_plan() -> None:
    """Rank 16, alpha 32, lr 2e-4, 3 epochs up to 5, 4,096 tokens, 70% tools, embed_tokens too."""
    recipe = load_recipe("smollm3")
    train = recipe.train
    assert recipe.model.source == "HuggingFaceTB/SmolLM3-3B"
    assert (train.rank, train.alpha, train.lr) == (16, 32, 2e-4)
    assert (train.epochs, train.max_epochs) == (3, 5)
    assert train.embeddings == "lora"
    assert set(train.targets) == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert recipe.prepare.max_length == 4096
    assert recipe.mix.tool_share == 0.7
    tool = [source.path for source in recipe.prepare.sources if source.kind == "tool"]
    assert all(path.startswith("hub:NousResearch/hermes-function-calling-v1:") for path in tool)


def test_the_starter_recipe_needs_no_hub() -> None:
    recipe = load_recipe("starter")
    assert recipe.model.source.startswith("pypi:")
    assert all(source.path.startswith("starter:") for source in recipe.prepare.sources)


# ── overrides ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.lr=1e-4", ("train", "lr"), 1e-4),
        ("train.lr=0.5", ("train", "lr"), 0.5),
        ("train.targets=[q_proj, v_proj]", ("train", "targets"), ("q_proj", "v_proj")),
        ("train.weights.open=3", ("train", "weights", "open"), 3.0),
        ("mix.rows=null", ("mix", "rows"), None),
        ("model.equip=false", ("model", "equip"), False),
        ("model.source=pypi:name==1.0", ("model", "source"), "pypi:name==1.0"),
        ("model.source=/data/my model", ("model", "source"), "/data/my model"),
        ("probe.gate={emission: 0.9}", ("probe", "gate"), {"emission": 0.9}),
        ("name=trial", ("name",), "trial"),
    ],
)
def test_an_override_sets_one_key(override: str, place: tuple[str, ...], value: object) -> None:
    found: Any = load_recipe("starter", [override])
    for key in place:
        found = getattr(found, key)
    assert found == value


def test_the_last_of_two_overrides_holds() -> None:
    assert load_recipe("starter", ["train.rank=4", "train.rank=8"]).train.rank == 8


def test_an_override_leaves_the_rest_of_its_section() -> None:
    before, after = load_recipe("starter"), load_recipe("starter", ["train.rank=4"])
    assert after.train.model_copy(update={"rank": before.train.rank}) == before.train


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────


def test_every_mistake_is_named_on_a_line_of_its_own() -> None:
    values = {
        "trane": {},
        "train": {"lr": -1, "rnk": 3, "epochs": "many"},
        "prepare": {"sources": [{"name": "a", "path": "b", "kind": "tools"}]},
    }
    with pytest.raises(ConfigError) as caught:
        check_recipe(values, "mine.yaml")
    lines = caught.value.message.splitlines()
    assert lines[0] == "mine.yaml: 5 setting(s) wrong"
    named = {line.strip().split(":")[0] for line in lines[1:]}
    assert named == {"trane", "train.lr", "train.rnk", "train.epochs", "prepare.sources.0.kind"}


def test_an_unknown_key_is_answered_with_the_keys_of_its_section() -> None:
    with pytest.raises(ConfigError, match=r"merge\.dtipe: unknown key; known: dtype, tolerance"):
        load_recipe("starter", ["merge.dtipe=float32"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [unclosed", "is not valid YAML"),
        ("- a\n- list", "holds no mapping"),
        ("just words", "holds no mapping"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_an_empty_file_is_the_recipe_of_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    assert load_recipe(path) == Recipe()


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        load_recipe(tmp_path / "mine.yaml")


@given(text=st.text(max_size=40))
def test_any_text_as_an_override_is_a_recipe_or_a_config_error(text: str) -> None:
    try:
        load_recipe("starter", [text])
    except ConfigError as error:
        assert error.hint


# ── the sections ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("place", "section"), sections(), ids=[at or "recipe" for at, _ in sections()]
)
def test_a_section_is_frozen_and_refuses_unknown_keys(place: str, section: type[BaseModel]) -> None:
    assert section.model_config["frozen"] is True
    with pytest.raises(ValidationError, match="Extra inputs"):
        section.model_validate({"no_such_key": 1})


def test_what_is_written_out_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("smollm3", ["train.token_lr=3e-3", "name=étude"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_every_key_is_written_out() -> None:
    written = yaml.safe_load(dump_recipe(Recipe()))
    for place, section in sections():
        values = written
        for key in filter(None, place.split(".")):
            values = values[key]
        assert set(values) == set(section.model_fields)


def test_no_key_is_without_a_reader() -> None:
    """A key that nothing reads is a promise that nobody keeps (remembers train.max_epochs)."""
    read = {
        node.attr
        for path in SOURCE.rglob("*.py")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    keys = {f"{at}.{key}" for at, section in sections() for key in section.model_fields}
    by_name = {f"train.weights.{part}" for part in PARTS}
    assert {key for key in keys - by_name if key.rsplit(".", 1)[-1] not in read} == set()
