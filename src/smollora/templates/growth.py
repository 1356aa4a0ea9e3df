"""How large a single operation of a template can make its result, before it is made.

A loop is stopped by the clock; one `'x' | center(10 ** 9)` is not, for it never comes back to
Python. So the operators, methods and filters that can make much out of little are measured first.
What goes past the limit raises `PastLimit`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 10_000_000
MAX_INDENT = 64

_NUMBERS = re.compile(r"\d{1,18}")
_NESTED = re.compile(r"\{[^{}]*\{")


class PastLimit(Exception):
    """The template ran too long or built too much."""


def check_length(length: int) -> None:
    """Raises PastLimit where something is longer than 10 million characters or items."""
    if length > MAX_CHARACTERS:
        raise PastLimit(f"the template built more than {MAX_CHARACTERS:,} characters")


def check_indent(indent: int | str | None) -> None:
    """`tojson(indent=...)`: every line is indented, so a few are enough for gigabytes."""
    width = len(indent) if isinstance(indent, str) else indent or 0
    if width > MAX_INDENT:
        raise PastLimit(f"the template indents JSON by {width:,} characters")


def size_of_result(operator: str, left: Any, right: Any) -> int:
    """About how many characters, items or digits the operation makes; 0 when it cannot grow."""
    if operator == "%":
        return size_of_format(left, (right,)) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits = {
            "+": 0,
            "*": left.bit_length() + right.bit_length(),
            "**": left.bit_length() * max(right, 0),
        }
        return bits[operator] // 3
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        return len(left) + len(right)
    if operator == "*":
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and hasattr(sequence, "__len__"):
            return len(sequence) * max(times, 0)
    return 0


def size_of_format(pattern: str, values: Sequence[Any]) -> int:
    """Widths and precisions that a format string asks for, and what it is filled with."""
    widths = sum(int(number) for number in _NUMBERS.findall(pattern))
    places = pattern.count("%") + pattern.count("{")
    numbers_are_widths = "*" in pattern or _NESTED.search(pattern) is not None
    largest = max((_length(value, numbers_are_widths) for value in values), default=0)
    return widths + places * largest


def _length(value: Any, is_width: bool) -> int:
    """How long a value may become as text."""
    if isinstance(value, int):
        return abs(value) if is_width else value.bit_length() // 3
    if isinstance(value, tuple | list):
        return max((_length(item, is_width) for item in value), default=0)
    if isinstance(value, str):
        return len(value)
    return 0


def _replaced(text: str, old: str, new: str, *_: Any) -> int:
    return len(text) + text.count(old) * len(new)


def _joined(separator: str, items: Any) -> int:
    if not hasattr(items, "__len__"):
        return 0
    return len(separator) * len(items) + sum(len(i) for i in items if isinstance(i, str))


_METHODS: dict[str, Callable[..., int]] = {
    "replace": _replaced,
    "join": _joined,
    "expandtabs": lambda text, size=8: len(text) + text.count("\t") * size,
    "format": lambda text, *args, **named: size_of_format(text, (*args, *named.values())),
    "format_map": lambda text, values: size_of_format(text, tuple(values.values())),
}
"""Methods of str whose result can be much longer than text and arguments together."""


def check_call(method: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises PastLimit for a method of a string or number that would make too much."""
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, str | int):
        return
    _check_numbers((*args, *kwargs.values()))
    measure = _METHODS.get(getattr(method, "__name__", ""))
    if measure is not None and isinstance(owner, str):
        check_length(_measured(measure, owner, *args, **kwargs))


def _check_numbers(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, int):
            check_length(abs(value))


def _measured(measure: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    try:
        return measure(*args, **kwargs)
    except (TypeError, AttributeError):
        return 0  # the call itself will say what is wrong with its arguments


def _indented(text: str, width: int | str = 4, *_: Any, **__: Any) -> int:
    return len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _wrapped(text: str, width: int = 79, *args: Any, wrapstring: str = "", **_: Any) -> int:
    between = wrapstring or next((arg for arg in args if isinstance(arg, str)), "")
    return len(text) + (len(text) // max(width, 1) + text.count("\n") + 1) * len(between)


def _summed(items: Sequence[Any], attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, list | tuple | str):
        return 0
    return sum(len(item) for item in items if isinstance(item, list | tuple | str))


_FILTERS: dict[str, Callable[..., int]] = {
    "replace": _replaced,
    "join": lambda items, separator="", *_, **__: _joined(separator, items),
    "format": lambda text, *args, **named: size_of_format(text, (*args, *named.values())),
    "indent": _indented,
    "wordwrap": _wrapped,
    "sum": _summed,
}
"""Filters that multiply."""

_COUNTED = ("batch", "center", "slice", "truncate", "wordwrap", "indent", "round", "filesizeformat")
"""Filters whose work grows with a number that they are given."""


def bounded_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters that need it, each measured before it runs."""
    return {name: _bounded(filters[name], name) for name in {*_FILTERS, *_COUNTED}}


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    measure = _FILTERS.get(name)
    # Jinja passes an environment or a context first to the filters that ask for one
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if name in _COUNTED:
            _check_numbers((*args[skip + 1 :], *kwargs.values()))
        if measure is not None:
            check_length(_measured(measure, *args[skip:], **kwargs))
        return function(*args, **kwargs)

    return bounded
