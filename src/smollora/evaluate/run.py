"""`smollora eval`: suites asked of one or several models, the same prompts, answers kept as token
ids.

In: a `Target`, names of suites (`bfcl`, `bfcl:CATEGORY`, a .jsonl of cases, `retention`). Out:
`summary.json` (rates a suite, category and model), `records.jsonl` (each answer) and `cases.jsonl`
(all that judging them again needs). Files are written after each model, so what was asked is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from smollora.errors import DataError, SmolloraError
from smollora.evaluate.asking import Column, ask_instructions, ask_questions
from smollora.evaluate.instructions import load_instructions
from smollora.evaluate.records import NO_ANSWER, Record, question_row
from smollora.evaluate.retention import LOSS, SUITE, general_conversations, loss_record
from smollora.evaluate.suites import Question, load_suite
from smollora.evaluate.summary import summarise, write_evaluation
from smollora.evaluate.targets import Target, open_column
from smollora.progress import meter
from smollora.types import Rendered

DEFAULT_SUITES = ("bfcl:simple_python", "bfcl:irrelevance", "bfcl:live_irrelevance")


def evaluate(
    target: Target, suites: Sequence[str], *, limit: int | None, console: Console
) -> dict[str, Any]:
    """Ask `suites` of every model of the target and write the evaluation's files.

    Returns:
        The summary.

    Raises:
        ConfigError, DataError: no such suite, or a broken one.
        SmolloraError: a model answered nothing at all.
    """
    start = time.monotonic()
    asked = {name: load_suite(name, limit) for name in dict.fromkeys(suites) if name != SUITE}
    for name, questions in asked.items():
        if not questions:
            raise DataError(f"the suite {name} holds no cases", "raise --limit")
    instructions = load_instructions()[:limit] if SUITE in suites else []
    conversations = general_conversations()[:limit] if SUITE in suites else []
    rows = [question_row(question) for questions in asked.values() for question in questions]
    rows += [
        {
            "suite": SUITE,
            "id": each.id,
            "category": "instructions",
            "prompt": each.prompt,
            "checks": list(each.checks),
        }
        for each in instructions
    ]
    records: list[Record] = []
    columns: dict[str, Any] = {}
    known: dict[str, Mapping[str, Any]] = {}
    for source in target.sources:
        with open_column(source, target) as (column, model):
            facts = column.renderer.facts
            columns[source.name] = {
                "model": source.endpoint or str(source.adapter or source.folder),
                "format": column.fmt.name,
                "max_new_tokens": column.max_new_tokens,
                "facts": facts.model_dump(mode="json"),
            }
            if facts.lacking and not console.quiet:
                console.print(
                    f"  note: {facts.lacking[0].text} is {len(facts.lacking[0].ids)} tokens in"
                    f" {source.name}: no call of it can be told by its id",
                    markup=False,
                )
            of_column = ask_suites(column, asked, console)
            if instructions:
                with meter(console, f"instructions {source.name}", len(instructions)) as shown:
                    of_column += ask_instructions(column, instructions, shown.to)
            if conversations and model is not None:
                found, loss_rows = measure_loss(column, model, conversations, console)
                of_column += found
                known |= {row["id"]: row for row in loss_rows}
            elif conversations and not console.quiet:
                console.print(f"  note: a server gives no losses; {source.name} has none")
            _refuse_silence(source.name, of_column)
        records += of_column
        seconds = round(time.monotonic() - start, 1)
        every_row = [*rows, *known.values()]
        summary = summarise(records, every_row, columns, seconds=seconds)
        write_evaluation(target.out, records, every_row, summary)
    return summary


def ask_suites(
    column: Column, asked: Mapping[str, Sequence[Question]], console: Console
) -> list[Record]:
    """The records of one model."""
    records: list[Record] = []
    for name, questions in asked.items():
        with meter(console, f"{name} {column.name}", len(questions), "prompts") as shown:
            records += ask_questions(column, questions, shown.to)
    return records


def measure_loss(
    column: Column, model: Any, conversations: Sequence[Any], console: Console
) -> tuple[list[Record], list[dict[str, Any]]]:
    """(records, rows of cases.jsonl) of the loss on general conversations.

    Raises:
        DataError: the template refuses one of them.
    """
    from smollora.likelihood import row_losses

    rendered: list[Rendered] = []
    for conversation, result in zip(
        conversations, column.renderer.rows(conversations), strict=True
    ):
        if not isinstance(result, tuple):
            raise DataError(
                f"{column.name} cannot be given {conversation.id}: {result.detail}",
                "`smollora inspect` says what its chat template loses",
            )
        rendered.extend(result)
    with meter(console, f"general loss {column.name}", len(rendered)) as shown:
        losses = row_losses(model, rendered, shown.to)
    records, rows = [], []
    seen: dict[str, int] = {}
    for row, (loss, tokens) in zip(rendered, losses, strict=True):
        number = seen[row.conversation_id] = seen.get(row.conversation_id, 0) + 1
        name = f"{row.conversation_id}/{number}"
        records.append(loss_record(column.name, name, loss, tokens))
        rows.append({"suite": SUITE, "id": name, "category": LOSS})
    return records, rows


def _refuse_silence(name: str, records: Sequence[Record]) -> None:
    asked = [record for record in records if record["category"] != LOSS]
    silent = [record for record in asked if record["verdict"] == NO_ANSWER]
    if asked and len(silent) == len(asked):
        raise SmolloraError(
            f"{name} answered none of {len(asked)} prompts: {silent[0]['detail']}",
            "nothing was measured; see what that says, then the same command again",
        )
