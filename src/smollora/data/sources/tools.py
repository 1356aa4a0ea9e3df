"""Tools as data sets write them -> `ToolSpec`, every change noted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from smollora.data.notes import Notes, Refused
from smollora.data.plain import check_plain_tool
from smollora.data.schemas import settle_schema
from smollora.types import ToolSpec

CACHED = 4096
"""Tools that are remembered: data sets offer the same ones again and again."""
CACHED_LENGTH = 20_000
"""Characters; longer ones are read each time."""

Found = tuple[ToolSpec, tuple[tuple[str, tuple[str, ...]], ...]]
"""A tool, and what was changed in it."""


def read_tools(value: Any, notes: Notes | None = None, *, arrow: bool = False) -> list[ToolSpec]:
    """Tools as a list, a JSON string of one, "null", "" or None.

    Args:
        value: what the record holds.
        notes: takes what was changed.
        arrow: whether a null stands for a missing key.

    Raises:
        Refused: what is there is no list of tools, or a schema is none.
    """
    notes = Notes() if notes is None else notes
    if isinstance(value, str):
        arrow = False  # a null inside the text was written by someone
        value = _decode(value) if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise Refused("bad_tools", "tools are not a list")
    tools: dict[str, ToolSpec] = {}
    for item in value:
        tool = _read_item(item, notes, arrow)
        before = tools.get(tool.name)
        if before is not None and before != tool:
            raise Refused("repeated_tool", f'two different tools are called "{tool.name}"')
        if before is not None:
            notes.add("repeated_tool_dropped", tool.name)
        tools[tool.name] = tool
    return list(tools.values())


def _read_item(item: Any, notes: Notes, arrow: bool) -> ToolSpec:
    """One tool, an object or (in Parquet files) the JSON of one."""
    try:
        text = item if isinstance(item, str) else json.dumps(item)
    except TypeError as error:
        raise Refused("bad_tools", f"a tool that JSON cannot hold: {error}") from None
    read = _read_text if len(text) <= CACHED_LENGTH else _read_text.__wrapped__
    tool, changes = read(text, arrow and not isinstance(item, str))
    for reason, details in changes:
        for detail in details:
            notes.add(reason, detail)
    return tool


@lru_cache(maxsize=CACHED)
def _read_text(text: str, arrow: bool) -> Found:
    notes = Notes()
    tool = _read_tool(_decode(text), notes, arrow)
    check_plain_tool(tool)
    return tool, tuple((reason, tuple(details)) for reason, details in notes.found.items())


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("bad_tools", f"tools are not JSON: {error}") from None


def _read_tool(item: Any, notes: Notes, arrow: bool) -> ToolSpec:
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Refused("bad_tools", "a tool without a name")
    name = function["name"]
    parameters = function.get("parameters")
    if parameters is None:
        parameters = function.get("input_schema", function.get("inputSchema"))
    if isinstance(parameters, str):
        parameters = _decode(parameters)
    if parameters is not None and not isinstance(parameters, Mapping):
        raise Refused("bad_tools", f"{name}: parameters are not an object")
    schema = settle_schema(parameters or {}, name, notes, arrow=arrow)
    if not schema:
        schema = {"type": "object", "properties": {}}
    beside = function.get("required", item.get("required"))
    if isinstance(beside, list) and "required" not in schema:
        declared = schema.get("properties", {})
        if all(isinstance(key, str) and key in declared for key in beside):
            if beside:
                schema = {**schema, "required": beside}
                notes.add("required_moved", name)
        else:
            raise Refused("bad_schema", f"{name}: required names what is not declared")
    return ToolSpec(name, str(function.get("description") or ""), schema)
