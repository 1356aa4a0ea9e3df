"""What tuning cost: loss on general conversations that nobody trained on, and instructions
followed.

In: the held-out general rows of the starter data, instructions with programmatic checks, records of
several models. Out: rows to measure, and a summary with differences between the first model and
each other. The surprise: the loss is of the assistant's text as the chat template frames it, the
same tokens for every model; a model with another tokenizer or template is not comparable and is not
compared.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from smollora.errors import DataError
from smollora.evaluate.instructions import CHECKS, follows
from smollora.evaluate.match import wilson
from smollora.evaluate.records import NO_ANSWER, Rates, Record, by_key
from smollora.types import Conversation, Reject

SUITE = "retention"
LOSS = "general_loss"
RESAMPLES = 2000


def general_conversations() -> list[Conversation]:
    """The held-out general rows of the starter data, each once and without tools."""
    from smollora.data.sources import read_conversation
    from smollora.data.starter import build_general_rows

    read = [
        read_conversation(row, "starter-heldout", number)
        for number, row in enumerate(build_general_rows("heldout", with_tools=0), 1)
    ]
    bad = [row for row in read if isinstance(row, Reject)]
    if bad:
        raise DataError(f"a shipped row cannot be read: {bad[0].detail}", "please report this")
    return [row for row in read if isinstance(row, Conversation)]


def loss_record(model_name: str, row_id: str, loss: float, tokens: int) -> Record:
    """A line of records.jsonl: the loss of one row."""
    return {
        "model": model_name,
        "suite": SUITE,
        "category": LOSS,
        "case_id": row_id,
        "loss": loss,
        "tokens": tokens,
        "verdict": "measured",
    }


def check_again(record: Record, row: Mapping[str, Any]) -> Record:
    """The record with its checks made anew on its text."""
    if record["category"] == LOSS or record["verdict"] == NO_ANSWER:
        return record
    flags = follows(record["text"], row["checks"])
    return {
        **record,
        "flags": flags,
        "verdict": "right" if all(flags.values()) else "not_followed",
    }


def instruction_rates(records: Sequence[Record]) -> Rates:
    """Instructions followed in full, and checks passed one by one, of those answered."""
    answered = [record for record in records if record["verdict"] != NO_ANSWER]
    checks = [ok for record in answered for ok in record["flags"].values()]
    return {
        "followed": wilson(sum(r["verdict"] == "right" for r in answered), len(answered)),
        "checks": wilson(sum(checks), len(checks)),
        "harness_errors": len(records) - len(answered),
    }


def rates_by_kind(records: Sequence[Record]) -> dict[str, Any]:
    """Each kind of check: how often it was passed."""
    answered = [record for record in records if record["verdict"] != NO_ANSWER]
    found = {}
    for kind in CHECKS:
        passed = [record["flags"][kind] for record in answered if kind in record["flags"]]
        if passed:
            found[kind] = wilson(sum(passed), len(passed))
    return found


def summarise_retention(records: Sequence[Record]) -> dict[str, Any]:
    """Losses, instructions and what changed from the first model to each other.

    Returns:
        `loss` {model: {`nats_per_token`, `tokens`, `rows`}}, `loss_change` {model:
        {`nats_per_token`, `low`, `high`}} (bootstrap over rows, 95%), `instructions` {model: {kind:
        rate}}, and `instructions_change` {model: {`lost`, `gained`}}: instructions that the first
        model followed and this one does not, and the other way round.
    """
    losses = by_key([r for r in records if r["category"] == LOSS], "model")
    told = by_key([r for r in records if r["category"] != LOSS], "model")
    found: dict[str, Any] = {"loss": {}, "loss_change": {}, "instructions": {}}
    found["instructions_change"] = {}
    for name, rows in losses.items():
        tokens = sum(row["tokens"] for row in rows)
        found["loss"][name] = {
            "nats_per_token": round(sum(row["loss"] for row in rows) / tokens, 4),
            "tokens": tokens,
            "rows": len(rows),
        }
        if name != next(iter(losses)):
            found["loss_change"][name] = loss_change(next(iter(losses.values())), rows)
    for name, rows in told.items():
        found["instructions"][name] = rates_by_kind(rows)
        if name != next(iter(told)):
            found["instructions_change"][name] = _moved(next(iter(told.values())), rows)
    return found


def loss_change(before: Sequence[Record], after: Sequence[Record]) -> dict[str, float]:
    """The change of the mean loss a token, with a 95% interval from resampling whole rows.

    Raises:
        DataError: other rows, or rows of another length: not the same text.
    """
    ends = {row["case_id"]: row for row in after}
    pairs = []
    for row in before:
        other = ends.get(row["case_id"])
        if other is None or other["tokens"] != row["tokens"]:
            raise DataError(
                f"{row['case_id']} is not the same tokens for both models",
                "compare models of one tokenizer and one chat template",
            )
        pairs.append((other["loss"] - row["loss"], row["tokens"]))
    dice = random.Random(7)

    def mean(chosen: Sequence[tuple[float, int]]) -> float:
        return sum(change for change, _ in chosen) / sum(tokens for _, tokens in chosen)

    spread = sorted(mean(dice.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return {
        "nats_per_token": round(mean(pairs), 4),
        "low": round(spread[round(0.025 * RESAMPLES)], 4),
        "high": round(spread[round(0.975 * RESAMPLES) - 1], 4),
    }


def _moved(before: Sequence[Record], after: Sequence[Record]) -> dict[str, int]:
    ends = {row["case_id"]: row["verdict"] for row in after}
    pairs = [(row["verdict"] == "right", ends.get(row["case_id"]) == "right") for row in before]
    return {
        "lost": sum(was and not now for was, now in pairs),
        "gained": sum(now and not was for was, now in pairs),
    }
