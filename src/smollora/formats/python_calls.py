"""Calls written as Python: `[get_weather(city='Oslo', days=3), now()]`, with or without delimiters.

Llama 3.2, Llama 4, ToolACE and Olmo 3 write the bare list; LFM2 puts it between two special
tokens. Sources: the models' cards and templates; vLLM's parsers pythonic and lfm2. The text is
parsed, never run. The surprise: LFM2's own template writes mappings as JSON, so `true`, `false`
and `null` are words of this grammar beside `True`, `False` and `None`.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollora.formats.grammar import (
    CannotShow,
    blocks,
    end_of_text,
    outside,
    single_id,
    spelled_out,
)
from smollora.types import CallStatus, ParsedCall, ToolCall, ToolSpec

if TYPE_CHECKING:
    from smollora.formats import Delimited, Tokenizer

_BEGINS = re.compile(r"\s*\[\s*[^\W\d][\w.]*\s*\(")
_LATER = re.compile(r"\[\s*[^\W\d][\w.]*\(.*\)\s*\]", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class PythonFormat:
    """A Python list of calls with keyword arguments, all calls of a turn in one list."""

    name: str
    vllm_parser: str
    open: str = ""
    close: str = ""
    inner: tuple[str, ...] = ()
    delimited: Delimited = "none"
    one_block: bool = True
    arguments_mark: str = "("

    def show(self, calls: Sequence[ToolCall]) -> str:
        """The text that the model must write for `calls`; nothing for none.

        Raises:
            CannotShow: a name or argument that is no Python identifier, NaN, an infinity.
        """
        if not calls:
            return ""
        text = f"[{', '.join(show_call(call) for call in calls)}]"
        for token in (self.open, self.close):
            if token:
                text = text.replace(token, f"\\x{ord(token[0]):02x}{token[1:]}")
        return f"{self.open}{text}{self.close}"

    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt in `token_ids`; calls of one list share its span."""
        if self.delimited == "none":
            end = end_of_text(token_ids, tokenizer, ())
            text = tokenizer.decode(list(token_ids[:end]))
            if _BEGINS.match(text):
                return tuple(_attempts(text, (0, end)))
            wrong = ParsedCall(text, "bad_syntax", None, (0, end))
            return (wrong,) if _LATER.search(text) else ()
        found = list(
            blocks(token_ids, single_id(tokenizer, self.open), single_id(tokenizer, self.close))
        )
        attempts: list[ParsedCall] = []
        for block in found:
            raw = tokenizer.decode(list(token_ids[block.start : block.stop]))
            span = (block.start, block.stop)
            body = tokenizer.decode(list(token_ids[slice(*block.inside)]))
            if block.closed:
                read = _attempts(body, span)
                attempts.extend(ParsedCall(raw, a.status, a.call, span) for a in read)
            else:
                attempts.append(ParsedCall(raw, "unclosed", None, span))
        text = tokenizer.decode(outside(token_ids, found))
        return (*attempts, *spelled_out(text, self.open, bool(_BEGINS.match(text))))


# ── writing ───────────────────────────────────────────────────────────────────────────────────


def show_call(call: ToolCall) -> str:
    """One call as Python.

    Raises:
        CannotShow: it cannot be written so.
    """
    for part in call.name.split("."):
        _identifier(part)
    shown = (f"{_identifier(key)}={_show(value)}" for key, value in call.arguments.items())
    return f"{call.name}({', '.join(shown)})"


def _identifier(text: str) -> str:
    """`text`, which Python must read back letter by letter (it normalises identifiers)."""
    plain = text.isidentifier() and not keyword.iskeyword(text) and text != "__debug__"
    if not plain or unicodedata.normalize("NFKC", text) != text:
        raise CannotShow(f"{text!r} is no Python identifier")
    return text


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        raise CannotShow(f"{value} is not JSON")
    return repr(value)


# ── reading ───────────────────────────────────────────────────────────────────────────────────


def _attempts(text: str, span: tuple[int, int]) -> list[ParsedCall]:
    """The attempts in a list of calls; one for a text that is none."""
    try:
        with warnings.catch_warnings():  # about escapes like \d, which stay as they are
            warnings.simplefilter("ignore")
            body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        status: CallStatus = "bad_syntax" if _list_ends(text) else "unclosed"
        return [ParsedCall(text, status, None, span)]
    if not isinstance(body, ast.List) or not body.elts:
        return [ParsedCall(text, "bad_syntax", None, span)]
    read = (_read_call(element) for element in body.elts)
    return [ParsedCall(text, status, call, span) for status, call in read]


def _read_call(element: ast.expr) -> tuple[CallStatus, ToolCall | None]:
    if not isinstance(element, ast.Call):
        return "no_name", None
    name = _dotted(element.func)
    if not name:
        return "no_name", None
    if element.args or any(word.arg is None for word in element.keywords):
        return "bad_syntax", None
    try:
        arguments = {str(word.arg): _value(word.value) for word in element.keywords}
    except (ValueError, RecursionError):
        return "bad_syntax", None
    return "ok", ToolCall(name, arguments)


def _dotted(node: ast.expr) -> str:
    """`a.b.c`, or nothing for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _value(node: ast.expr) -> Any:
    """A literal that JSON has too.

    Raises:
        ValueError: it is something else.
    """
    match node:
        case ast.Constant(value=float(number)) if not math.isfinite(number):
            raise ValueError("not finite")
        case ast.Constant(value=None | bool() | int() | float() | str() as constant):
            return constant
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool) and math.isfinite(number):
                return -number
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
            if all(isinstance(name, str) for name in names):
                return {name: _value(item) for name, item in zip(names, values, strict=True)}
    raise ValueError(f"{type(node).__name__} is no literal of JSON")


def _list_ends(text: str) -> bool:
    """Whether the bracket that opens the list is closed somewhere, strings aside."""
    depth, quote, escaped = 0, "", False
    for letter in text:
        if quote:
            if escaped:
                escaped = False
            elif letter == "\\":
                escaped = True
            elif letter == quote:
                quote = ""
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0:
                return True
    return False


PYTHONIC = PythonFormat("pythonic", "pythonic")
LFM2 = PythonFormat("lfm2", "lfm2", "<|tool_call_start|>", "<|tool_call_end|>", delimited="token")
