"""One model as it is asked: prompts rendered with its own template, answers read in its own format.

In: a `Column` (a name, a `Renderer`, a format, any `Generator`) and questions or instructions. Out:
records. A prompt that cannot be rendered, or that a server did not answer, is a record without a
verdict on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smollora.errors import TemplateError
from smollora.evaluate.instructions import Instruction, follows
from smollora.evaluate.records import NO_ANSWER, Record, record_of
from smollora.evaluate.suites import Question
from smollora.formats import ToolFormat
from smollora.generate import Generator
from smollora.render import Renderer
from smollora.types import Generation, Message, ToolSpec

OnDone = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Column:
    """One model of an evaluation."""

    name: str
    """What the records call it: base, adapter, merged, served, or model."""
    renderer: Renderer
    fmt: ToolFormat
    generator: Generator
    max_new_tokens: int
    """Of an answer to a question with tools."""
    max_text_tokens: int
    """Of an answer to an instruction: the same for all models of an evaluation."""


def ask_questions(
    column: Column, questions: Sequence[Question], on_done: OnDone | None = None
) -> list[Record]:
    """A record for each question."""
    asked = [(question.case.messages, question.case.tools) for question in questions]
    records = []
    answers = _answers(column, asked, column.max_new_tokens, on_done)
    for question, (answer, failure) in zip(questions, answers, strict=True):
        tokenizer = column.renderer.tokenizer
        attempts = column.fmt.parse(answer.token_ids, tokenizer, question.case.tools)
        records.append(
            record_of(
                column.name,
                question,
                answer,
                attempts,
                facts=column.renderer.facts,
                tokenizer=tokenizer,
                failure=failure,
            )
        )
    return records


def ask_instructions(
    column: Column, instructions: Sequence[Instruction], on_done: OnDone | None = None
) -> list[Record]:
    """A record for each instruction; no tools are offered."""
    asked = [((Message("user", each.prompt),), ()) for each in instructions]
    tokenizer, facts = column.renderer.tokenizer, column.renderer.facts
    records = []
    answers = _answers(column, asked, column.max_text_tokens, on_done)
    for each, (answer, failure) in zip(instructions, answers, strict=True):
        spoken = [token for token in answer.token_ids if token not in facts.stop_ids]
        text = tokenizer.decode(spoken) if spoken else ""
        flags = follows(text, each.checks)
        verdict = "right" if all(flags.values()) else "not_followed"
        records.append(
            {
                "model": column.name,
                "suite": "retention",
                "category": "instructions",
                "case_id": each.id,
                "request": each.prompt,
                "token_ids": list(answer.token_ids),
                "text": text,
                "finish": answer.finish,
                "verdict": NO_ANSWER if answer.finish == "error" else verdict,
                "detail": failure,
                "flags": {} if answer.finish == "error" else flags,
            }
        )
    return records


def _answers(
    column: Column,
    asked: Sequence[tuple[Sequence[Message], Sequence[ToolSpec]]],
    limit: int,
    on_done: OnDone | None,
) -> list[tuple[Generation, str]]:
    """An answer for each of `asked`, and why there is none where its finish is "error"."""
    found: dict[int, tuple[Generation, str]] = {}
    prompts: dict[int, tuple[int, ...]] = {}
    for place, (messages, tools) in enumerate(asked):
        try:
            prompts[place] = column.renderer.prompt_ids(messages, tools)
        except TemplateError as error:
            found[place] = Generation((), "error"), f"no prompt: {error.message}"
    answers = column.generator.generate(
        list(prompts.values()), max_new_tokens=limit, on_done=on_done
    )
    failures = getattr(column.generator, "failures", {})
    for number, (place, answer) in enumerate(zip(prompts, answers, strict=True)):
        found[place] = answer, str(failures.get(number, "")) if answer.finish == "error" else ""
    return [found[place] for place in range(len(asked))]
