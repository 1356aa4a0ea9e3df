"""`smollora eval --export DIR`: prompts and cases for lm-eval and lighteval.

In: a `Target` and suites. Out: DIR/test.jsonl, a row a case: `id`, `prompt` (rendered with the
model's own chat template, tools included, for neither harness passes tools to it) and `case` (JSON,
all that scoring needs).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from smollora.errors import ConfigError
from smollora.evaluate.records import question_row
from smollora.evaluate.retention import SUITE
from smollora.evaluate.suites import load_suite
from smollora.evaluate.targets import Target
from smollora.models import open_renderer
from smollora.runs import write_jsonl


def export_suites(target: Target, suites: Sequence[str], folder: Path, *, limit: int | None) -> int:
    """Write the prompts of the target's last model; how many there are.

    Raises:
        ConfigError: a suite without calls.
    """
    if SUITE in suites:
        raise ConfigError(f"{SUITE} has no calls to export", "both harnesses have IFEval")
    source = target.sources[-1]
    renderer = open_renderer(source.folder, target.format)
    known = {
        "facts": renderer.facts.model_dump(mode="json"),
        "tokenizer": str(source.folder.resolve()),
    }
    rows = [
        {
            "id": question.case.id,
            "prompt": renderer.prompt_text(question.case.messages, question.case.tools),
            "case": json.dumps({**question_row(question), **known}, ensure_ascii=False),
        }
        for suite in dict.fromkeys(suites)
        for question in load_suite(suite, limit)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    return len(rows)
