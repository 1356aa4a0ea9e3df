"""Every record is kept or has one line in the ledger, whatever is broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import smollora
from small_sets import FIND, calling, said, small_renderer
from smollora.config import PrepareSection, SourceSection
from smollora.data.ledger import read_ledger, write_ledger
from smollora.data.overlap import Overlap
from smollora.data.prepared import read_prepared
from smollora.data.sources.files import LINE_LIMIT
from smollora.data.tasks import Counts, prepare_set
from smollora.errors import DataError
from smollora.types import EvalCase, Message

REMOTE = {"name": "find", "parameters": {"properties": {"what": {"$ref": "https://x.example/s"}}}}


def broken_rows() -> list[tuple[bytes, str]]:
    """Rows broken by hand, and the reason that a person would give."""

    def line(record: Any) -> bytes:
        return json.dumps(record).encode()

    unknown = calling("keys")
    unknown["messages"][1]["tool_calls"][0]["name"] = "search"
    unanswered = calling("keys")
    unanswered["messages"] += [
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Hm."},
    ]
    wrong = calling("keys")
    wrong["messages"][1]["tool_calls"][0]["arguments"] = {"what": 5}
    uncalled = said("Find", "At the door.", tools=(FIND,))
    uncalled["messages"].insert(1, {"role": "tool", "content": "door"})
    deep = b"[" * 1000 + b"]" * 1000
    nested = line(calling("keys")).replace(b'{"what": "keys"}', b'{"what": ' + deep + b"}")
    late = said("Find", "Here.", tools=(FIND,))
    late["messages"][1]["content"] = (
        '<tool_call>{"name": "find", "arguments": {"what": "a"}}</tool_call> Done.'
    )
    return [
        (b'{"messages": [', "bad_json"),
        (b'{"messages": "\xff\xfe"}', "bad_unicode"),
        (b'{"text": "' + b"x" * LINE_LIMIT + b'"}', "line_too_long"),
        (line({"prompt": "Hi", "completion": "Hello"}), "unknown_form"),
        (
            line(said("Hi", "Hello", tools=({"name": "f", "parameters": {"type": "thing"}},))),
            "bad_schema",
        ),
        (line({**calling("a"), "tools": [REMOTE]}), "remote_reference"),
        (nested, "too_deep"),
        (line(unknown), "unknown_tool"),
        (line(unanswered), "call_without_result"),
        (line(wrong), "arguments_break_schema"),
        (line(uncalled), "result_without_call"),
        (line(late), "text_after_call"),
        (line(said("Hi")), "no_answer"),
        (b'["Hi", "Hello"]', "not_an_object"),
    ]


def prepared(folder: Path, lines: list[bytes], **keys: Any) -> tuple[Counts, list[dict[str, Any]]]:
    (folder / "mine.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    overlap = keys.pop("against", None)
    source = SourceSection(name="mine", path=str(folder / "mine.jsonl"), kind="tool")
    section = PrepareSection(sources=(source,), **{"shard_rows": 4, **keys})
    renderer = small_renderer(folder)
    counts = prepare_set(section, renderer, folder / "set", seed=7, overlap=overlap)
    return counts, read_ledger(folder / "set" / "rejected.parquet")


def changed(folder: Path) -> list[tuple[int, str]]:
    found = read_ledger(folder / "set" / "changed.parquet")
    return [(entry["row"], entry["reason"]) for entry in found]


def test_rows_broken_by_hand_are_each_named_rightly_and_the_sums_add_up(tmp_path: Path) -> None:
    broken = broken_rows()
    lines: list[bytes] = []
    expected = []
    for number, (line, reason) in enumerate(broken):
        lines += [json.dumps(said(f"How many is {number}?", f"It is {number}.")).encode(), line]
        expected.append((len(lines), reason))
    counts, rejected = prepared(tmp_path, lines)
    assert [(entry["row"], entry["reason"]) for entry in rejected] == expected
    assert all(entry["source"] == "mine" and entry["detail"] for entry in rejected)
    kept = {row.row for row in read_prepared(tmp_path / "set" / "rows")}
    assert kept == set(range(1, len(lines), 2))
    assert counts.rows_in == len(lines) == len(kept) + len(rejected)
    assert counts.rejected == {reason: 1 for _, reason in sorted(broken, key=lambda b: b[1])}
    assert counts.forms == {"mine: messages": len(kept)}


@pytest.mark.parametrize("reason", [reason for _, reason in broken_rows()])
def test_strict_stops_at_the_row_and_says_why(reason: str, tmp_path: Path) -> None:
    (line,) = (line for line, named in broken_rows() if named == reason)
    good = json.dumps(said("Hi", "Hello")).encode()
    with pytest.raises(DataError, match=f"row 2 of mine: {reason}"):
        prepared(tmp_path, [good, line, good], strict=True)


def test_what_was_changed_in_a_kept_row_is_told_and_nothing_of_a_rejected_one(
    tmp_path: Path,
) -> None:
    twice = calling("keys")
    twice["messages"][1]["tool_calls"][0]["arguments"] = json.dumps(json.dumps({"what": "keys"}))
    wrong = calling("hat")
    wrong["messages"][1]["tool_calls"][0]["arguments"] = json.dumps(json.dumps({"what": 5}))
    plain = said("What is up?", "Not much.")
    lines = [json.dumps(row).encode() for row in (plain, twice, wrong)]
    counts, rejected = prepared(tmp_path, lines)
    assert changed(tmp_path) == [(2, "arguments_decoded")]
    assert counts.changed == {"arguments_decoded": 1}
    assert [entry["row"] for entry in rejected] == [3]


LONG = (
    "I am looking for a quiet place near the old harbour where the four of us could sit outside on"
    " a Sunday evening in June and eat fish that was caught on the same day."
)


def repeating() -> list[bytes]:
    near = said(LONG.replace("quiet", "calm"), "Try the quay.")
    longer = said(LONG, "Try the quay.", "Is it dear?", "No.")
    others = said("What is the tallest mountain of Portugal?", "Pico.")
    rows = [said(LONG, "Try the quay."), others, said(LONG, "Try the quay."), near, longer]
    return [json.dumps({**row, "id": "same"}).encode() for row in rows]


def test_equal_rows_and_near_ones_leave_one_that_stays(tmp_path: Path) -> None:
    counts, rejected = prepared(tmp_path, repeating(), near_duplicate_threshold=0.7)
    assert [(entry["row"], entry["reason"]) for entry in rejected] == [
        (1, "near_duplicate"),
        (3, "duplicate"),
        (4, "near_duplicate"),
    ]
    assert rejected[0]["detail"] == "the beginning of row 5 of mine"
    assert rejected[1]["detail"] == "the same as row 1 of mine"
    assert rejected[2]["detail"].endswith("the same as row 5 of mine")
    rows = read_prepared(tmp_path / "set" / "rows")
    assert [row.row for row in rows] == [2, 5]
    assert counts.rows_in == len(rows) + len(rejected)
    assert counts.tokens == sum(len(row.rendered.token_ids) for row in rows)
    assert changed(tmp_path) == [(2, "id_repeated"), (5, "id_repeated")]


def test_filters_can_report_or_be_off(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"duplicates": "report", "near_duplicates": "off"}
    counts, rejected = prepared(tmp_path, repeating(), **keys)
    assert rejected == []
    assert counts.rows_rendered == 5
    assert (3, "duplicate_kept") in changed(tmp_path)
    counts, rejected = prepared(tmp_path, repeating(), duplicates="off", near_duplicates="off")
    assert (rejected, changed(tmp_path), counts.changed) == ([], [], {})


def test_rows_with_an_evaluations_question_are_rejected_or_reported(tmp_path: Path) -> None:
    case = EvalCase("case-9", "own", (Message("user", "What is the tallest mountain of Portugal"),))
    _, rejected = prepared(tmp_path, repeating()[:2], against=Overlap([case]))
    assert [(entry["row"], entry["reason"]) for entry in rejected] == [(2, "evaluation_prompt")]
    assert "case-9" in rejected[0]["detail"]
    against = Overlap([case], remove=False)
    _, rejected = prepared(tmp_path, repeating()[:2], against=against)
    assert rejected == []
    assert (2, "evaluation_prompt_kept") in changed(tmp_path)


def test_every_reason_that_the_code_gives_is_explained() -> None:
    """Slugs are read off the source: a new one without a line in the documents fails here."""
    root = Path(smollora.__file__).parent / "data"
    text = "".join(path.read_text() for path in root.rglob("*.py"))
    given = r"(?:Refused|notes\.add)\(\s*\"([a-z_0-9]+)\"|Undecodable\([^()]*\"([a-z_]+)\"\)"
    slugs = {one or two for one, two in re.findall(given, text)}
    assert {"bad_json", "bad_call", "too_deep", "line_too_long", "arguments_decoded"} <= {
        *slugs,
        "bad_json",
    }
    page = (root.parents[2] / "docs" / "data.md").read_text()
    assert sorted(slug for slug in slugs if f"`{slug}`" not in page) == []


def test_when_nothing_is_left_the_ledger_still_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 rows is left"):
        prepared(tmp_path, [b"{", b"["])
    assert len(read_ledger(tmp_path / "set" / "rejected.parquet")) == 2


def test_a_ledger_is_written_in_pieces_and_read_back(tmp_path: Path) -> None:
    entries = [
        {"source": "a", "row": n, "reason": "even" if n % 2 == 0 else "odd", "detail": f"№ {n}"}
        for n in range(10_000)
    ]
    counts = write_ledger((dict(entry, more=1) for entry in entries), tmp_path / "l.parquet")
    assert counts == {"even": 5000, "odd": 5000}
    assert read_ledger(tmp_path / "l.parquet") == entries
    assert write_ledger([], tmp_path / "l.parquet") == {}
    assert read_ledger(tmp_path / "l.parquet") == []
