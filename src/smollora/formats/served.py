"""What vLLM's parsers do with calls that are written as their format says: measured, case by case.

In: the attempts read from one answer and the words around them. Out: the `Trait`s of the answer
that a server stumbles over, with what happens to it, complete and streamed. The measurements are in
`served.json`, which `bench/format_agreement.py` writes from answers of vLLM's own parsers to
`bench/format_cases.yaml`; a trait bears the name of the case that shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from smollora.formats import ToolFormat, tokens_of
from smollora.types import ParsedCall

HARMLESS = ("same", "laxer", "empty")
"""Effects on a call that is written correctly which a client can live with."""
WORDS = {
    "lost": "loses the call",
    "corrupt": "gives arguments that are no JSON object",
    "changed": "gives other arguments",
    "words lost": "drops the words beside the call",
}


@dataclass(frozen=True, slots=True)
class Effect:
    """What vLLM makes of an answer with one trait."""

    trait: str
    complete: str
    streamed: str

    @property
    def loses_call(self) -> bool:
        """True if not even a complete answer gives the call."""
        return self.complete == "lost"


@lru_cache(maxsize=1)
def measured() -> Mapping[str, Any]:
    """`served.json`: vLLM's version, and per format and case what its parser does."""
    text = resources.files("smollora.formats").joinpath("served.json").read_text("utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that holds calls, as its format's parser read it."""

    fmt: ToolFormat
    attempts: Sequence[ParsedCall]
    before: str
    """Words before the first call."""
    after: str
    """Words after the last one, stop token left out."""

    @property
    def arguments(self) -> Iterator[Mapping[str, Any]]:
        return (attempt.call.arguments for attempt in self.attempts if attempt.call)

    @property
    def leaves(self) -> Iterator[Any]:
        """Every value in the arguments that is no list or object, keys of objects included."""
        for arguments in self.arguments:
            yield from _leaves(arguments)

    @property
    def texts(self) -> Iterator[str]:
        return (leaf for leaf in self.leaves if isinstance(leaf, str))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


_ARGUMENTS_FIRST = re.compile(r'\{\s*"(?:arguments|parameters)"\s*:')
_BODY = re.compile(r"\{.*\}", re.DOTALL)


def _holds_delimiter(answer: Answer, *, escaped: bool) -> bool:
    held = [token for token in tokens_of(answer.fmt) for text in answer.texts if token in text]
    bodies = [body[0] for each in answer.attempts if (body := _BODY.search(each.raw))]
    return bool(held) and escaped is not any(t in body for t in held for body in bodies)


def _holds_list(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_list, value.values()))
    return isinstance(value, (list, tuple))


def _is_number_as_text(text: str) -> bool:
    try:
        return not isinstance(json.loads(text), str)
    except ValueError:
        return False


TRAITS: dict[str, Callable[[Answer], bool]] = {
    "canonical": lambda answer: True,
    "text_before": lambda answer: bool(answer.before.strip()),
    "text_after": lambda answer: bool(answer.after.strip()),
    "two_calls": lambda answer: len(answer.attempts) > 1,
    "arguments_first": lambda answer: any(
        _ARGUMENTS_FIRST.search(each.raw) for each in answer.attempts
    ),
    "no_arguments": lambda answer: any(not each for each in answer.arguments),
    "delimiter_inside": lambda answer: _holds_delimiter(answer, escaped=False),
    "delimiter_escaped": lambda answer: _holds_delimiter(answer, escaped=True),
    "object_inside": lambda answer: any(
        isinstance(value, Mapping) for each in answer.arguments for value in each.values()
    ),
    "list_inside": lambda answer: any(_holds_list(each) for each in answer.arguments),
    "number_inside": lambda answer: any(
        not isinstance(leaf, str)
        for each in answer.arguments
        for value in each.values()
        if isinstance(value, (Mapping, list))
        for leaf in _leaves(value)
    ),
    "number": lambda answer: any(not isinstance(leaf, str) for leaf in answer.leaves),
    "text_of_digits": lambda answer: any(map(_is_number_as_text, answer.texts)),
    "bracket_inside": lambda answer: any("]" in text for text in answer.texts),
    "dotted_name": lambda answer: any(
        "." in each.call.name for each in answer.attempts if each.call
    ),
    "newlines_inside": lambda answer: any(
        "\n" in body[0] for each in answer.attempts if (body := _BODY.search(each.raw))
    ),
}
"""How to tell that an answer is of the kind that a case measures. `newlines_inside` is about JSON:
its strings hold no bare newlines.
"""


def effects(answer: Answer) -> list[Effect]:
    """What vLLM would do to `answer` that a client notices; nothing for an answer without calls."""
    if not answer.attempts:
        return []
    cases = measured()["formats"].get(answer.fmt.name, {})
    found = []
    for trait, applies in TRAITS.items():
        case = cases.get(trait)
        if case is None or all(case[way] in HARMLESS for way in ("complete", "streamed")):
            continue
        if applies(answer):
            found.append(Effect(trait, case["complete"], case["streamed"]))
    return found


def describe(effect: Effect, fmt: ToolFormat) -> str:
    """One sentence a person can act on."""
    parser = f"vLLM {measured()['vllm']}'s parser {fmt.vllm_parser}"
    what = effect.trait.replace("_", " ")
    ways = []
    for way, seen in (("", effect.complete), (" when streamed", effect.streamed)):
        if seen not in HARMLESS:
            ways.append(f"{WORDS.get(seen, seen)}{way}")
    if len(ways) == 2 and effect.complete == effect.streamed:
        ways = [WORDS.get(effect.complete, effect.complete)]
    return f"{what}: {parser} {' and '.join(ways)}"
