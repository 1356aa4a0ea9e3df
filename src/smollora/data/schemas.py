"""JSON Schema of tools as data sets write it -> JSON Schema.

In: the `parameters` of a tool. Out: a schema that a validator can use, with every change noted, or
`Refused`. What is mended is spelling (`dict` for `object`, `required` in the wrong place, nulls
that Arrow put there); a schema that says nothing a validator knows is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollora.data.notes import Notes, Refused

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
