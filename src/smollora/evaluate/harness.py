"""Our cases in other people's harnesses: one answer's text scored, wherever it was generated.

In: a row that `smollora eval --export` wrote (the prompt as the model's template renders it, and
the case), and the text that a harness got for it. Out: metrics by name. The surprise: harnesses
hand over text, and text cannot tell a delimiter's own id from its spelling; a call that was spelled
with ordinary tokens counts here, as it does in a server, and does not count in `smollora eval`.
Harnesses also drop special tokens: where a format's delimiters are special, calls vanish before
they get here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from smollora.evaluate.records import judge, read_question
from smollora.formats import get_format
from smollora.tokenizer_file import load_tokenizer_files
from smollora.tokens import TokenFacts
from smollora.types import Generation

METRICS = ("right", "emission", "right_tool", "right_call", "false_call", "bfcl")
"""What a harness may aggregate, each the mean over the answers that have it."""


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> Any:
    return load_tokenizer_files(Path(folder))


def score_text(row: Mapping[str, Any], text: str) -> dict[str, float]:
    """The metrics of one answer: 0 or 1 each; those that do not apply to it are left out.

    Args:
        row: a line of the exported test.jsonl.
        text: what the model wrote after the prompt, without its stop token.
    """
    case = json.loads(row["case"])
    question = read_question(case)
    facts = TokenFacts.model_validate(case["facts"])
    tokenizer = _tokenizer(case["tokenizer"])
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    attempts = get_format(facts.format).parse(ids, tokenizer, question.case.tools)
    found = judge(question, Generation(ids, "stop"), attempts, facts)
    flags = found["flags"]
    metrics = {"right": found["verdict"] == "right"}
    if question.wants == "nothing":
        metrics["false_call"] = flags["emitted"]
    else:
        metrics["emission"] = flags["emitted"]
        for name in ("right_tool", "right_call"):
            if name in flags:
                metrics[name] = flags[name]
    if found["official"] is not None:
        metrics["bfcl"] = found["official"]["valid"]
    return {name: float(value) for name, value in metrics.items()}
