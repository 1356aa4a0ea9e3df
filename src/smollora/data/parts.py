"""Which part of the answer each trained token belongs to: open, name, arguments, close or text.

In: a `Rendered` row, the tokenizer's facts. Out: one part (or None) a token; weights of the loss
and losses by part are made from it. The decision to call is one token in hundreds, and a mean loss
hides whether it was learned.
"""

from __future__ import annotations

from typing import Any

from smollora.config import PartWeights
from smollora.data.batch import Refusal, Row
from smollora.formats import get_format
from smollora.tokens import TokenFacts
from smollora.types import PARTS, Part, Rendered


def parts_of(row: Rendered, facts: TokenFacts, tokenizer: Any) -> tuple[Part | None, ...]:
    """The part of each token, None where it is not trained.

    From the opening id to what introduces the arguments (in hermes the key "arguments") is "name",
    from there to the closing id "arguments"; the stop token after a call counts as "close", the one
    after words as "text". Where nothing else closes a call, the stop token does. A format without
    delimiter ids has only "text".
    """
    arguments_mark = get_format(facts.format).arguments_mark
    parts: list[Part | None] = []
    state: Part = "text"
    body = ""
    for index, (token, trained) in enumerate(zip(row.token_ids, row.trained, strict=True)):
        if not trained:
            parts.append(None)
            state = "text"
            continue
        if index and not row.trained[index - 1]:
            state = "text"
        if token == facts.open.id:
            parts.append("open")
            state, body = "name", ""
        elif token == facts.close.id:
            parts.append("close")
            state = "close"
        elif state == "close" or (state in ("name", "arguments") and token in facts.stop_ids):
            parts.append("close")
        elif state in ("name", "arguments"):
            parts.append(state)
            body += tokenizer.convert_ids_to_tokens(token)
            if arguments_mark in body:
                state = "arguments"
        else:
            parts.append("text")
    return tuple(parts)


def training_row(
    row: Rendered, facts: TokenFacts, tokenizer: Any, weights: PartWeights, *, has_tools: bool
) -> Row:
    """A rendered row with the weight of each of its tokens."""
    parts = parts_of(row, facts, tokenizer)
    opener, no_call = facts.open.id, weights.no_call if has_tools else None
    values: list[float] = []
    refusals: list[Refusal] = []
    for index, part in enumerate(parts):
        values.append(0.0 if part is None else getattr(weights, part))
        starts = index == 0 or not row.trained[index - 1]
        if no_call is not None and opener is not None and starts and part == "text":
            refusals.append(Refusal(index, opener, values[-1]))
            values[-1] = no_call
    codes = tuple(-1 if part is None else PARTS.index(part) for part in parts)
    return Row(row.conversation_id, row.token_ids, tuple(values), codes, tuple(refusals))
