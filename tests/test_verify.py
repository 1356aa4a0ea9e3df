"""Planted faults are found before training, by the check that is made for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from smollora import stages
from smollora.config import Recipe
from smollora.data.prepare import PreparedRow, write_rows
from smollora.errors import VerifyError
from smollora.formats.hermes import HERMES
from smollora.render import Renderer
from smollora.stages import Run
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from smollora.types import Check, Conversation, Message, Reject, Rendered, ToolCall, ToolSpec
from smollora.verify import check_row, trained_turns
from tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHATML = load_shipped("chatml_tools")
FACTS = read_token_facts(TOKENIZER, HERMES, CHATML)
OPEN, CLOSE, STOP = TOKENIZER.convert_tokens_to_ids(["<tool_call>", "</tool_call>", "<|im_end|>"])

RAIN = ToolSpec("rain", "Does it rain?", {"type": "object", "properties": {"city": {}}})
CALL = ToolCall("rain", {"city": "Porto", "exact": True})
CHAT = Conversation(
    "chat-1",
    "made-up",
    (
        Message("user", "Rain in Porto?"),
        Message("assistant", "I look.", (CALL,)),
        Message("tool", "pouring"),
        Message("assistant", "Yes."),
    ),
    (RAIN,),
)
CALLS = ((CALL,), ())

STOCK_LIKE = (
    "{% for message in messages %}<|im_start|>"
    "{{ 'user' if message.role == 'tool' else message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Drops calls and shows results as the user's words, as SmolLM3's stock template does (FACTS 1)."""


def rendered(template: str = CHATML) -> Rendered:
    rows = Renderer(template, TOKENIZER, FACTS).row(CHAT)
    assert not isinstance(rows, Reject)
    return rows[0]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def spelled(text: str) -> list[int]:
    """Letter by letter, so that no added token is used."""
    return [token for letter in text for token in ids(letter)]


def replaced(row: Rendered, old: list[int], new: list[int]) -> Rendered:
    """Trained tokens `old` of the first labelled turn replaced by `new`, labelled likewise."""
    start, end = trained_turns(row)[0]
    places = range(start, end - len(old) + 1)
    at = next(i for i in places if list(row.token_ids[i : i + len(old)]) == old)
    count = len(new)
    return Rendered(
        row.conversation_id,
        (*row.token_ids[:at], *new, *row.token_ids[at + len(old) :]),
        (*row.owner[:at], *[row.owner[at]] * count, *row.owner[at + len(old) :]),
        (*row.trained[:at], *[True] * count, *row.trained[at + len(old) :]),
    )


def swapped(row: Rendered) -> Rendered:
    other = {OPEN: CLOSE, CLOSE: OPEN}
    ids_now = [
        other.get(token, token) if trained else token
        for token, trained in zip(row.token_ids, row.trained, strict=True)
    ]
    return replace(row, token_ids=tuple(ids_now))


def unlabelled(row: Rendered, place: Callable[[int, int], range]) -> Rendered:
    start, end = trained_turns(row)[0]
    return replace(
        row, trained=tuple(t and i not in place(start, end) for i, t in enumerate(row.trained))
    )


def first_failure(row: Rendered) -> Check | None:
    checks = check_row(row, CALLS, FACTS, HERMES, TOKENIZER)
    return next((check for check in checks if not check.ok), None)


BODY = '{"name": "rain", "arguments": {"city": "Porto", "exact": true}}'

FAULTS: dict[str, tuple[Callable[[Rendered], Rendered], str, str]] = {
    "the opening is spelled with ordinary tokens": (
        lambda row: replaced(row, [OPEN], spelled("<tool_call>")),
        "delimiters",
        "closes a call out of order",
    ),
    "both delimiters are spelled with ordinary tokens": (
        lambda row: replaced(
            replaced(row, [OPEN], spelled("<tool_call>")), [CLOSE], spelled("</tool_call>")
        ),
        "delimiters",
        "0 calls stand between <tool_call>",
    ),
    "the closing id is missing": (
        lambda row: replaced(row, [CLOSE], []),
        "delimiters",
        "</tool_call> (id",
    ),
    "opening and closing are swapped": (swapped, "delimiters", "out of order"),
    "the call is opened twice": (
        lambda row: replaced(row, [OPEN], [OPEN, OPEN]),
        "delimiters",
        "opens a call out of order",
    ),
    "a second call stands there": (
        lambda row: replaced(row, [CLOSE], [CLOSE, OPEN, CLOSE]),
        "delimiters",
        "2 calls stand",
    ),
    "the template drops the call": (
        lambda row: rendered(STOCK_LIKE),
        "delimiters",
        "0 calls stand between <tool_call>",
    ),
    "the arguments are Python's": (
        lambda row: replaced(row, ids(BODY), ids(BODY.replace('"', "'"))),
        "round_trip",
        "bad_syntax",
    ),
    "another tool is called": (
        lambda row: replaced(row, ids(BODY), ids(BODY.replace("rain", "snow"))),
        "round_trip",
        "reads back as snow",
    ),
    "other arguments are given": (
        lambda row: replaced(row, ids(BODY), ids(BODY.replace("Porto", "Faro"))),
        "round_trip",
        "Faro",
    ),
    "arguments are encoded twice": (
        lambda row: replaced(
            row, ids(BODY), ids('{"name": "rain", "arguments": "{\\"city\\": \\"Porto\\"}"}')
        ),
        "round_trip",
        "bad_syntax",
    ),
    "the stop token is not labelled": (
        lambda row: unlabelled(row, lambda start, end: range(end - 1, end)),
        "stop_token",
        "stop tokens are",
    ),
    "the whole turn is not labelled": (
        lambda row: unlabelled(row, range),
        "labelled_turns",
        "1 labelled turns, the conversation has 2",
    ),
    "the label has a hole": (
        lambda row: unlabelled(row, lambda start, end: range(start + 3, start + 4)),
        "labelled_turns",
        "3 labelled turns",
    ),
    "the opening id is not labelled": (
        lambda row: unlabelled(row, lambda start, end: range(start, ids_at(row, OPEN) + 1)),
        "delimiters",
        "closes a call out of order",
    ),
}


def ids_at(row: Rendered, token: int) -> int:
    """Where `token` stands in the first labelled turn."""
    return row.token_ids.index(token, trained_turns(row)[0][0])


def test_a_good_row_is_proved() -> None:
    row = rendered()
    checks = check_row(row, CALLS, FACTS, HERMES, TOKENIZER)
    assert [check.name for check in checks] == [
        "labelled_turns",
        *("stop_token", "delimiters", "round_trip", "served"),
        *("stop_token", "delimiters", "round_trip", "served"),
    ]
    assert all(check.ok for check in checks)
    texts = [TOKENIZER.decode(list(row.token_ids[a:b])) for a, b in trained_turns(row)]
    assert texts == [f"I look.\n<tool_call>\n{BODY}\n</tool_call><|im_end|>", "Yes.<|im_end|>"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_check(fault: str) -> None:
    plant, name, detail = FAULTS[fault]
    row = plant(rendered())
    found = first_failure(row)
    assert found is not None
    assert found.name == name
    assert detail in found.detail
    if found.at is not None:
        assert row.trained[found.at]


@pytest.mark.parametrize("value", ["1", "1.0"])
def test_true_is_not_one(value: str) -> None:
    row = replaced(rendered(), ids(BODY), ids(BODY.replace("true", value)))
    found = first_failure(row)
    assert found is not None
    assert found.name == "round_trip"


def test_a_wrong_call_in_a_turn_of_words_is_found() -> None:
    found = check_row(rendered(), ((), ()), FACTS, HERMES, TOKENIZER)
    assert [check.name for check in found if not check.ok] == ["delimiters", "round_trip"]


def test_evidence_points_at_the_token() -> None:
    row = swapped(rendered())
    found = first_failure(row)
    assert found is not None
    assert found.at == ids_at(row, CLOSE)
    assert row.token_ids[found.at] == CLOSE


# ── the stage refuses to go on ────────────────────────────────────────────────────────────────


def run_with(tmp_path: Path, *rows: Rendered) -> Run:
    """A run folder as inspect and prepare leave it."""
    run = Run(Recipe(), tmp_path, Console(quiet=True))
    tokenizer = tiny_tokenizer(template=CHATML)
    tokenizer.save_pretrained(run.base)
    prepared = [
        PreparedRow(row, "made-up", "tool", "call", tuple(m.role for m in CHAT.messages), CALLS)
        for row in rows
    ]
    write_rows(prepared, tmp_path / "prepare" / "rows" / "00000.parquet")
    return run


def test_the_stage_counts_the_rows_that_it_proved(tmp_path: Path) -> None:
    values = stages.verify(run_with(tmp_path, rendered(), rendered()))
    assert (values["rows"], values["rows_with_calls"], values["rows_proved"]) == (2, 2, 2)
    assert values["failures"] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_the_stage_refuses_to_train_one_bad_row(fault: str, tmp_path: Path) -> None:
    plant, name, detail = FAULTS[fault]
    bad = replace(plant(rendered()), conversation_id="chat-2")
    run = run_with(tmp_path, rendered(), bad)
    with pytest.raises(VerifyError, match="chat-2") as caught:
        stages.verify(run)
    assert name in str(caught.value)
    assert detail in str(caught.value)
    assert "hint" in str(caught.value)
    written = json.loads((tmp_path / "verify" / "summary.json").read_text())
    assert written["rows_proved"] == 1
    assert {failure["conversation_id"] for failure in written["failures"]} == {"chat-2"}
