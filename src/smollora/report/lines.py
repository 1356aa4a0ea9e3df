"""What one line of a stage's JSON Lines files means: a training row, a step, an answer.

Each function makes a frozen value of one `Fields` and raises `Unusable` for a line that makes no
sense without what is missing; `fields.built` reports such lines and leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from smollora.report.contents import CurvePoint, Problem, Record, TokenRow
from smollora.report.fields import Fields, Unusable
from smollora.runs import hash_of

HIGHEST = 1e-3
"""A log-probability above 0 by more than rounding is none."""


def token_row(row: Fields) -> TokenRow:
    """A training row of `mix/preview.jsonl`."""
    columns = {key: row.items(key) for key in ("token_ids", "tokens", "owner", "trained", "part")}
    if len({len(column) for column in columns.values()}) != 1:
        lengths = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
        raise Unusable(f"its columns differ in length: {lengths}")
    return TokenRow(
        conversation_id=row.text("conversation_id"),
        source=row.text("source"),
        kind=row.text("kind"),
        roles=tuple(str(role) for role in row.items("roles")),
        token_ids=row.integers("token_ids"),
        tokens=tuple(str(token) for token in columns["tokens"]),
        owner=row.integers("owner"),
        trained=tuple(bool(each) for each in columns["trained"]),
        part=tuple(None if part is None else str(part) for part in columns["part"]),
    )


def with_logprobs(rows: Iterable[TokenRow], lines: Iterator[Fields]) -> tuple[TokenRow, ...]:
    """The rows with what each model made of their tokens; lines of other rows are reported."""
    scored = list(rows)
    hashes = [hash_of(list(row.token_ids)) for row in scored]
    for line in lines:
        try:
            index = line.count("row")
            if index is None or not 0 <= index < len(scored):
                raise Unusable("names no row of mix/preview.jsonl")
            if line.text("token_ids_sha256") != hashes[index]:
                raise Unusable("was scored on other tokens than mix/preview.jsonl holds now")
            row, model = scored[index], line.text("model")
            values = _logprobs(line.items("logprobs"), len(row.token_ids))
        except Unusable as error:
            line.found.append(Problem(line.place, str(error)))
            continue
        scored[index] = replace(row, logprobs={**row.logprobs, model: values})
    return tuple(scored)


def _logprobs(values: Sequence[object], tokens: int) -> tuple[float | None, ...]:
    if len(values) != tokens:
        raise Unusable(f"has {len(values)} logprobs for {tokens} tokens")
    read: list[float | None] = []
    for value in values:
        if value is None:
            read.append(None)
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Unusable("logprobs holds something else than numbers")
        elif not -1e6 < value <= HIGHEST:
            raise Unusable("logprobs holds a number that is no log-probability")
        else:
            read.append(min(float(value), 0.0))
    return tuple(read)


def curve_point(row: Fields) -> CurvePoint:
    """A logged step of `train/curve.jsonl`."""
    step = row.count("step")
    if step is None:
        raise Unusable("has no step")
    return CurvePoint(
        step=step,
        loss=row.number("loss"),
        lr=row.number("lr"),
        validation_loss=row.number("validation_loss"),
        loss_by_part=row.numbers("loss_by_part"),
    )


def record(row: Fields) -> Record:
    """An answer of `probe/records.jsonl` or `eval/records.jsonl`."""
    ids, tokens = row.items("token_ids"), row.items("tokens")
    if len(ids) != len(tokens):
        raise Unusable(f"its columns differ in length: token_ids {len(ids)}, tokens {len(tokens)}")
    if not row.text("model") or not row.text("case_id"):
        raise Unusable("has no model or no case_id")
    return Record(
        source=row.text("suite") or "probe",
        model=row.text("model"),
        case_id=row.text("case_id"),
        category=row.text("category"),
        request=row.text("request"),
        tools=tuple(str(tool) for tool in row.items("tools")),
        expected=tuple(each.values for each in row.objects("expected")),
        token_ids=row.integers("token_ids"),
        tokens=tuple(str(token) for token in tokens),
        text=row.text("text"),
        finish=row.text("finish"),
        opener_logprob=row.number("opener_logprob"),
        verdict=row.text("verdict"),
        detail=row.text("detail"),
        flags={name: value is True for name, value in row.mapping("flags").items()},
    )
