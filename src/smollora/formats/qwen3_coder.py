"""Qwen3-Coder's tags: <function=name> and a <parameter=key> for each argument, values as text.

Qwen3-Coder, Qwen 3.5 and later, Nemotron 3. Sources: the chat templates; vLLM's parser qwen3_coder.
The surprise: a value carries no type and no escape. `3` may be a string or a number; only the
tool's schema tells. Without the tools every value is read as text, as vLLM does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollora.formats.grammar import (
    CannotShow,
    blocks,
    outside,
    show_json,
    single_id,
    spelled_out,
    whole_json,
)
from smollora.types import CallStatus, ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer

_NAME = re.compile(r"[^<>\s]+")
_FUNCTION = re.compile(r"\s*<function=([^<>\s]*)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>(.*?)</parameter>", re.DOTALL)
_TAGS = ("<function=", "</function>", "<parameter=", "</parameter>")
_TEMPLATE_WORDS = {"True": True, "False": False}
"""The family's templates write booleans as Python does."""


@dataclass(frozen=True)
class Qwen3CoderFormat:
    """XML-like tags in <tool_call>, one block per call."""

    name: str = "qwen3_coder"
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    inner: tuple[str, ...] = ()
    delimited: Delimited = "token"
    one_block: bool = False
    arguments_mark: str = ">"
    vllm_parser: str = "qwen3_coder"

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`.

        Raises:
            CannotShow: a text that holds one of the tags, a name with spaces or angle brackets.
        """
        return "\n".join(self._show_one(call) for call in calls)

    def _show_one(self, call: ToolCall) -> str:
        lines = [self.open, f"<function={_name(call.name)}>"]
        for key, value in call.arguments.items():
            lines += [f"<parameter={_name(key)}>", self._text(value), "</parameter>"]
        return "\n".join([*lines, "</function>", self.close])

    def _text(self, value: Any) -> str:
        tokens = (self.open, self.close, *_TAGS)
        if not isinstance(value, str):
            return show_json(value, tokens)
        if found := next((token for token in tokens if token in value), None):
            raise CannotShow(f"a text holds {found}, which has no escape here")
        return value

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`, typed by the schemas of `tools`, else all text."""
        found = list(
            blocks(token_ids, single_id(tokenizer, self.open), single_id(tokenizer, self.close))
        )
        schemas = {tool.name: tool.parameters for tool in tools}
        attempts: list[ParsedCall] = []
        for block in found:
            status, call = read_body(tokenizer.decode(list(token_ids[slice(*block.inside)])))
            if not block.closed:
                status, call = "unclosed", None
            if call is not None and call.name in schemas:
                status, call = typed(call, schemas[call.name])
            raw = tokenizer.decode(list(token_ids[block.start : block.stop]))
            attempts.append(ParsedCall(raw, status, call, (block.start, block.stop)))
        text = tokenizer.decode(outside(token_ids, found))
        bare = text.lstrip().startswith("<function=")
        return (*attempts, *spelled_out(text, self.open, bare))


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise CannotShow(f"{text!r} cannot stand in a tag")
    return text


def read_body(body: str) -> tuple[CallStatus, ToolCall | None]:
    """A block's tags as (status, call) with every value as text."""
    function = _FUNCTION.fullmatch(body)
    if function is None:
        return "bad_syntax", None
    name, inside = function.groups()
    if not name:
        return "no_name", None
    arguments: dict[str, str] = {}
    position = 0
    while inside[position:].strip():
        parameter = _PARAMETER.match(inside, position)
        if parameter is None or any(tag in parameter[2] for tag in _TAGS):
            return "bad_syntax", None
        if parameter[1] in arguments:
            return "bad_syntax", None
        arguments[parameter[1]] = parameter[2].removeprefix("\n").removesuffix("\n")
        position = parameter.end()
    return "ok", ToolCall(name, arguments)


# ── types ─────────────────────────────────────────────────────────────────────────────────────


def typed(call: ToolCall, parameters: Mapping[str, Any]) -> tuple[CallStatus, ToolCall | None]:
    """`call` with each text read as its schema says; bad syntax where it cannot be."""
    properties = parameters.get("properties")
    schemas = properties if isinstance(properties, Mapping) else {}
    try:
        values = {key: _typed(text, schemas.get(key)) for key, text in call.arguments.items()}
    except ValueError:
        return "bad_syntax", None
    return "ok", ToolCall(call.name, values)


def _typed(text: str, schema: Any) -> Any:
    """One value; the types that a schema allows are tried before text, as vLLM does.

    Raises:
        ValueError: it is of none of the types.
    """
    allowed = types_of(schema)
    if not allowed or allowed == {"string"}:
        return text
    if "boolean" in allowed and text in _TEMPLATE_WORDS:
        return _TEMPLATE_WORDS[text]
    try:
        value = whole_json(text)
    except ValueError:
        value = text
    if type_of(value) in allowed or (type_of(value) == "integer" and "number" in allowed):
        return value
    if "string" in allowed:
        return text
    raise ValueError(f"{text[:40]!r} is none of {sorted(allowed)}")


def types_of(schema: Any) -> set[str]:
    """The JSON types that a schema names, alternatives included; empty: it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else set(named or ())
    for key in ("anyOf", "oneOf"):
        for alternative in schema.get(key) or ():
            found |= types_of(alternative)
    if not found and isinstance(schema.get("enum"), Sequence):
        found = {type_of(value) for value in schema["enum"]}
    return found


def type_of(value: Any) -> str:
    """The JSON type of a decoded value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case Mapping():
            return "object"
    return "array"


QWEN3_CODER = Qwen3CoderFormat()
