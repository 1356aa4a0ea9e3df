"""Suites by name: `bfcl`, `bfcl:CATEGORY`, or a .jsonl of cases.

In: a name. Out: `Question`s, each a case with what is wanted and, for BFCL, what its rules need.
BFCL comes from the PyPI wheel `bfcl-eval` (sha256 checked, cached); it is never trained on.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from smollora.errors import ConfigError, DataError
from smollora.evaluate.bfcl import BFCL_SINGLE_TURN, Truth, as_case, read_truths
from smollora.evaluate.cases import read_cases
from smollora.models import cache_folder, fetch_wheel
from smollora.types import EvalCase, Role

BFCL_WHEEL = "bfcl-eval==2026.3.23"
BFCL_SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"

ROLES = get_args(Role)
Wants = Literal["calls", "a_call", "nothing"]


@dataclass(frozen=True, slots=True)
class Question:
    """One case of a suite."""

    suite: str
    case: EvalCase
    wants: Wants
    """The expected calls; any call (BFCL's live_relevance); no call."""
    truth: Truth | None = None
    """None: not BFCL's; arguments are compared with the one expected call."""


def bfcl_folder() -> Path:
    """The data folder of BFCL's wheel, unpacked in the cache."""
    folder = cache_folder() / "bfcl" / BFCL_SHA256[:12]
    if not (folder / "bfcl_eval" / "data").is_dir():
        wheel = fetch_wheel(BFCL_WHEEL, BFCL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith("bfcl_eval/data/")]
            archive.extractall(folder, names)
    return folder / "bfcl_eval" / "data"


def load_suite(name: str, limit: int | None = None) -> list[Question]:
    """The questions of a suite; `limit`: the first so many, for `bfcl` of each category.

    Raises:
        ConfigError: no such suite, or no such category.
        DataError: a file that is not there, is empty, or has a broken row (named).
    """
    kind, colon, category = name.partition(":")
    if kind == "bfcl":
        categories = (category,) if colon else BFCL_SINGLE_TURN
        truths = (t for each in categories for t in read_truths(bfcl_folder(), each, limit))
        return [bfcl_question(name, truth) for truth in truths]
    if name.endswith(".jsonl"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"the file of cases {path} is not there", "check --suite")
        cases = read_cases(path)
        seen: set[str] = set()
        for case in cases:
            if case.id in seen:
                raise DataError(f"{path} has two cases with the id {case.id}", "give each its own")
            _check_case(path, case)
            seen.add(case.id)
        return [
            Question(name, case, "calls" if case.expected else "nothing") for case in cases[:limit]
        ]
    raise ConfigError(
        f'"{name}" is no suite',
        "use bfcl, bfcl:CATEGORY (bfcl:simple_python, bfcl:irrelevance, ...), retention,"
        " or a .jsonl of cases",
    )


def _check_case(path: Path, case: EvalCase) -> None:
    """What `read_cases` lets pass and asking or judging would fall over."""
    problem = "has no messages" if not case.messages else ""
    for message in case.messages:
        if message.role not in ROLES or not isinstance(message.content, str):
            problem = f"has a message that is none: {message.role!r}"
    for call in case.expected:
        if not isinstance(call.name, str) or not isinstance(call.arguments, Mapping):
            problem = f"expects a call that is none: {call.name!r}"
    if problem:
        raise DataError(
            f"case {case.id} of {path} {problem}",
            "messages have role and content (text), expected calls name and arguments (an object)",
        )


def bfcl_question(suite: str, truth: Truth) -> Question:
    """A question of BFCL; what it wants follows from its category."""
    case = as_case(truth)
    if case.expected:
        return Question(suite, case, "calls", truth)
    return Question(suite, case, "nothing" if "irrelevance" in truth.category else "a_call", truth)
