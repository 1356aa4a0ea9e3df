"""Checks on rendered rows, before a single step is trained.

In: a `Rendered` row and the calls that its trained turns must contain. Out: `Check`s, as plain
functions. A call row is proved when the opening and closing ids stand in the labelled region, in
order, the turn ends with a stop token, and reading the labelled ids back with the format's own
parser gives exactly the calls of the row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smollora.formats import ToolFormat
from smollora.tokens import TokenFacts
from smollora.types import Check, Rendered, ToolCall

Turn = tuple[int, int]


def trained_turns(row: Rendered) -> list[Turn]:
    """Token ranges [start, end) of the labelled turns."""
    turns: list[Turn] = []
    start: int | None = None
    for index, trained in enumerate([*row.trained, False]):
        owner = row.owner[index] if index < len(row.owner) else None
        if start is not None and (not trained or owner != row.owner[start]):
            turns.append((start, index))
            start = None
        if trained and start is None:
            start = index
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
        checks.append(check_delimiters(row, start, end, len(wanted), facts))
        checks.append(check_round_trip(row, start, end, wanted, fmt, tokenizer))
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


def check_delimiters(row: Rendered, start: int, end: int, wanted: int, facts: TokenFacts) -> Check:
    """Opening and closing ids, alternating, once for each call."""
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


def check_round_trip(
    row: Rendered,
    start: int,
    end: int,
    wanted: Sequence[ToolCall],
    fmt: ToolFormat,
    tokenizer: Any,
) -> Check:
    """Reading the labelled ids back gives the same calls."""
    attempts = [a for a in fmt.parse(row.token_ids[start:end], tokenizer) if a.span is not None]
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
