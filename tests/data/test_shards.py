"""Shards come whole or not at all, and are read a row group at a time."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from smollora.data import prepared, shards
from smollora.data.prepared import read_prepared
from smollora.data.shards import PreparedRow, ShardWriter, drop_rows, tabulate, write_rows
from smollora.errors import DataError
from smollora.types import Rendered, ToolCall


def row(number: int, length: int = 5, source: str = "s") -> PreparedRow:
    """A row of `length` tokens, of which the last two are labelled."""
    rendered = Rendered(
        f"r{number}",
        tuple(range(number, number + length)),
        (-1, *(0,) * (length - 1)),
        (False,) * (length - 2) + (True, True),
    )
    call = ToolCall("f", {"a": [1, 2.5, None, True, "é\u2028"], "n": number})
    roles = ("user", "assistant")
    return PreparedRow(rendered, source, "tool", "call", roles, ((call,),), number, number % 2 == 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of 7 and 4 rows in row groups of 3."""
    monkeypatch.setattr(shards, "GROUP_ROWS", 3)
    write_rows([row(i, 3 + i) for i in range(7)], tmp_path / "00000.parquet")
    write_rows([row(i, 4, "t") for i in range(7, 11)], tmp_path / "00001.parquet")
    return tmp_path


ROWS = [row(i, 3 + i) for i in range(7)] + [row(i, 4, "t") for i in range(7, 11)]


def test_rows_come_back_across_row_groups_and_shards_as_they_went(folder: Path) -> None:
    rows = read_prepared(folder)
    assert len(rows) == 11
    assert list(rows) == ROWS
    assert [rows[index] for index in (10, 0, 7, 6, -1)] == [
        ROWS[index] for index in (10, 0, 7, 6, -1)
    ]
    assert rows[5:9] == ROWS[5:9]
    with pytest.raises(IndexError):
        rows[11]


def test_rows_are_taken_in_storage_order_each_group_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = prepared._rows_of
    monkeypatch.setattr(prepared, "_rows_of", lambda t: decoded.append(t.num_rows) or decode(t))
    taken = dict(read_prepared(folder).take([9, 0, 8, 2, 1]))
    assert taken == {index: ROWS[index] for index in (0, 1, 2, 8, 9)}
    assert decoded == [3, 3]


def test_the_table_equals_that_of_the_rows_and_reads_no_token_column(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_prepared(folder)
    monkeypatch.setattr(prepared, "_rows_of", None)
    table, expected = rows.table, tabulate(ROWS)
    for name in ("source", "group", "kind", "length", "labelled"):
        assert list(getattr(table, name)) == list(getattr(expected, name)), name


def test_the_columns_can_be_read_without_smollora(folder: Path) -> None:
    read = pq.read_table(folder).to_pylist()
    assert [line["token_ids"] for line in read] == [list(r.rendered.token_ids) for r in ROWS]
    assert [line["trained"] for line in read] == [list(r.rendered.trained) for r in ROWS]
    assert [line["length"] for line in read] == [len(r.rendered.token_ids) for r in ROWS]
    assert [line["labelled"] for line in read] == [2] * 11


def test_a_shard_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "00000.parquet") as writer:
            writer.add([row(1)])
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_record_can_be_taken_out_of_a_shard_twice_with_one_result(folder: Path) -> None:
    path = folder / "00000.parquet"
    assert drop_rows(path, [2, 5]) == 2
    once = path.read_bytes()
    assert list(read_prepared(path)) == [r for r in ROWS[:7] if r.row not in (2, 5)]
    assert drop_rows(path, [2, 5]) == 0
    assert list(read_prepared(path)) == [r for r in ROWS[:7] if r.row not in (2, 5)]
    assert len(once) > 0


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", None])
def test_a_broken_or_absent_shard_says_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rows.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet") as caught:
        read_prepared(path)
    assert "prepare" in caught.value.hint


def test_an_empty_folder_is_no_prepared_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards"):
        read_prepared(tmp_path)
