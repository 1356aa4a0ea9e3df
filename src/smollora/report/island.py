"""The page's island of data: training rows and cases as JSON, drawn by the page's script.

Two thousand rows as elements would be a page of many megabytes that opens slowly; as JSON in a
`<script type="application/json">`, which no browser runs, they are read in milliseconds and drawn
twenty at a time. A token is a number into one list of (id, text) pairs; owners and labels are run
lengths; log-probabilities, of labelled tokens alone, are thousandths of a nat.

Everything in it comes from data sets and models. Every string goes through `show.visible`; `<`,
`>` and `&` are written as JSON escapes, so that nothing can close the element; the script puts
texts into the page as text nodes only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from markupsafe import Markup

from smollora.report import show
from smollora.report.cases import Answer, Case
from smollora.report.contents import Inspect, TokenRow

T = TypeVar("T")

MOST_TOKENS_AT_START, MOST_TOKENS_AT_END = 300, 1_200
"""A longer row is cut in its middle: what is trained stands at the end."""
MOST_ITEMS = 40
"""Tools and expected calls of a case."""
REQUEST_CHARACTERS = 1_500
TEXT_CHARACTERS = 2_000

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


class Vocabulary:
    """The tokens of the island, each once, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, str], int] = {}

    def cost(self, tokens: Iterable[tuple[int, str]]) -> int:
        """Bytes that the tokens not yet in it would take."""
        return sum(len(_json([i, _token(t)])) + 1 for i, t in set(tokens) - self.numbers.keys())

    def number(self, token: tuple[int, str]) -> int:
        """The token's place in the list."""
        return self.numbers.setdefault(token, len(self.numbers))

    def entries(self) -> list[tuple[int, str]]:
        """The list itself."""
        return [(token_id, _token(text)) for token_id, text in self.numbers]


def pack(
    items: Iterable[T],
    budget: float,
    vocabulary: Vocabulary,
    tokens_of: Callable[[T], list[tuple[int, str]]],
    payload_of: Callable[[T, Vocabulary], dict[str, Any]],
) -> list[str]:
    """The first items that fit into `budget` bytes, as JSON, with the tokens that they add."""
    packed: list[str] = []
    for item in items:
        added = vocabulary.cost(tokens_of(item))
        if added > budget:
            break
        before = len(vocabulary.numbers)
        text = _json(payload_of(item, vocabulary))
        budget -= added + len(text.encode()) + 1
        if budget < 0:
            for token in list(vocabulary.numbers)[before:]:
                del vocabulary.numbers[token]
            break
        packed.append(text)
    return packed


def island(
    rows: Sequence[str], cases: Sequence[str], vocabulary: Vocabulary, inspect: Inspect | None
) -> Markup:
    """The content of the element, safe inside `<script>`."""
    fields = {
        "vocabulary": _json(vocabulary.entries()),
        "special": _json(_special(inspect)),
        "rows": f"[{','.join(rows)}]",
        "cases": f"[{','.join(cases)}]",
    }
    body = ",".join(f'"{name}":{value}' for name, value in fields.items())
    return Markup("{" + body + "}")


def row_tokens(row: TokenRow) -> list[tuple[int, str]]:
    """The tokens of a training row that are shown."""
    return list(zip(*_ends(row.token_ids, row.tokens), strict=True))


def row_payload(row: TokenRow, vocabulary: Vocabulary) -> dict[str, Any]:
    """A training row: its tokens, whose each is, how it is labelled, how probable it was."""
    labels = [
        (owner, (part or "text") if trained else 0)
        for owner, trained, part in zip(row.owner, row.trained, row.part, strict=True)
    ]
    (shown_labels,) = _ends(labels)
    runs = [[*label, len(list(same))] for label, same in groupby(shown_labels)]
    payload = {
        "id": show.clip(row.conversation_id, 200),
        "source": show.clip(row.source, 80),
        "kind": show.clip(row.kind, 80),
        "roles": [show.clip(role, 80) for role in row.roles[:200]],
        "length": len(row.tokens),
        "labelled": sum(row.trained),
        "tokens": [vocabulary.number(token) for token in row_tokens(row)],
        "runs": runs,
        **_gap(row.tokens),
    }
    if row.logprobs:
        (counts,) = _ends(row.trained)
        payload["logprobs"] = {
            model: [
                _thousandths(value)
                for value, labelled in zip(_ends(values)[0], counts, strict=True)
                if labelled
            ]
            for model, values in row.logprobs.items()
        }
        payload["loss"] = _loss_by_part(row)
    return payload


def _loss_by_part(row: TokenRow) -> list[list[Any]]:
    """[part, labelled tokens, {model: mean loss}] for each part of the row."""
    parts: dict[str, list[int]] = {}
    for place, (trained, part) in enumerate(zip(row.trained, row.part, strict=True)):
        if trained:
            parts.setdefault(part or "text", []).append(place)
    found: list[list[Any]] = []
    for part, places in parts.items():
        means: dict[str, float] = {}
        for model, values in row.logprobs.items():
            known = [value for value in (values[place] for place in places) if value is not None]
            if known:
                means[model] = round(-sum(known) / len(known), 4)
        found.append([part, len(places), means])
    return found


def case_tokens(case: Case) -> list[tuple[int, str]]:
    """The tokens of a case's answers that are shown."""
    records = [answer.record for answer in case.answers]
    return [
        token
        for record in records
        for token in zip(*_ends(record.token_ids, record.tokens), strict=True)
    ]


def case_payload(case: Case, vocabulary: Vocabulary) -> dict[str, Any]:
    """A question with its answers."""
    asked = case.question
    return {
        "id": show.clip(asked.case_id, 200),
        "source": show.clip(asked.source, 80),
        "category": show.clip(asked.category, 80),
        "request": show.clip(asked.request, REQUEST_CHARACTERS),
        "tools": [show.clip(tool, 120) for tool in asked.tools[:MOST_ITEMS]],
        "tools_in_all": len(asked.tools),
        "expected": [show.clip(show.call(one), 600) for one in asked.expected[:MOST_ITEMS]],
        "answers": [_answer_payload(answer, vocabulary) for answer in case.answers],
    }


def _answer_payload(answer: Answer, vocabulary: Vocabulary) -> dict[str, Any]:
    record = answer.record
    pairs = zip(*_ends(record.token_ids, record.tokens), strict=True)
    payload: dict[str, Any] = {
        "models": list(answer.models),
        "verdict": show.clip(record.verdict, 80),
        "right": record.is_right,
        "length": len(record.tokens),
        "tokens": [vocabulary.number(pair) for pair in pairs],
        **_gap(record.tokens),
    }
    if record.detail:
        payload["detail"] = show.clip(record.detail, 400)
    if record.finish:
        payload["finish"] = show.clip(record.finish, 80)
    if not record.tokens and record.text:
        payload["text"] = show.clip(record.text, TEXT_CHARACTERS)
    if record.opener_logprob is not None:
        payload["opener"] = show.percent(math.exp(min(record.opener_logprob, 0.0)))
    return payload


def _special(inspect: Inspect | None) -> Mapping[int, str]:
    """Ids that stand out in an answer, with what they do."""
    if inspect is None:
        return {}
    marked = dict.fromkeys(inspect.stop_ids, "stop token")
    for delimiter, says in ((inspect.open, "opens a call"), (inspect.close, "closes a call")):
        if delimiter and delimiter.id is not None and delimiter.single is not False:
            marked[delimiter.id] = says
    return marked


def _ends(*columns: Sequence[Any]) -> list[Sequence[Any]]:
    """The columns without the middle that is not shown."""
    most = MOST_TOKENS_AT_START + MOST_TOKENS_AT_END
    return [
        column
        if len(column) <= most
        else [*column[:MOST_TOKENS_AT_START], *column[len(column) - MOST_TOKENS_AT_END :]]
        for column in columns
    ]


def _gap(tokens: Sequence[str]) -> dict[str, list[int]]:
    """Where tokens are missing and how many; nothing if none are."""
    missing = len(tokens) - MOST_TOKENS_AT_START - MOST_TOKENS_AT_END
    return {"gap": [MOST_TOKENS_AT_START, missing]} if missing > 0 else {}


def _thousandths(value: float | None) -> int | None:
    return None if value is None else round(-1000 * value)


def _token(text: str) -> str:
    return str(show.visible(show.token_text(text)))


def _json(value: Any) -> str:
    text = json.dumps(_visible(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


def _visible(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(show.visible(str(key))): _visible(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_visible(inner) for inner in value]
    return show.visible(value)
