"""Java and JavaScript literals as Python values, read the way BFCL reads them.

BFCL asks for Java and JavaScript arguments as source text ("123L", "new int[]{1, 2}") and compares
values. In: the text, the declared type, the type of its elements. Out: the value, or the text
itself where it is no literal of that type. The surprise: the published answers were written against
the checker's regular expressions, so those are kept as they are (a string with a comma inside an
array is two elements); a better parser would disagree. Rules: bfcl-eval 2026.3.23 (Apache-2.0),
eval_checker/ast_eval/type_convertor/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

INTEGER = r"^-?\d+$"
DECIMAL = r"^-?\d+(\.\d+)?$"
SCIENTIFIC = r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$"
JAVA_FLOAT = r"^-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$"
JAVA_LONG = r"^-?\d+[lL]$"

Literal = tuple[str, Callable[[str], Any]]

JAVA_LITERALS: dict[str, Literal] = {
    **dict.fromkeys(("byte", "short", "integer"), (INTEGER, int)),
    "float": (JAVA_FLOAT, lambda text: float(text.rstrip("fF\n"))),
    "double": (SCIENTIFIC, float),
    "long": (JAVA_LONG, lambda text: int(text.rstrip("lL\n"))),
    "boolean": (r"^(true|false)\Z", lambda text: text == "true"),
}
JAVASCRIPT_LITERALS: dict[str, Literal] = {
    "integer": (INTEGER, int),
    "float": (DECIMAL, float),
    "Bigint": (r"^-?\d+n$", lambda text: int(text.rstrip("n\n"))),
    "Boolean": (r"^(true|false)\Z", lambda text: text == "true"),
}


def _literal(text: str, literal: Literal) -> Any:
    pattern, read = literal
    return read(text) if re.match(pattern, text) else text


def _bare(text: str, quotes: str) -> Any:
    """A literal of a type that nobody declared: boolean, quoted text, number, else the text."""
    if text in ("true", "false"):
        return text == "true"
    if any(text.startswith(quote) and text.endswith(quote) for quote in quotes):
        return text[1:-1]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


# ── Java ──────────────────────────────────────────────────────────────────────────────────────


def java_value(text: str, declared: str, inner: str | None = None) -> Any:
    """The value of a Java literal of type `declared` with elements of type `inner`.

    Raises:
        NotImplementedError: a type whose literals BFCL does not read (Set, Hashtable, Queue).
    """
    if declared in JAVA_LITERALS:
        return _literal(text, JAVA_LITERALS[declared])
    if declared in ("String", "any", "char"):
        return text
    readers = {"Array": _java_array, "ArrayList": _java_list, "HashMap": _java_map}
    if declared not in readers:
        raise NotImplementedError(declared)
    return readers[declared](text, inner)


def _java_element(text: str, inner: str | None) -> Any:
    return java_value(text, inner) if inner else _java_bare(text)


def _java_bare(text: str) -> Any:
    if re.match(JAVA_LONG, text):
        return int(text[:-1])
    if re.match(JAVA_FLOAT, text):
        return float(re.sub(r"[fF]$", "", text))
    return _bare(text, '"')


def _java_array(text: str, inner: str | None) -> Any:
    found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
    if not found:
        return text
    parts = (part.strip() for part in found.group(1).split(","))
    return [_java_element(part, inner) for part in parts if part]


def _java_list(text: str, inner: str | None) -> Any:
    listed = re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text)
    added = re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL)
    if listed:
        parts = listed.group(1).split(",")
    elif added:
        parts = re.findall(r"add\((.+?)\)", added.group(1))
    else:
        return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
    if inner in ("char", "String"):
        return [part.strip()[1:-1] for part in parts]
    return [_java_element(part.strip(), inner) for part in parts]


def _java_map(text: str, inner: str | None) -> Any:
    del inner
    filled = re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.DOTALL)
    if filled:
        puts = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", filled.group(1))
        return {key: _java_bare(value.strip()) for key, value in puts}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


# ── JavaScript ────────────────────────────────────────────────────────────────────────────────


def javascript_value(text: str, declared: str, inner: str | None = None) -> Any:
    """The value of a JavaScript literal of type `declared` with elements of type `inner`."""
    if declared in JAVASCRIPT_LITERALS:
        return _literal(text, JAVASCRIPT_LITERALS[declared])
    if declared == "String":
        quoted = any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")
        return text[1:-1] if quoted else text
    if declared == "array":
        return _javascript_array(text.strip(), inner)
    if declared == "dict":
        return _javascript_object(text.strip())
    return text


def _javascript_array(text: str, inner: str | None) -> Any:
    nested = re.match(
        r"\[\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\]"
        r"|\bnew\s+Array\(\s*\[.*?\]\s*(,\s*\[.*?\]\s*)*\)",
        text,
    )
    if nested:
        rows = [row.strip() for row in re.findall(r"\[(.*?)\]", nested.group(0))]
        if rows and rows[0].startswith("["):
            rows[0] = rows[0][1:]
        return [[_bare(part.strip(), "\"'") for part in row.split(",")] for row in rows]
    flat = re.match(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)", text)
    if not flat:
        return text
    inside = (flat.group(1) if flat.group(1) is not None else flat.group(2) or "").strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    if inner is None:
        return [_bare(part, "\"'") for part in parts]
    return [javascript_value(part, inner) for part in parts]


def _javascript_object(text: str) -> Any:
    if text == "{}":
        return {}
    found = re.match(r"\{(.*?)\}", text)
    if not found:
        return text
    pairs = re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", found.group(1))
    return {key.strip().strip("'\""): _javascript_member(value.strip()) for key, value in pairs}


def _javascript_member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _bare(text.strip("'\"").strip(), "\"'")
