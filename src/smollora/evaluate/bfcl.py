"""BFCL's single-turn questions: from its files to cases, with what its rules need beside them.

In: `bfcl_eval/data` of the unpacked wheel `bfcl-eval`. Out: `Truth`s and `EvalCase`s. The
surprises: BFCL writes its schemas with Python type names ("dict", "float", "tuple"), which are
translated into JSON Schema, as its own harness does; for Java and JavaScript every argument is
asked for as source text, with the type in its description; live_relevance wants some call, and no
answer is published.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError, DataError
from smollora.types import EvalCase, Message, ToolCall, ToolSpec

BFCL_SINGLE_TURN = (
    *("simple_python", "simple_java", "simple_javascript", "multiple", "parallel"),
    *("parallel_multiple", "irrelevance", "live_simple", "live_multiple", "live_parallel"),
    *("live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
"""Categories of BFCL v4 whose questions stand beside their tools in one file."""
SCORED_CATEGORIES = tuple(name for name in BFCL_SINGLE_TURN if "relevance" not in name)
"""Those with published answers."""

JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "list": "array",
    "any": "string",
    "int": "integer",
    "str": "string",
    "bool": "boolean",
    "String": "string",
    "Boolean": "boolean",
    "Bigint": "integer",
    "HashMap": "object",
    "ArrayList": "array",
    "Array": "array",
    "char": "string",
    "long": "integer",
    "double": "number",
}
"""BFCL's type names in JSON Schema (bfcl_eval/constants/type_mappings.py)."""


@dataclass(frozen=True, slots=True)
class Truth:
    """One question of BFCL with what its checker is given."""

    id: str
    category: str
    messages: tuple[Message, ...]
    functions: tuple[Mapping[str, Any], ...]
    """As published."""
    answers: list[dict[str, dict[str, list[Any]]]]
    """For each call {name: {argument: alternatives}}; empty where none is published."""


def read_truths(folder: Path, category: str, limit: int | None = None) -> Iterator[Truth]:
    """The questions of a category.

    Args:
        folder: `bfcl_eval/data` of the unpacked wheel.
        category: "simple_python", "irrelevance", "live_irrelevance", ...
        limit: the first so many.

    Raises:
        ConfigError: no such category of single-turn questions.
        DataError: its file is not there.
    """
    if category not in BFCL_SINGLE_TURN:
        raise ConfigError(
            f"BFCL has no single-turn category {category}",
            f"use bfcl, or bfcl: with one of {', '.join(BFCL_SINGLE_TURN)}",
        )
    path = folder / f"BFCL_v4_{category}.json"
    truth = folder / "possible_answer" / path.name
    if not path.is_file():
        raise DataError(f"{path} is not there", "delete the folder, it is fetched again")
    answers: dict[str, Any] = {}
    if truth.is_file():
        for line in truth.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers[row["id"]] = row["ground_truth"]
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        messages = tuple(Message(turn["role"], turn["content"]) for turn in row["question"][0])
        yield Truth(
            row["id"], category, messages, tuple(row["function"]), answers.get(row["id"], [])
        )


def as_case(truth: Truth) -> EvalCase:
    """A question as it is asked: tools in JSON Schema. The arguments of an expected call are lists
    of alternatives.
    """
    asked = (ask_for_text(function, truth.category) for function in truth.functions)
    tools = tuple(
        ToolSpec(f["name"], f.get("description", ""), json_schema(f["parameters"])) for f in asked
    )
    expected = tuple(
        ToolCall(name, arguments) for call in truth.answers for name, arguments in call.items()
    )
    return EvalCase(truth.id, truth.category, truth.messages, tools, expected)


def ask_for_text(function: Mapping[str, Any], category: str) -> Mapping[str, Any]:
    """A Java or JavaScript function whose arguments are source text; others as they are.

    Source: `_func_doc_language_specific_pre_processing` in bfcl_eval/utils.py.
    """
    language = {"simple_java": "Java", "simple_javascript": "JavaScript"}.get(category)
    if language is None:
        return function
    asked: dict[str, Any] = copy.deepcopy(dict(function))
    syntax = "Java 8 SDK" if language == "Java" else language
    asked["description"] += f" Note that the provided function is in {syntax} syntax."
    for value in asked["parameters"]["properties"].values():
        declared = value["type"]
        said = f" This is {language} {declared} type parameter in string representation."
        if declared == "any":
            said = (
                f" This parameter can be of any type of {language} object in string representation."
            )
        if declared in ("ArrayList", "Array", "array"):
            inner = value.pop("items")["type"]
            said += (
                f" The list elements are of type {inner}; they are not in string representation."
            )
        if declared == "dict" and "properties" in value:
            said += (
                " The dictionary entries have the following schema; they are not in string"
                f" representation. {json.dumps(value.pop('properties'))}"
            )
        value["description"] += said
        value["type"] = "string"
    return asked


def json_schema(value: Any) -> Any:
    """A BFCL parameter description as JSON Schema."""
    if isinstance(value, list):
        return [json_schema(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: JSON_TYPES.get(item, item)
        if key == "type" and isinstance(item, str)
        else json_schema(item)
        for key, item in value.items()
    }
