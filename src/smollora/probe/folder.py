"""Where a probe's answers are kept: a folder of its own, or the run that was asked.

In: what a probe found. Out: summary.json and records.jsonl. The surprise: columns of one run may be
asked at different times; those that answered the same cases stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smollora.probe.run import Probed, Settings
from smollora.probe.target import COLUMNS, Target
from smollora.runs import SCHEMA_VERSION, read_json, read_jsonl, write_json, write_jsonl


def save_probe(probed: Probed, target: Target, settings: Settings, out: Path | None) -> Path | None:
    """Write summary.json and records.jsonl, and say where.

    Into `out`; without it, a run asked its own cases keeps them in RUN/probe, beside the columns
    that were asked there before; anything else is not kept (None).
    """
    if out is not None:
        _write(out, probed.summary, probed.records)
        return out
    own = settings == Settings(batch_tokens=settings.batch_tokens)
    if target.run is None or not own or probed.problems:
        return None
    folder = target.run / "probe"
    summary, records = probed.summary, probed.records
    if (folder / "summary.json").is_file() and (folder / "records.jsonl").is_file():
        summary, records = beside(
            read_json(folder / "summary.json"), read_jsonl(folder / "records.jsonl"), probed
        )
    _write(folder, summary, records)
    return folder


def beside(
    old: Mapping[str, Any], old_records: Sequence[dict[str, Any]], probed: Probed
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and records of a run after some of its columns were asked again.

    Columns that were not asked now stay if they answered the same cases, and the verdict stays with
    the last column of the way: asking the base alone does not undo what the merged model passed.
    """
    new = probed.summary
    asked = {record["case_id"] for record in probed.records}
    seen: dict[str, set[str]] = {}
    for record in old_records:
        seen.setdefault(record["model"], set()).add(record["case_id"])
    kept = [
        name
        for name, ids in seen.items()
        if name in old and name not in new["columns"] and ids <= asked
    ]
    summary: dict[str, Any] = {**old, **new}
    for name in seen:
        if name in kept:
            summary[name] = old[name]
        elif name not in new["columns"]:
            summary.pop(name, None)
    for key in ("by_category", "by_language", "by_system", "harness_errors", "opener_logprob"):
        before = old.get(key, {})
        summary[key] = {**{name: before[name] for name in kept if name in before}, **new[key]}
    here = {(step["left"], step["right"]) for step in new["steps"]}
    summary["steps"] = [
        *(
            step
            for step in old.get("steps", [])
            if {step["left"], step["right"]} <= {*kept, *new["columns"]}
            and (step["left"], step["right"]) not in here
        ),
        *new["steps"],
    ]
    every = [name for name in COLUMNS if name in (*kept, *new["columns"])]
    summary["columns"] = [*every, *(n for n in (*kept, *new["columns"]) if n not in every)]
    if every[-1] != new["judged"]:
        for key in ("judged", "gate", "reasons", "passed"):
            summary[key] = old.get(key, every[-1])
    records = [record for record in old_records if record["model"] in kept]
    return summary, [*records, *probed.records]


def _write(folder: Path, summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    write_jsonl(folder / "records.jsonl", records)
    whole = {"schema_version": SCHEMA_VERSION, "stage": "probe", "seconds": None, **summary}
    write_json(folder / "summary.json", whole)
