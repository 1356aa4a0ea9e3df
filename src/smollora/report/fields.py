"""JSON objects that remember where they stand, so that a value of the wrong kind is reported there.

In: a file of a run. Out: a `Fields` for each object in it, whose methods give a value of the asked
kind or None; what cannot be used is appended to the list of problems that came in. Nothing raises
but `Unusable`, for rows that make no sense without the value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from smollora.errors import DataError
from smollora.report.contents import Problem
from smollora.runs import read_json

T = TypeVar("T")


class Fields:
    """A JSON object with its place, so that an unusable value is reported where it stands."""

    def __init__(self, values: Mapping[str, Any], place: str, found: list[Problem]) -> None:
        self.values, self.place, self.found = values, place, found

    def wrong(self, key: str, expected: str) -> None:
        """Note that `key` holds something else than `expected`."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        self.found.append(Problem(self.place, f"{key} is {shown}, expected {expected}"))

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not _is_number(value):
            self.wrong(key, "a finite number")
            return None
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else int(value)

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self.wrong(key, "true or false")
            return None
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.wrong(key, "text")
            return str(value)
        return value or ""

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.wrong(key, "an object")
            return {}
        return dict(value or {})

    def items(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            self.wrong(key, "a list")
            return []
        return list(value or [])

    def integers(self, key: str) -> tuple[int, ...]:
        """A column of ids.

        Raises:
            Unusable: something in it is no integer.
        """
        values = self.items(key)
        if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
            raise Unusable(f"{key} holds something else than integers")
        return tuple(values)

    def inner(self, key: str) -> Fields:
        return Fields(self.mapping(key), f"{self.place}: {key}", self.found)

    def numbers(self, key: str) -> dict[str, float]:
        """An object of numbers, those that cannot be used left out and reported."""
        inside = self.inner(key)
        read = {name: inside.number(name) for name in inside.values}
        return {name: value for name, value in read.items() if value is not None}

    def objects(self, key: str) -> list[Fields]:
        """A list of objects, those that are none left out and reported."""
        values = self.items(key)
        good = [each for each in values if isinstance(each, Mapping)]
        if len(good) != len(values):
            self.wrong(key, "a list of objects")
        return [Fields(each, f"{self.place}: {key}", self.found) for each in good]


class Unusable(ValueError):
    """A row that cannot be shown; its text says why."""


def json_object(path: Path, place: str, found: list[Problem]) -> dict[str, Any] | None:
    """The object that a JSON file holds; None, and a problem, where it holds none."""
    try:
        value = read_json(path)
    except (DataError, OSError, RecursionError) as error:
        found.append(Problem(place, str(error).splitlines()[0].replace(str(path), "the file")))
        return None
    if not isinstance(value, dict):
        found.append(Problem(place, f"holds {type(value).__name__}, expected an object"))
        return None
    return value


def text_file(path: Path, found: list[Problem]) -> str | None:
    """A file's text, bytes that are no UTF-8 replaced; None, and a problem, where it is closed."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        found.append(Problem(path.name, error.strerror or str(error)))
        return None


def rows_of(run_folder: Path, file: str, found: list[Problem]) -> Iterator[Fields]:
    """The objects of a JSON Lines file; a line that is none is reported, the others still count.

    Lines end at "\\n" alone: model output holds U+2028 and U+0085, where `splitlines` would cut.
    """
    path = run_folder / file
    if not path.exists():
        return
    text = text_file(path, found) or ""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            found.append(Problem(place, f"is not valid JSON: {error}"))
            continue
        if isinstance(value, dict):
            yield Fields(value, place, found)
        else:
            found.append(Problem(place, f"holds {type(value).__name__}, expected an object"))


def built(build: Callable[[Fields], T], rows: Iterator[Fields]) -> Iterator[T]:
    """What `build` makes of each row; rows that it finds unusable are reported and left out."""
    for row in rows:
        try:
            yield build(row)
        except Unusable as error:
            row.found.append(Problem(row.place, str(error)))


def _is_number(value: Any) -> bool:
    """True for what a float can hold: no bool, no NaN, no integer of 400 digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300
