"""BFCL's rules for right calls: pure, and agreeing with bfcl-eval's own `ast_checker`.

In: functions as BFCL publishes them, its possible answers, the calls of an answer. Out: a `Verdict`
whose reason is the official `error_type`. docs/eval.md holds both against each other over all the
data. The surprise: the rules are laxer and stranger than they look. Strings are compared without
case, spaces and some punctuation; an alternative that is no list lets any list pass the type check;
[] is right wherever an array may be left out; where the first alternative has another type than
declared, it names a variable and the value must equal an alternative to the letter. All of that is
kept: another reading would be another benchmark.
Rules: bfcl-eval 2026.3.23 (Apache-2.0), eval_checker/ast_eval/ast_checker.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smollora.evaluate.bfcl_values import java_value, javascript_value
from smollora.types import ToolCall

Language = Literal["python", "java", "javascript"]
Alternatives = Sequence[Any]
"""What an argument may be; "" among them: it may be left out."""

TYPES: dict[Language, dict[str, type]] = {
    "python": {
        **{"string": str, "any": str, "integer": int, "float": float, "boolean": bool},
        **{"array": list, "tuple": list, "dict": dict},
    },
    "java": {
        **dict.fromkeys(("byte", "short", "integer", "long"), int),
        **dict.fromkeys(("float", "double"), float),
        **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
        **dict.fromkeys(("HashMap", "Hashtable"), dict),
        **dict.fromkeys(("String", "any", "char"), str),
        **{"boolean": bool, "Set": set},
    },
    "javascript": {
        **{"String": str, "any": str, "integer": int, "float": float, "Bigint": int},
        **{"Boolean": bool, "dict": dict, "array": list},
    },
}
LISTS = {"python": ("array", "tuple"), "java": ("Array", "ArrayList"), "javascript": ("array",)}
"""Declared types whose elements are declared as well."""
READ_LITERAL = {"java": java_value, "javascript": javascript_value}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether calls are right by BFCL's rules."""

    valid: bool
    reason: str = ""
    """The official `error_type`; "" where the calls are right."""
    detail: str = ""


RIGHT = Verdict(True)


def wrong(reason: str, detail: str = "") -> Verdict:
    """A verdict against the calls."""
    return Verdict(False, reason, detail)


def language_of(category: str) -> Language:
    """The language whose literals a category's arguments are."""
    if category.endswith("_javascript"):
        return "javascript"
    return "java" if category.endswith("_java") else "python"


def judge_calls(
    category: str,
    functions: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Mapping[str, Alternatives]]],
    calls: Sequence[ToolCall],
) -> Verdict:
    """Whether `calls` are what a case of `category` wants.

    Args:
        category: it decides about count and order: "parallel" (any order), "multiple", or simple.
        functions: as published, types in BFCL's own words.
        answers: for each call that is wanted {name: {argument: alternatives}}.
        calls: what the model called, in its order.

    Raises:
        KeyError, NotImplementedError: a function or a type that BFCL's checker does not know
            either (none of them is in its data).
    """
    language = language_of(category)
    if "parallel" in category:
        return _judge_unordered(functions, answers, calls, language)
    if "multiple" in category:
        if len(calls) != len(answers):
            return wrong("multiple_function_checker:wrong_count", f"{len(calls)} calls")
        function = _find(functions, next(iter(answers[0])))
        return judge_call(function, answers[0], calls[0], language)
    if len(calls) != 1:
        return wrong("simple_function_checker:wrong_count", f"{len(calls)} calls")
    return judge_call(functions[0], answers[0], calls[0], language)


def _find(functions: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for function in functions:
        if function["name"] == name:
            return function
    raise KeyError(f"no function {name}")


def _judge_unordered(
    functions: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Mapping[str, Alternatives]]],
    calls: Sequence[ToolCall],
    language: Language,
) -> Verdict:
    """Each answer takes the first call left that fits it; a call is never given back."""
    if len(calls) != len(answers):
        return wrong("parallel_function_checker_no_order:wrong_count", f"{len(calls)} calls")
    left = list(calls)
    for answer in answers:
        function = _find(functions, next(iter(answer)))
        problem = RIGHT
        for place, call in enumerate(left):
            problem = judge_call(function, answer, call, language)
            if problem.valid:
                del left[place]
                break
        if not problem.valid:
            return wrong("parallel_function_checker_no_order:cannot_find_match", problem.detail)
    return RIGHT


def judge_call(
    function: Mapping[str, Any],
    answer: Mapping[str, Mapping[str, Alternatives]],
    call: ToolCall,
    language: Language,
) -> Verdict:
    """Whether one call is the one that `answer` describes."""
    wanted = next(iter(answer.values()))
    declared = function["parameters"]["properties"]
    if call.name != function["name"]:
        return wrong("simple_function_checker:wrong_func_name", call.name)
    for name in function["parameters"]["required"]:
        if name not in call.arguments:
            return wrong("simple_function_checker:missing_required", name)
    for name, value in call.arguments.items():
        if name not in declared or name not in wanted:
            return wrong("simple_function_checker:unexpected_param", name)
        found = _judge_argument(declared[name], wanted[name], value, language)
        if not found.valid:
            return wrong(found.reason, f"{name}: {found.detail}")
    for name, alternatives in wanted.items():
        if name not in call.arguments and "" not in alternatives:
            return wrong("simple_function_checker:missing_optional", name)
    return RIGHT


def _judge_argument(
    declared: Mapping[str, Any], alternatives: Alternatives, value: Any, language: Language
) -> Verdict:
    name = declared["type"]
    wanted = TYPES[language][name]
    inner_name = declared["items"]["type"] if name in LISTS[language] else None
    inner = TYPES[language][inner_name] if inner_name is not None else None
    if language != "python":
        if not isinstance(value, str):
            short = {"java": "java", "javascript": "js"}[language]
            return wrong(f"type_error:{short}", f"{value!r} is no text")
        value = READ_LITERAL[language](value, name, inner_name)
    elif name == "float" and type(value) is int:
        value = float(value)
    elif name == "tuple" and isinstance(value, tuple):
        value = list(value)
    problem, is_variable = _judge_type(value, alternatives, wanted, inner)
    if not problem.valid:
        return problem
    if not is_variable:
        if wanted is dict:
            return _judge_mapping(value, alternatives)
        if wanted is list and inner is dict:
            return _judge_mappings(value, alternatives)
        if wanted is str:
            folded = [_fold(each) for each in alternatives if type(each) is str]
            return RIGHT if _fold(value) in folded else wrong("value_error:string", repr(value))
        if wanted is list:
            lists = [[_fold(item) for item in each] for each in alternatives]
            found = [_fold(item) for item in value]
            return RIGHT if found in lists else wrong("value_error:list/tuple", repr(value))
    return RIGHT if value in alternatives else wrong("value_error:others", repr(value))


def _judge_type(
    value: Any, alternatives: Alternatives, wanted: type, inner: type | None
) -> tuple[Verdict, bool]:
    """(verdict on the type, whether the alternatives name a variable instead of a value)."""
    first = next((type(each) for each in alternatives if each != ""), None)
    if type(value) is wanted:
        is_variable = first is not None and first is not wanted
        if inner is None:
            return RIGHT, is_variable
        for each in alternatives:
            items: Sequence[Any] = value if type(each) is list else ()  # type: ignore[assignment]
            if all(_judge_type(item, each, inner, None)[0].valid for item in items):
                return RIGHT, is_variable
        reason = "type_error:nested" if first is wanted else "type_error:simple"
        return wrong(reason, f"{value!r} holds other than {inner.__name__}"), False
    if first is not None and type(value) is first:
        return RIGHT, True
    return wrong("type_error:simple", f"{value!r} is no {wanted.__name__}"), False


def _judge_mapping(value: Any, alternatives: Alternatives) -> Verdict:
    """Members have alternatives of their own; nothing deeper is looked into."""
    problem = wrong("dict_checker:unclear")
    for each in alternatives:
        if each == "":
            continue
        problem = _judge_members(value, each)
        if problem.valid:
            break
    return problem


def _judge_members(value: Any, wanted: Mapping[str, Alternatives]) -> Verdict:
    if not isinstance(value, Mapping):  # where an alternative that is no list waved it through
        return wrong("dict_checker:unclear", f"{value!r} is no mapping")
    for name, alternatives in wanted.items():
        if name not in value and "" not in alternatives:
            return wrong("value_error:dict_key", f"lacks {name}")
    for name, member in value.items():
        if name not in wanted:
            return wrong("value_error:dict_key", f"no member {name}")
        if _fold(member) not in [_fold(each) for each in wanted[name]]:
            return wrong("value_error:dict_value", f"{name}: {member!r}")
    return RIGHT


def _judge_mappings(value: Sequence[Any], alternatives: Alternatives) -> Verdict:
    """A list of mappings, in the order of an alternative."""
    problem = wrong("list_dict_checker:unclear")
    for each in alternatives:
        if len(value) != len(each):
            problem = wrong("value_error:list_dict_count", f"{len(value)} mappings")
            continue
        verdicts = (_judge_mapping(*pair) for pair in zip(value, ([e] for e in each), strict=True))
        problem = next((verdict for verdict in verdicts if not verdict.valid), RIGHT)
        if problem.valid:
            break
    return problem


def _fold(value: Any) -> Any:
    """Text without case, spaces and the punctuation that BFCL forgives; the rest as it is."""
    if type(value) is not str:
        return value
    return re.sub(r"[ \,\.\/\-\_\*\^]", "", value).lower().replace("'", '"')
