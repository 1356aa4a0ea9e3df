"""`eval/summary.json` from records: worked out from files alone, after asking and at any time
later.

In: the records and the cases of an evaluation. Out: its summary; `rescore` judges the records of a
folder anew and writes both again, for when the rules have changed or an edited case is to count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smollora.errors import DataError
from smollora.evaluate.records import (
    Record,
    by_key,
    judge_again,
    pair_up,
    rates,
    read_question,
)
from smollora.evaluate.retention import LOSS, SUITE, check_again, instruction_rates
from smollora.evaluate.retention import summarise_retention as summarise_retention
from smollora.runs import SCHEMA_VERSION, read_json, read_jsonl, write_json, write_jsonl
from smollora.tokens import TokenFacts

Rows = Sequence[Mapping[str, Any]]


def summarise(
    records: Sequence[Record], rows: Rows, columns: Mapping[str, Any], *, seconds: float | None
) -> dict[str, Any]:
    """The values of `eval/summary.json`.

    Args:
        records: of all models and suites.
        rows: of cases.jsonl.
        columns: for each model where it came from, its format and its token facts.
        seconds: what asking took.
    """
    wants = {(row["suite"], row["id"]): row["wants"] for row in rows if "wants" in row}
    suites: dict[str, dict[str, dict[str, Any]]] = {}
    overall: dict[str, dict[str, Any]] = {}
    for suite, of_suite in by_key(records, "suite").items():
        known = {case: want for (each, case), want in wants.items() if each == suite}
        for category, of_category in by_key(of_suite, "category").items():
            if category == LOSS:
                continue
            for model, answers in by_key(of_category, "model").items():
                found = instruction_rates(answers) if suite == SUITE else rates(answers, known)
                suites.setdefault(suite, {}).setdefault(category, {})[model] = found
        if suite != SUITE and len(suites.get(suite, ())) > 1:
            by_model = by_key(of_suite, "model").items()
            overall[suite] = {model: rates(answers, known) for model, answers in by_model}
    summary = {
        "schema_version": SCHEMA_VERSION,
        "stage": "eval",
        "seconds": seconds,
        "models": dict(columns),
        "suites": suites,
        "overall": overall,
        "harness_errors": sum(record["verdict"] == "no_answer" for record in records),
    }
    kept = [record for record in records if record["suite"] == SUITE]
    if kept:
        summary["retention"] = summarise_retention(kept)
    return summary


def write_evaluation(
    folder: Path, records: Sequence[Record], rows: Rows, summary: Mapping[str, Any]
) -> None:
    """records.jsonl, cases.jsonl and, last, summary.json."""
    write_jsonl(folder / "records.jsonl", records)
    write_jsonl(folder / "cases.jsonl", rows)
    write_json(folder / "summary.json", summary)


def rescore(path: Path) -> tuple[dict[str, Any], int]:
    """(new summary, number of verdicts that changed) of the evaluation in a folder.

    Args:
        path: the folder, or its records.jsonl.

    Raises:
        DataError: a file is absent, or is not what an evaluation writes.
    """
    folder = path if path.is_dir() else path.parent
    name = "records.jsonl" if path.is_dir() else path.name
    before = read_json(folder / "summary.json")
    records, rows = read_jsonl(folder / name), read_jsonl(folder / "cases.jsonl")
    if not records:
        raise DataError(f"{folder / name} holds no records", "run `smollora eval` first")
    try:
        facts = {
            model: TokenFacts.model_validate(found["facts"])
            for model, found in before["models"].items()
        }
        after = [_again(record, row, facts) for record, row in pair_up(records, rows)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder} does not hold an evaluation that can be scored again:"
            f" {type(error).__name__} {str(error)[:200]}",
            "keep records.jsonl, cases.jsonl and summary.json as `smollora eval` wrote them",
        ) from error
    summary = summarise(after, rows, before["models"], seconds=before.get("seconds"))
    write_evaluation(folder, after, rows, summary)
    changed = sum(
        (old["verdict"], old.get("official")) != (new["verdict"], new.get("official"))
        for old, new in zip(records, after, strict=True)
    )
    return summary, changed


def _again(record: Record, row: Mapping[str, Any], facts: Mapping[str, TokenFacts]) -> Record:
    if record["suite"] == SUITE:
        return check_again(record, row)
    return judge_again(record, read_question(row), facts[record["model"]])
