"""JSON Schema of tools as data sets write it -> JSON Schema; and calls held against it.

In: the `parameters` of a tool. Out: a schema that a validator can use, with every change noted, or
`Refused`. What is mended is spelling (`dict` for `object`, `required` in the wrong place, nulls
that Arrow put there); a schema that says nothing a validator knows is refused. The surprises: a
schema comes from strangers, so references to other documents are never fetched, and patterns and
references have a budget: both can be written so that they never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.types import ToolCall, ToolSpec

TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
TYPE_NAMES = {
    **dict.fromkeys(("dict", "hashmap", "map", "mapping", "struct", "json"), "object"),
    **dict.fromkeys(("list", "tuple", "set", "arraylist", "sequence"), "array"),
    **dict.fromkeys(("str", "char", "text", "date", "datetime", "time", "enum"), "string"),
    **dict.fromkeys(("float", "double", "decimal", "real"), "number"),
    **dict.fromkeys(("int", "long", "bigint", "short"), "integer"),
    **dict.fromkeys(("bool",), "boolean"),
    **dict.fromkeys(("none", "nonetype"), "null"),
}
"""Names that published tools use for JSON's types, in lower case."""
ANY = frozenset(("any", "object or string", "mixed", ""))
"""Names that allow every value: the keyword is dropped."""
OPEN_LIST = re.compile(r"^(?:typing\.)?(\w+)\s*\[(.*)\]$", re.DOTALL)
MAX_DEPTH = 64
"""Deeper arguments and schemas are refused: no tool needs them, and recursion has limits."""
MAX_REFERENCES = 2_000
"""References followed while one call is checked; a few nested ones can double without end."""
PATTERN_SECONDS = 0.2
"""Time for one pattern on one string; some patterns take longer than the universe has."""
VALIDATORS = 2048
"""Schemas whose validators are kept: making one takes longer than using it."""
NULL_IS_A_VALUE = ("default", "const")


def settle_schema(schema: Mapping[str, Any], name: str, notes: Notes, *, arrow: bool) -> Any:
    """A tool's parameters as JSON Schema.

    Args:
        schema: `parameters` as found.
        name: the tool, for messages.
        notes: takes what was changed.
        arrow: whether the record comes from Arrow, where a null stands for a missing key.

    Raises:
        Refused: "bad_schema" or "remote_reference".
    """
    if _is_flat(schema):
        required = [
            key
            for key, value in schema.items()
            if isinstance(value, Mapping)
            and value.get("default") is None
            and "optional" not in str(value.get("type", "")).lower()
        ]
        schema = {"type": "object", "properties": dict(schema), "required": required}
        notes.add("flat_parameters_wrapped", name)
    return _settle(schema, name, notes, arrow, 0)


def _is_flat(schema: Mapping[str, Any]) -> bool:
    """{"city": {"type": "str"}} without "properties", as xLAM writes parameters."""
    words = {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "$defs", "required"}
    values = [value for value in schema.values() if value is not None]
    return (
        bool(values)
        and all(isinstance(value, Mapping) for value in values)
        and not (isinstance(schema.get("properties"), Mapping) and "type" in schema)
        and (not words & set(schema) or all(isinstance(value.get("type"), str) for value in values))
    )


def _settle(schema: Any, where: str, notes: Notes, arrow: bool, depth: int) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise Refused("bad_schema", f"{where}: {str(schema)[:80]!r} is no schema")
    if depth > MAX_DEPTH:
        raise Refused("too_deep", f"{where}: a schema nested more than {MAX_DEPTH} deep")
    settled: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None and (arrow or key not in NULL_IS_A_VALUE):
            notes.add("null_schema_keys_dropped", f"{where}.{key}")
        elif key == "type":
            settled |= _settle_type(value, where, notes)
        elif key in ("properties", "$defs", "definitions", "patternProperties"):
            settled[key] = _settle_properties(value, where, notes, arrow, depth)
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if not isinstance(value, list) or not value:
                raise Refused("bad_schema", f"{where}: {key} is no list of schemas")
            settled[key] = [_settle(item, where, notes, arrow, depth + 1) for item in value]
        elif key in ("items", "additionalProperties", "not", "contains", "propertyNames"):
            if isinstance(value, list):  # the tuple form of older drafts
                key, found = "prefixItems", value
                settled[key] = [_settle(item, where, notes, arrow, depth + 1) for item in found]
            else:
                wanted = {"type": value} if isinstance(value, str) else value
                settled[key] = _settle(wanted, f"{where}.{key}", notes, arrow, depth + 1)
        elif key == "required":
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                settled[key] = value
            elif not isinstance(value, bool):
                raise Refused("bad_schema", f"{where}: required is {str(value)[:80]!r}")
        elif key == "enum" and not isinstance(value, list):
            raise Refused("bad_schema", f"{where}: enum is no list")
        elif key in ("$ref", "$dynamicRef"):
            if not isinstance(value, str) or not value.startswith("#"):
                raise Refused("remote_reference", f"{where}: refers to {str(value)[:120]}")
            settled[key] = value
        elif key in ("$schema", "$id", "id") and isinstance(value, str):
            if key == "$id":  # it would change what "#/..." means
                notes.add("schema_id_dropped", f"{where}: {value}")
            else:
                settled[key] = value
        else:
            settled[key] = value
    return _lift_required(settled, schema, where, notes)


def _settle_properties(
    value: Any, where: str, notes: Notes, arrow: bool, depth: int
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Refused("bad_schema", f"{where}: properties are no object")
    settled = {}
    for name, schema in value.items():
        if schema is None:
            notes.add("null_schema_keys_dropped", f"{where}.{name}")
        elif isinstance(schema, str):
            settled[name] = _settle({"type": schema}, f"{where}.{name}", notes, arrow, depth + 1)
        else:
            settled[name] = _settle(schema, f"{where}.{name}", notes, arrow, depth + 1)
    return settled


def _lift_required(
    settled: dict[str, Any], schema: Mapping[str, Any], where: str, notes: Notes
) -> dict[str, Any]:
    """`required: true` inside a property, as the third draft had it, to the object around it."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return settled
    marked = [
        name
        for name, value in properties.items()
        if isinstance(value, Mapping) and value.get("required") is True
    ]
    if marked:
        known = settled.get("required", [])
        settled["required"] = [*known, *(name for name in marked if name not in known)]
        notes.add("required_moved", f"{where}: {', '.join(marked)}")
    return settled


def _settle_type(value: Any, where: str, notes: Notes) -> dict[str, Any]:
    if isinstance(value, str):
        if value in TYPES:
            return {"type": value}
        found = read_type(value)
        if found is None:
            raise Refused("bad_schema", f'{where}: there is no type "{value[:80]}"')
        notes.add("schema_types_translated", f"{where}: {value[:40]}")
        return found
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if set(value) <= TYPES:
            return {"type": value}
        merged = [read_type(item) for item in value]
        if all(item is not None and set(item) == {"type"} for item in merged):
            notes.add("schema_types_translated", f"{where}: {', '.join(value)[:40]}")
            return {"type": list(dict.fromkeys(item["type"] for item in merged if item))}
    raise Refused("bad_schema", f"{where}: the type is {str(value)[:80]!r}")


def read_type(text: str) -> dict[str, Any] | None:
    """A type as Python or a data set writes it ("List[int]", "str, optional"); None if unknown."""
    word = text.strip()
    head, _, tail = word.rpartition(",")
    if head and tail.strip().lower().startswith(("optional", "default")):
        word = head.strip()
    lower = word.lower()
    if lower in TYPES:
        return {"type": lower}
    if lower in TYPE_NAMES:
        return {"type": TYPE_NAMES[lower]}
    if lower in ANY:
        return {}
    match = OPEN_LIST.match(word) if len(word) < 200 else None
    if match is None:
        return None
    outer, inner = match.group(1).lower(), match.group(2)
    if outer == "optional":
        return read_type(inner)
    if outer == "union":
        parts = [read_type(part) for part in _split_types(inner)]
        names = [part["type"] for part in parts if part and set(part) == {"type"}]
        return {"type": list(dict.fromkeys(names))} if len(names) == len(parts) else {}
    if outer in ("callable", "literal"):
        return {}
    base = TYPE_NAMES.get(outer, outer)
    if base not in ("array", "object"):
        return None
    found = read_type(_split_types(inner)[0]) if base == "array" and outer != "tuple" else None
    return {"type": base, "items": found} if found else {"type": base}


def _split_types(text: str) -> list[str]:
    """ "int, List[str]" at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


# ── calls against schemas ────────────────────────────────────────────────────────────────────────

_references: ContextVar[list[int]] = ContextVar("references")


class _Endless(Exception):
    """A pattern or a chain of references went past its budget."""


def _search(pattern: str, text: str) -> bool:
    import regex

    try:
        return regex.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise _Endless(f"the pattern {pattern[:60]!r} does not end") from None


def _pattern(_: Any, pattern: Any, instance: Any, __: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not _search(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[Any]:
    if isinstance(instance, Mapping):
        for pattern, schema in patterns.items():
            for key, value in instance.items():
                if _search(pattern, key):
                    yield from validator.descend(value, schema, path=key, schema_path=pattern)


def _additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if not isinstance(instance, Mapping):
        return
    patterns = schema.get("patternProperties", {})
    extra = [
        key
        for key in instance
        if key not in schema.get("properties", {}) and not any(_search(p, key) for p in patterns)
    ]
    if isinstance(allowed, Mapping):
        for key in extra:
            yield from validator.descend(instance[key], allowed, path=key)
    elif not allowed and extra:
        yield ValidationError(f"undeclared arguments {', '.join(sorted(extra))}")


@cache
def _validator_class() -> Any:
    import jsonschema

    plain = jsonschema.Draft202012Validator
    follow = plain.VALIDATORS["$ref"]

    def counted(validator: Any, reference: Any, instance: Any, schema: Any) -> Iterator[Any]:
        budget = _references.get()
        budget[0] -= 1
        if budget[0] < 0:
            raise _Endless(f"more than {MAX_REFERENCES} references")
        yield from follow(validator, reference, instance, schema) or ()

    extend: Any = jsonschema.validators.extend
    return extend(
        plain,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional,
            "$ref": counted,
            "$dynamicRef": counted,
        },
    )


_validators: dict[int, tuple[Any, Any]] = {}
"""By the identity of the schema, which is kept beside it so that no other can take its place."""


def _validator(schema: Any) -> Any:
    import referencing

    known = _validators.get(id(schema))
    if known is not None and known[0] is schema:
        return known[1]
    if len(_validators) >= VALIDATORS:
        _validators.clear()
    # An empty registry: the default one opens connections.
    made = _validator_class()(schema, registry=referencing.Registry())
    _validators[id(schema)] = (schema, made)
    return made


def schema_problem(call: ToolCall, tool: ToolSpec) -> str | None:
    """Why the arguments break the tool's JSON Schema, or None.

    References to other documents are never followed.
    """
    problem = value_problem(dict(call.arguments), tool.parameters)
    if problem is not None:
        return problem
    declared = tool.parameters.get("properties")
    if isinstance(declared, Mapping) and not _allows_more(tool.parameters):
        extra = sorted(set(call.arguments) - set(declared))
        if extra:
            return f"undeclared arguments {', '.join(extra)}"
    return None


def _allows_more(schema: Mapping[str, Any]) -> bool:
    more = schema.get("additionalProperties")
    return more is True or isinstance(more, Mapping) or "patternProperties" in schema


def value_problem(value: Any, schema: Any) -> str | None:
    """Why a value breaks a schema, or None."""
    token = _references.set([MAX_REFERENCES])
    try:
        error = next(iter(_validator(schema).iter_errors(value)), None)
    except _Endless as endless:
        return f"the schema cannot be used: {endless}"
    except Exception as broken:  # a schema that is none: any of jsonschema's many exceptions
        return f"the schema cannot be used: {type(broken).__name__}"
    finally:
        _references.reset(token)
    return None if error is None else str(error.message)
