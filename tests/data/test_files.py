"""Files of every kind are read alike, and a broken one is counted or told of, never waited for."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smollora.config import SourceSection
from smollora.data.records import read_records
from smollora.data.sources import FromArrow, Undecodable, read_rows
from smollora.data.sources.files import LINE_LIMIT, PARQUET_ROWS
from smollora.errors import DataError

ROWS = [{"id": f"r{n}", "messages": [{"role": "user", "content": f"Łódź {n}"}]} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


KINDS: dict[str, bytes] = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": LINES,
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.zst": zstd(LINES),
    "two-members.jsonl.gz": gzip.compress(LINES[:37]) + gzip.compress(LINES[37:]),
    "two-frames.jsonl.zst": zstd(LINES[:37]) + zstd(LINES[37:]),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_come_out_of_every_kind_of_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[name])
    assert list(read_rows(tmp_path / name)) == list(enumerate(ROWS, 1))


def test_parquet_is_read_in_pieces_and_its_records_say_where_they_come_from(
    tmp_path: Path,
) -> None:
    many = [{"id": str(n), "messages": ROWS[0]["messages"]} for n in range(PARQUET_ROWS * 2 + 3)]
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "rows.parquet", row_group_size=100)
    found = list(read_rows(tmp_path / "rows.parquet"))
    assert found == list(enumerate(many, 1))
    assert all(isinstance(record, FromArrow) for _, record in found)


def test_a_cell_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    cells = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": cells}), tmp_path / "rows.parquet")
    one, two, three = (record for _, record in read_rows(tmp_path / "rows.parquet"))
    assert (one, three) == ({"text": "a"}, {"text": "c"})
    assert isinstance(two, Undecodable) and two.reason == "bad_unicode"


def test_a_folder_is_all_its_data_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "README.md").write_text("Not data.")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache.jsonl").write_text("Not data either.")
    assert list(read_rows(tmp_path)) == [(1, {"n": 1}), (2, {"n": 2})]


def test_a_line_past_the_limit_is_counted_and_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"n": 1}\n{"text": "')
        for _ in range(200):
            stream.write(b"x" * 2**20)
        stream.write(b'"}\n{"n": 3}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (_, first), (number, long), (_, last) = read_rows(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (first, last, number) == ({"n": 1}, {"n": 3}, 2)
    assert isinstance(long, Undecodable) and long.reason == "line_too_long"
    assert f"{200 * 2**20 + 13:,} bytes" in long.detail
    assert grown < 4 * LINE_LIMIT / 1024, f"{grown} KiB for a line of 200 MiB"


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "x" * (LINE_LIMIT - len('{"t": ""}'))
    path.write_text(f'{{"t": "{text}"}}\n{{"t": "{text}xx"}}')
    (_, whole), (_, over) = read_rows(path)
    assert whole == {"t": text}
    assert isinstance(over, Undecodable)


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(LINES)[:-9], "cannot be read to its end"),
    "cut.jsonl.zst": (zstd(LINES)[:-4], "cannot be read to its end"),
    "plain.jsonl.gz": (LINES, "cannot be read to its end"),
    "no.parquet": (b"PAR1 no more", "cannot be read as Parquet"),
    "rows.csv": (b"a,b\n", "no kind of data file"),
    "rows.json": (b'[{"a": 1}', "not valid JSON"),
    "one.json": (b'{"a": 1}', "no list of rows"),
    "empty.jsonl": (b"", "is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_broken_as_a_whole_is_one_message(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert name in str(caught.value)
    assert caught.value.hint


def test_an_empty_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data files"):
        list(read_rows(tmp_path))


# ── the Hub's library, on a local data set ────────────────────────────────────────────────────


def hub(path: Path, **more: Any) -> list[Any]:
    pytest.importorskip("datasets", reason="the extra hub is not installed")
    source = SourceSection(name="mine", path=f"hub:{path}", kind="tool", **more)
    return list(read_records(source, 7))


def test_a_data_set_of_the_hub_is_streamed_by_name_and_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"of": "{split}"}}\n{{"of": "{split}"}}\n')
    assert hub(tmp_path) == [(1, {"of": "train"}), (2, {"of": "train"})]
    assert hub(tmp_path, split="test", limit=1) == [(1, {"of": "test"})]
    with pytest.raises(DataError, match="split none") as caught:
        hub(tmp_path, split="none")
    assert "`split`" in caught.value.hint


def test_without_the_library_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    source = SourceSection(name="mine", path="hub:some/set", kind="tool")
    with pytest.raises(DataError) as caught:
        list(read_records(source, 7))
    assert "smollora[hub]" in caught.value.hint
