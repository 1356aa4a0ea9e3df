"""Every row is kept or counted; what is too long loses whole exchanges and is never cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smollora.config import PrepareSection, SourceSection
from smollora.data import prepare
from smollora.data.prepare import (
    Prepared,
    drop_first_exchange,
    prepare_rows,
    read_prepared,
    write_rows,
)
from smollora.errors import DataError
from smollora.formats.hermes import HERMES
from smollora.render import Renderer
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from smollora.types import Conversation, Message
from smollora.verify import check_row
from tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = load_shipped("chatml_tools")

FIND = {"name": "find", "description": "Find", "parameters": {"properties": {"what": {}}}}


def renderer(template: str = CHATML) -> Renderer:
    return Renderer(template, TOKENIZER, read_token_facts(TOKENIZER, HERMES, template))


def said(*turns: str, tools: Any = ()) -> dict[str, Any]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": messages, "tools": list(tools)}


def calling(what: Any) -> dict[str, Any]:
    record = said("Find", "", tools=(FIND,))
    record["messages"][1]["tool_calls"] = [{"name": "find", "arguments": {"what": what}}]
    return record


def prepared(
    tmp_path: Path, *records: Any, template: str = CHATML, raw: bytes = b"", **settings: Any
) -> Prepared:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in records) + raw)
    source = SourceSection(
        name="mine", path=str(path), kind="tool", limit=settings.pop("limit", None)
    )
    section = PrepareSection(sources=(source,), **settings)
    return prepare_rows(section, renderer(template), seed=7)


def texts(made: Prepared) -> list[str]:
    return [TOKENIZER.decode(list(row.rendered.token_ids)) for row in made.rows]


def reasons(made: Prepared) -> list[tuple[int, str]]:
    return [(reject.row, reject.reason) for reject in made.rejects]


# ── counting ──────────────────────────────────────────────────────────────────────────────────


def test_rows_in_is_kept_plus_rejected_and_each_reject_names_its_row(tmp_path: Path) -> None:
    made = prepared(
        tmp_path,
        {**said("One?", "1"), "id": "a"},
        said("Two?", ""),
        {**calling("keys"), "id": "b"},
        said("Three?"),
        {**said("x" * 500, "4"), "id": "long"},
        5,
        {**said("Five?", "5"), "id": "c"},
        raw=b'{"messages": [\n{"messages": "\xff"}\n',
        max_length=300,
    )
    assert sorted(reasons(made)) == [
        *((2, "empty_turn"), (4, "no_answer"), (5, "too_long"), (6, "not_an_object")),
        *((8, "bad_json"), (9, "bad_unicode")),
    ]
    kept = [row.rendered.conversation_id for row in made.rows]
    assert kept == ["a", "b", "c"]
    assert made.rows_in == 9 == len(kept) + len(made.rejects)
    assert {reject.source for reject in made.rejects} == {"mine"}
    assert [row.kind for row in made.rows] == ["no_tools", "call", "no_tools"]
    assert {row.group for row in made.rows} == {"tool"}


def test_counts_hold_across_batches_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "BATCH", 3)
    sources = []
    for name, kind, count in (("one", "tool", 7), ("two", "general", 4)):
        path = tmp_path / f"{name}.jsonl"
        rows = [said("Hm?", "" if i % 3 == 0 else f"{name} {i}") for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(SourceSection(name=name, path=str(path), kind=kind))
    seen: list[int] = []
    section = PrepareSection(sources=tuple(sources))
    made = prepare_rows(section, renderer(), seed=7, on_rows=seen.append)
    assert seen == [3, 6, 7, 10, 11]
    assert made.rows_in == 11
    assert [(r.source, r.group) for r in made.rows] == [("one", "tool")] * 4 + [
        ("two", "general")
    ] * 2
    assert [(r.source, r.row) for r in made.rejects] == [
        *(("one", 1), ("one", 4), ("one", 7)),
        *(("two", 1), ("two", 4)),
    ]


def test_a_limit_reads_no_more_rows_than_it_says(tmp_path: Path) -> None:
    made = prepared(tmp_path, said("1?", "1"), said("2?", ""), said("3?", "3"), limit=2)
    assert (made.rows_in, len(made.rows), len(made.rejects)) == (2, 1, 1)


def test_a_template_that_rewrites_history_gives_more_rows_than_conversations(
    tmp_path: Path,
) -> None:
    forgets = PLAIN.replace(
        "{{ message.content }}",
        "{% if message.reasoning_content and loop.last %}<think>{{ message.reasoning_content }}"
        "</think>{% endif %}{{ message.content }}",
    )
    record = said("One?", "1", "Two?", "2")
    record["messages"][1]["reasoning_content"] = "uno"
    made = prepared(tmp_path, record, said("Three?", ""), template=forgets)
    assert (made.rows_in, len(made.rows), len(made.rejects)) == (2, 2, 1)


# ── length ────────────────────────────────────────────────────────────────────────────────────


def whole(*turns: tuple[str, str]) -> str:
    """What PLAIN renders, written down here by hand."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


LONG = said("first " * 20, "one", "second " * 20, "two", "third?", "three")
LAST_EXCHANGE = whole(("user", "third?"), ("assistant", "three"))
LAST_TWO = whole(("user", "second " * 20), ("assistant", "two")) + LAST_EXCHANGE


def length(text: str) -> int:
    return len(TOKENIZER.encode(text))


@pytest.mark.parametrize(
    ("room", "expected"),
    [(length(LAST_TWO), LAST_TWO), (length(LAST_TWO) - 1, LAST_EXCHANGE)],
    ids=["two fit", "one token short"],
)
def test_a_row_that_is_too_long_loses_whole_exchanges_from_the_front(
    tmp_path: Path, room: int, expected: str
) -> None:
    made = prepared(tmp_path, LONG, template=PLAIN, max_length=room)
    assert texts(made) == [expected]
    assert made.shortened == 1
    assert made.rejects == ()


def test_the_system_text_stays_when_exchanges_are_dropped(tmp_path: Path) -> None:
    record = json.loads(json.dumps(LONG))
    record["messages"].insert(0, {"role": "system", "content": "Be brief."})
    made = prepared(tmp_path, record, template=PLAIN, max_length=length(LAST_EXCHANGE) + 20)
    assert texts(made) == [whole(("system", "Be brief.")) + LAST_EXCHANGE]


def test_a_call_goes_with_its_result_and_its_answer() -> None:
    messages = (
        Message("user", "Find"),
        Message("assistant", "", ()),
        Message("tool", "door"),
        Message("assistant", "By the door."),
        Message("user", "Thanks"),
        Message("assistant", "Any time."),
    )
    shorter = drop_first_exchange(Conversation("a", "b", messages))
    assert shorter is not None
    assert shorter.messages == messages[4:]
    assert drop_first_exchange(shorter) is None


def test_what_fits_exactly_is_kept_and_one_token_less_is_counted(tmp_path: Path) -> None:
    text = whole(("user", "third?"), ("assistant", "three"))
    record = said("third?", "three")
    other = said("a", "b")
    made = prepared(tmp_path, record, other, template=PLAIN, max_length=max(16, length(text)))
    assert texts(made)[0] == text
    made = prepared(tmp_path, record, other, template=PLAIN, max_length=length(text) - 1)
    assert reasons(made) == [(1, "too_long")]
    assert f"{length(text)} tokens, max_length is {length(text) - 1}" in made.rejects[0].detail


def test_no_row_is_ever_longer_than_it_may_be_and_none_ends_inside_a_turn(tmp_path: Path) -> None:
    records = [
        said(*(f"{'word ' * (3 * i + j)}{'?' if j % 2 == 0 else '.'}" for j in range(2 * i + 2)))
        for i in range(8)
    ]
    for room in (40, 80, 160):
        made = prepared(tmp_path, *records, template=PLAIN, max_length=room)
        assert made.rows_in == len(records) == len(made.rows) + len(made.rejects)
        for row, text in zip(made.rows, texts(made), strict=True):
            assert len(row.rendered.token_ids) <= room
            assert text.startswith("<|im_start|>user\n")
            assert text.endswith(".<|im_end|>\n")


# ── strict, and nothing left ──────────────────────────────────────────────────────────────────


def test_strict_stops_at_the_first_bad_row_and_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2 of mine: empty_turn") as caught:
        prepared(tmp_path, said("1?", "1"), said("2?", ""), said("3?"), strict=True)
    assert "hint" in str(caught.value)


def test_strict_stops_at_a_row_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 of mine: too_long"):
        prepared(tmp_path, said("1?", "x" * 400), said("2?", "2"), strict=True, max_length=100)


def test_strict_names_the_first_of_several_bad_rows(tmp_path: Path) -> None:
    rows = [said("1?", "x" * 400), said("2?", ""), said("3?", "3")]
    with pytest.raises(DataError, match="row 1 of mine"):
        prepared(tmp_path, *rows, strict=True, max_length=100)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="none of 3 rows is left: 2 empty_turn, 1 no_answer"
    ) as short:
        prepared(tmp_path, said("1?", ""), said("2?", ""), said("3?"))
    assert "strict" in short.value.hint and "max_length" not in short.value.hint
    with pytest.raises(DataError, match="none of 1 rows is left: 1 too_long") as long:
        prepared(tmp_path, said("1?", "x" * 400), max_length=100)
    assert "raise prepare.max_length" in long.value.hint


def test_a_source_of_empty_lines_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source mine .* holds no rows"):
        prepared(tmp_path, raw=b"\n\n\n")


# ── rows.parquet ──────────────────────────────────────────────────────────────────────────────


def test_rows_come_back_from_disk_as_they_went(tmp_path: Path) -> None:
    made = prepared(
        tmp_path,
        said("Łódź 🙂?", "naïve"),
        calling({"deep": [1, 2.5, None, True, "é\u2028"]}),
        said("a", "b", "c", "d"),
    )
    write_rows(made.rows, tmp_path / "rows.parquet")
    assert list(read_prepared(tmp_path / "rows.parquet")) == list(made.rows)


def test_a_broken_file_of_rows_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"rows\.parquet") as caught:
        read_prepared(tmp_path / "rows.parquet")
    assert "prepare" in caught.value.hint


def test_every_kept_call_row_is_proved(tmp_path: Path) -> None:
    values = ["keys", '"quoted" \\ {braces}', {"a": [1, None, True, 2.5]}, "naïve 東京 🙂", ""]
    made = prepared(tmp_path, *(calling(value) for value in values))
    assert len(made.rows) == len(values)
    facts = renderer().facts
    for row in made.rows:
        assert all(c.ok for c in check_row(row.rendered, row.calls, facts, HERMES, TOKENIZER))


TAGGED = {
    "an opening tag in the answer": said("How?", "Write <tool_call> first."),
    "a closing tag in an argument": calling("a </tool_call> b"),
    "a stop token in the answer": said("How?", "It ends with <|im_end|> always."),
    "a stop token in an argument": calling("a <|im_end|> b"),
}


@pytest.mark.parametrize("row", TAGGED)
def test_an_answer_that_holds_a_delimiter_or_a_stop_token_as_text_is_refused(
    row: str, tmp_path: Path
) -> None:
    """It becomes the real token: the turn would end, or a call begin, in the middle."""
    made = prepared(tmp_path, said("1?", "1"), TAGGED[row])
    assert [reject.row for reject in made.rejects] == [2]


def test_a_delimiter_that_a_user_types_is_not_trained_and_fails_no_check(tmp_path: Path) -> None:
    made = prepared(tmp_path, said("What is <tool_call>?", "A tag."), calling("keys"))
    assert made.rejects == ()
    facts = renderer().facts
    for row in made.rows:
        assert all(c.ok for c in check_row(row.rendered, row.calls, facts, HERMES, TOKENIZER))


def test_arguments_before_the_name_are_trained_name_first(tmp_path: Path) -> None:
    """Hermes-V1 writes {'arguments': ..., 'name': ...}; vLLM's streaming breaks on that order."""
    record = {
        "conversations": [
            {"from": "human", "value": "Find"},
            {
                "from": "gpt",
                "value": "<tool_call>{'arguments': {'what': 'keys'}, 'name': 'find'}</tool_call>",
            },
        ],
        "tools": json.dumps([{"type": "function", "function": FIND}]),
    }
    made = prepared(tmp_path, record)
    (text,) = texts(made)
    call = '<tool_call>\n{"name": "find", "arguments": {"what": "keys"}}\n</tool_call>'
    assert call in text
    assert "'arguments'" not in text


def test_a_row_that_loses_its_call_with_its_first_exchange_counts_as_what_is_left(
    tmp_path: Path,
) -> None:
    """Kept and labelled as it now stands: tools on offer, an answer in words."""
    record = calling("key " * 30)
    record["messages"] += [
        {"role": "tool", "content": "by the door"},
        {"role": "assistant", "content": "By the door."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Any time."},
    ]
    whole_length = len(prepared(tmp_path, record).rows[0].rendered.token_ids)
    made = prepared(tmp_path, record, max_length=whole_length - 1)
    assert made.shortened == 1
    assert [(row.kind, row.calls) for row in made.rows] == [("no_call", ((),))]
