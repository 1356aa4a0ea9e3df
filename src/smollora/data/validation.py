"""Calls held against the JSON Schema of their tools.

In: arguments, and a schema from strangers. Out: what is wrong, or None. The surprise: a schema can
be written so that checking it opens a connection or never ends; references to other documents are
never fetched, and patterns and references have a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from smollora.types import ToolCall, ToolSpec

MAX_REFERENCES = 2_000
"""References followed while one call is checked; a few nested ones can double without end."""
PATTERN_SECONDS = 0.2
"""Time for one pattern on one string; some patterns take longer than the universe has."""
VALIDATORS = 4096
"""Schemas whose validators are kept: making one takes longer than using it."""

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
