"""Checks on rendered rows, before a single step is trained.

In: a `Rendered` row and the calls that its trained turns must contain. Out: `Check`s, as plain
functions. A call row is proved when the opening and closing ids stand in the labelled region, in
order, the turn ends with a stop token, and reading the labelled ids back with the format's own
parser gives exactly the calls of the row. Beyond that, `served` says what vLLM's parser would do to
the call: a note, and a failure only where the call would be lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smollora.formats import ToolFormat
from smollora.formats.qwen3_coder import type_of
from smollora.formats.served import Answer, describe, effects
from smollora.tokens import TokenFacts
from smollora.types import Check, ParsedCall, Rendered, ToolCall, ToolSpec

Turn = tuple[int, int]


def trained_turns(row: Rendered) -> list[Turn]:
    """Token ranges [start, end) of the labelled turns."""
    turns: list[Turn] = []
    end = 0
    while True in row.trained[end:]:
        start = row.trained.index(True, end)
        end = start + 1
        while end < len(row.trained) and row.trained[end] and row.owner[end] == row.owner[start]:
            end += 1
        turns.append((start, end))
    return turns


def check_row(
    row: Rendered,
    calls: Sequence[Sequence[ToolCall]],
    facts: TokenFacts,
    fmt: ToolFormat,
    tokenizer: Any,
) -> list[Check]:
    """All checks of one row.

    Args:
        row: three columns.
        calls: the calls of each labelled turn, in order (empty for a turn of words).
        facts: ids of this tokenizer.
        fmt: the format whose parser reads the labelled ids back.
        tokenizer: for decoding what is read.
    """
    turns = trained_turns(row)
    checks = [check_labels(row, turns, len(calls))]
    if not checks[0].ok:
        return checks
    for (start, end), wanted in zip(turns, calls, strict=True):
        checks.append(check_stop(row, start, end, facts))
        checks.append(check_delimiters(row, start, end, len(wanted), facts, fmt))
        read = fmt.parse(row.token_ids[start:end], tokenizer, tools_of(wanted))
        attempts = [attempt for attempt in read if attempt.span is not None]
        checks.append(check_round_trip(start, wanted, attempts))
        if checks[-1].ok:
            checks.append(check_served(row, start, end, attempts, fmt, tokenizer))
    return checks


def check_labels(row: Rendered, turns: Sequence[Turn], wanted: int) -> Check:
    """As many labelled turns as the conversation has assistant turns."""
    detail = f"{len(turns)} labelled turns, the conversation has {wanted} assistant turns"
    return Check("labelled_turns", len(turns) == wanted and wanted > 0, detail)


def check_stop(row: Rendered, start: int, end: int, facts: TokenFacts) -> Check:
    """The last labelled token of the turn is a stop token."""
    last = row.token_ids[end - 1]
    ok = last in facts.stop_ids
    detail = "" if ok else f"the turn ends with token {last}, stop tokens are {facts.stop_ids}"
    return Check("stop_token", ok, detail, end - 1)


def check_delimiters(
    row: Rendered, start: int, end: int, calls: int, facts: TokenFacts, fmt: ToolFormat
) -> Check:
    """Opening and closing ids, alternating, once for each call or once for all, as the format has
    it.
    """
    if facts.delimited != "token":
        return Check("delimiters", True, f"{fmt.name} has no delimiter tokens")
    wanted = min(calls, 1) if fmt.one_block else calls
    if not fmt.close:
        places = [place for place in range(start, end) if row.token_ids[place] == facts.open.id]
        detail = f"{facts.open.text} (id {facts.open.id}) {len(places)} times, expected {wanted}"
        return Check("delimiters", len(places) == wanted, detail, start)
    expected = facts.open.id
    found = 0
    for index in range(start, end):
        token = row.token_ids[index]
        if token not in (facts.open.id, facts.close.id):
            continue
        if token != expected:
            which = "opens" if token == facts.open.id else "closes"
            return Check("delimiters", False, f"token {token} {which} a call out of order", index)
        found += token == facts.close.id
        expected = facts.close.id if token == facts.open.id else facts.open.id
    if expected != facts.open.id:
        return Check(
            "delimiters", False, f"{facts.close.text} (id {facts.close.id}) is missing", end - 1
        )
    if found != wanted:
        detail = (
            f"{found} calls stand between {facts.open.text} (id {facts.open.id}) and"
            f" {facts.close.text} (id {facts.close.id}) in the labelled region, expected {wanted};"
            f" the turn starts with token {row.token_ids[start]}"
        )
        return Check("delimiters", False, detail, start)
    return Check("delimiters", True)


def _as_json(call: ToolCall) -> str:
    """Arguments as text that tells true from 1 and 1 from 1.0, as Python's `==` does not."""
    return json.dumps(dict(call.arguments), sort_keys=True)


def tools_of(calls: Sequence[ToolCall]) -> list[ToolSpec]:
    """Tools whose schemas name the types of the arguments of `calls`: what a format that writes
    values without types (qwen3_coder) needs to be read back.
    """
    types: dict[str, dict[str, set[str]]] = {}
    for call in calls:
        properties = types.setdefault(call.name, {})
        for key, value in call.arguments.items():
            properties.setdefault(key, set()).add(type_of(value))
    return [
        ToolSpec(name, "", {"properties": {k: {"type": sorted(v)} for k, v in properties.items()}})
        for name, properties in types.items()
    ]


def check_round_trip(
    start: int, wanted: Sequence[ToolCall], attempts: Sequence[ParsedCall]
) -> Check:
    """Reading the labelled ids back, which begin at `start`, gives the same calls."""
    for index, attempt in enumerate(attempts):
        at = start + attempt.span[0] if attempt.span else start
        if attempt.status != "ok" or attempt.call is None:
            return Check("round_trip", False, f"{attempt.status}: {attempt.raw[:80]!r}", at)
        if index < len(wanted) and (
            attempt.call.name != wanted[index].name
            or _as_json(attempt.call) != _as_json(wanted[index])
        ):
            detail = f"reads back as {attempt.call.name} {str(dict(attempt.call.arguments))[:80]}"
            return Check("round_trip", False, detail, at)
    ok = len(attempts) == len(wanted)
    return Check(
        "round_trip",
        ok,
        "" if ok else f"{len(attempts)} calls read back, {len(wanted)} written",
        start,
    )


def check_served(
    row: Rendered,
    start: int,
    end: int,
    attempts: Sequence[ParsedCall],
    fmt: ToolFormat,
    tokenizer: Any,
) -> Check:
    """What vLLM's parser would make of the turn; a note unless it loses the call altogether."""
    spans = [attempt.span for attempt in attempts if attempt.span is not None]
    if not spans:
        return Check("served", True)
    ids = row.token_ids[start:end]
    before = tokenizer.decode(list(ids[: spans[0][0]]))
    after = tokenizer.decode(list(ids[spans[-1][1] : -1]))  # the last one is the stop token
    found = effects(Answer(fmt, attempts, before, after))
    detail = "; ".join(describe(effect, fmt) for effect in found)
    return Check("served", not any(effect.loses_call for effect in found), detail, start)
