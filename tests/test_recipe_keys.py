"""The list of recipe keys is the recipe's own, and each key says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from smollora.config import Recipe, check_recipe, dump_recipe
from smollora.recipe_keys import recipe_keys, recipe_sections

KEYS = {key.path: key for key in recipe_keys()}


def flat(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys of a dumped recipe; what is no section is a value."""
    for name, value in values.items():
        place = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and place not in KEYS:
            yield from flat(value, place)
        else:
            yield place


def test_the_keys_are_those_of_a_dumped_recipe_in_its_order() -> None:
    dumped = yaml.safe_load(dump_recipe(Recipe()))
    assert list(flat(dumped)) == [path for path, key in KEYS.items() if not key.in_list]


def test_the_keys_of_a_source_are_listed_too() -> None:
    source = yaml.safe_load(dump_recipe(Recipe()))["prepare"]["sources"][0]
    listed = [key.name for key in KEYS.values() if key.section == "prepare.sources[]"]
    assert listed == list(source)


def test_every_key_says_what_it_is() -> None:
    assert [path for path, key in KEYS.items() if not key.description] == []


def test_every_section_says_what_it_is() -> None:
    sections = {section.path: section.about for section in recipe_sections()}
    assert {key.section for key in KEYS.values()} <= set(sections)
    assert all(sections.values())


def test_defaults_and_what_a_key_takes_are_told() -> None:
    assert KEYS["train.rank"].default == 16
    assert KEYS["train.rank"].takes == "a whole number, at least 1"
    assert KEYS["train.dropout"].takes == "a number, at least 0, below 1"
    assert KEYS["train.embeddings"].takes == "lora | tool_tokens | frozen"
    assert KEYS["prepare.duplicates"].takes == "remove | report | off"
    assert KEYS["mix.rows"].takes == "a whole number or null, at least 1"
    assert KEYS["prepare.sources[].path"].required


def test_every_default_is_accepted_where_it_stands() -> None:
    values: dict[str, Any] = {}
    for path, key in KEYS.items():
        if key.in_list or path == "prepare.sources":
            continue
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = key.default
    assert check_recipe(values, "defaults") == Recipe()
