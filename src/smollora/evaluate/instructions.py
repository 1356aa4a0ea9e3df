"""Instructions whose following a program can verify: did tuning cost the model its ear?

In: the shipped prompts with their checks, and an answer's text. Out: which checks hold. Strict, as
IFEval's strict accuracy (Zhou et al., 2023, arXiv:2311.07911): nothing is stripped but outer white
space, and an empty answer follows nothing. Prompts and code are this project's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Instruction:
    """One prompt with what its answer must keep to."""

    id: str
    prompt: str
    checks: tuple[Mapping[str, Any], ...]
    """Each with `kind` and the values that `CHECKS[kind]` takes."""


def load_instructions() -> list[Instruction]:
    """The shipped prompts."""
    text = (resources.files("smollora") / "evaluate" / "instructions.jsonl").read_text("utf-8")
    rows = (json.loads(line) for line in text.splitlines())
    return [Instruction(row["id"], row["prompt"], tuple(row["checks"])) for row in rows]


def follows(answer: str, checks: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Which checks hold, by kind."""
    text = answer.strip()
    return {
        check["kind"]: bool(text)
        and CHECKS[check["kind"]](text, **{k: v for k, v in check.items() if k != "kind"})
        for check in checks
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:[-'’]\w+)*", text)


def _has(text: str, word: str) -> int:
    """How often a word (or a|b, either) stands in the text as a word, case aside."""
    either = "|".join(re.escape(each) for each in word.split("|"))
    return len(re.findall(rf"(?<!\w)(?:{either})(?!\w)", text, re.IGNORECASE))


def _bullets(text: str) -> list[str]:
    return re.findall(r"^\s*[*-] +\S.*$", text, re.MULTILINE)


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _json(text: str, keys: Sequence[str]) -> bool:
    """JSON and nothing else; a code fence around it is let pass, as IFEval lets it."""
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    if not keys:
        return isinstance(value, list)
    return isinstance(value, dict) and all(key in value for key in keys)


def _numbered(text: str, n: int) -> bool:
    found = re.findall(r"^\s*(\d+)[.)] +\S", text, re.MULTILINE)
    return found == [str(number) for number in range(1, n + 1)]


def _cased(text: str, how: str) -> bool:
    """`how`: "islower" or "isupper"; a text without letters is neither."""
    return bool(getattr(text, how)())


CHECKS: dict[str, Callable[..., bool]] = {
    "at_least_words": lambda text, n: len(_words(text)) >= n,
    "at_most_words": lambda text, n: len(_words(text)) <= n,
    "lines": lambda text, n: len(_lines(text)) == n,
    "paragraphs": lambda text, n: len(re.split(r"\n[ \t]*\n\s*", text)) == n,
    "bullets": lambda text, n: len(_bullets(text)) == n,
    "numbered": _numbered,
    "lower_case": lambda text: _cased(text, "islower"),
    "upper_case": lambda text: _cased(text, "isupper"),
    "contains": lambda text, words: all(_has(text, word) for word in words),
    "lacks": lambda text, words: not any(_has(text, word) for word in words),
    "times": lambda text, word, n: _has(text, word) >= n,
    "starts_with": lambda text, phrase: text.lower().startswith(phrase.lower()),
    "ends_with": lambda text, phrase: text.lower().endswith(phrase.lower()),
    "postscript": lambda text, phrase: any(
        line.lstrip(" *_").startswith(phrase) for line in _lines(text)[1:]
    ),
    "no_commas": lambda text: "," not in text,
    "quoted": lambda text: len(text) > 2 and text[0] in '"“' and text[-1] in '"”',
    "titled": lambda text: bool(re.search(r"<<[^<>\n]*\S[^<>\n]*>>", text)),
    "placeholders": lambda text, n: len(re.findall(r"\[[^\[\]]+\]", text)) >= n,
    "highlighted": lambda text, n: len(re.findall(r"\*[^\s*](?:[^\n*]*[^\s*])?\*", text)) >= n,
    "json": _json,
    "exactly": lambda text, options: text in options,
    "parts": lambda text, mark, n: (
        len(parts := text.split(mark)) == n and all(part.strip() for part in parts)
    ),
}
"""What each kind of check asks of an answer without outer white space; texts that begin or end an
answer are compared without case, as IFEval does.
"""
