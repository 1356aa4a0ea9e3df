"""Schemas as data sets write them become JSON Schema, and no schema makes us wait or connect."""

from __future__ import annotations

import time
from typing import Any

import pytest

from smollora.data.notes import Notes, Refused
from smollora.data.schemas import read_type
from smollora.data.sources import read_tools
from smollora.data.validation import schema_problem, value_problem
from smollora.types import ToolCall, ToolSpec

PYTHON_TYPES = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object"},
    "list": {"type": "array"},
    "any": {},
    "str, optional": {"type": "string"},
    "int, default=5": {"type": "integer"},
    "Optional[int]": {"type": "integer"},
    "List[str]": {"type": "array", "items": {"type": "string"}},
    "List[List[int]]": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "integer"}},
    },
    "Dict[str, int]": {"type": "object"},
    "Tuple[int, str]": {"type": "array"},
    "Union[int, str]": {"type": ["integer", "string"]},
    "Callable[[float], float]": {},
}
"""As xLAM, BFCL and Seal-Tools write them, and what they mean in JSON Schema."""


@pytest.mark.parametrize("written", PYTHON_TYPES)
def test_a_python_type_is_read_as_json_schema(written: str) -> None:
    assert read_type(written) == PYTHON_TYPES[written]


@pytest.mark.parametrize("written", ["thing", "List[", "[int]", "a" * 10_000 + "[b]"])
def test_a_type_that_nobody_knows_is_not_guessed(written: str) -> None:
    assert read_type(written) is None


def tool(parameters: Any, **more: Any) -> tuple[ToolSpec, dict[str, list[str]]]:
    notes = Notes()
    (made,) = read_tools([{"name": "f", "parameters": parameters, **more}], notes)
    return made, notes.found


def test_what_is_mended_in_a_schema_is_noted() -> None:
    city = {"type": "str", "required": True}
    made, notes = tool({"type": "dict", "properties": {"city": city}, "required": None})
    assert made.parameters == {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    }
    assert set(notes) == {
        *("schema_types_translated", "null_schema_keys_dropped", "required_moved"),
    }
    made, notes = tool({"type": "object", "properties": {"a": {}}}, required=["a"])
    assert made.parameters["required"] == ["a"]
    assert set(notes) == {"required_moved"}


def test_a_good_schema_is_left_as_it_is() -> None:
    good = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["a", None], "default": None},
            "nested": {"type": "object", "properties": {"required": {"type": "boolean"}}},
            "many": {
                "type": "array",
                "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]},
            },
        },
        "$defs": {"x": {"type": "integer", "minimum": 1}},
        "required": ["type"],
        "additionalProperties": False,
    }
    made, notes = tool(good)
    assert made.parameters == good
    assert notes == {}


def test_two_tools_of_one_name_are_refused_unless_they_are_equal() -> None:
    notes = Notes()
    same = {"name": "f", "parameters": {"properties": {"a": {}}}}
    assert len(read_tools([same, same], notes)) == 1
    assert set(notes.found) == {"repeated_tool_dropped"}
    with pytest.raises(Refused) as caught:
        read_tools([same, {"name": "f"}])
    assert caught.value.reason == "repeated_tool"


ENDLESS = {
    "a pattern that backtracks for ever": {
        "properties": {"a": {"pattern": "^(a|aa)+$"}},
    },
    "a pattern on names": {"patternProperties": {"^(a|aa)+$": {}}, "properties": {"a": {}}},
    "references that double": {
        "properties": {"a": {"$ref": "#/$defs/0"}},
        "$defs": {
            str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}, {"$ref": f"#/$defs/{n + 1}"}]}
            for n in range(40)
        }
        | {"40": {}},
    },
    "a reference to itself": {
        "properties": {"a": {"$ref": "#/$defs/0"}},
        "$defs": {"0": {"$ref": "#/$defs/0"}},
    },
}


@pytest.mark.parametrize("schema", ENDLESS)
def test_a_schema_that_never_ends_is_given_up(schema: str) -> None:
    long = "a" * 40 + "!"
    made, _ = tool(ENDLESS[schema])
    start = time.process_time()
    problem = schema_problem(ToolCall("f", {"a": long, long: 1}), made)
    assert problem is not None and problem.startswith("the schema cannot be used")
    assert time.process_time() - start < 20, "seconds, not the age of the universe"


def test_patterns_and_open_objects_are_checked_as_json_schema_says() -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z]{3}$"}},
        "patternProperties": {"^x-": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    assert value_problem({"code": "LIS", "x-a": 1, "other": "text"}, schema) is None
    assert value_problem({"code": "Lis"}, schema)
    assert value_problem({"x-a": "one"}, schema)
    assert value_problem({"other": 5}, schema)
    closed = {**schema, "additionalProperties": False}
    assert value_problem({"other": "text"}, closed) == "undeclared arguments other"
