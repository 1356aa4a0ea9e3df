"""Files of a run: written whole or not at all, and marked last."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollora.errors import DataError, SmolloraError
from smollora.runs import (
    hash_file,
    hash_of,
    is_done,
    mark_done,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_whole,
)

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""FIPS 180-2, appendix B.1."""


def failing(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(SmolloraError, match="No space left on device") as caught:
        write_whole(path, "new")
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 2
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_killed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "summary.json"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", pressed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_is_renamed_has_reached_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*arguments: object, name: str = name, real: object = real) -> None:
            order.append(name)
            real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, noted)
    write_whole(tmp_path / "a", "x")
    assert order == ["fsync", "replace"]


def test_a_reader_beside_a_writer_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, [0] * 5000)
    stop = threading.Event()

    def write() -> None:
        for number in range(1, 200):
            write_json(path, [number] * 5000)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not stop.is_set():
        values = json.loads(path.read_text())
        assert len(values) == 5000
        assert len(set(values)) == 1
        seen += 1
    writer.join()
    assert seen


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "c", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"\x00\xff"


@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none())
    )
)
def test_rows_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    """A model may answer anything, line separators such as U+2028 and U+0085 among it."""
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_half_a_surrogate_pair_in_a_text_does_not_stop_the_writing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "x\ud800"})
    assert read_json(tmp_path / "a.json") == {"text": "x\ud800"}


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_file_of_a_stage_that_never_ran_is_named(tmp_path: Path, read: object) -> None:
    with pytest.raises(DataError, match=r"summary\.json is not there"):
        read(tmp_path / "summary.json")  # type: ignore[operator]


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_broken_file_of_a_stage_is_named(tmp_path: Path, read: object) -> None:
    (tmp_path / "rows").write_text('{"a": 1')
    with pytest.raises(DataError, match="rows is not valid JSON"):
        read(tmp_path / "rows")  # type: ignore[operator]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "empty") == EMPTY_SHA256
    assert hash_file(tmp_path / "abc") == ABC_SHA256


def test_a_hash_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})
    assert hash_of("a", "b") != hash_of("ab")
    assert hash_of(1) != hash_of("1")


def test_a_stage_is_done_with_its_own_inputs_only(tmp_path: Path) -> None:
    assert not is_done(tmp_path, "k")
    mark_done(tmp_path, "k")
    assert is_done(tmp_path, "k")
    assert not is_done(tmp_path, "other")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"k"', b'{"key": 1}', b"\xff"])
def test_a_damaged_marker_means_not_done(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".done").write_bytes(content)
    assert not is_done(tmp_path, "k")
