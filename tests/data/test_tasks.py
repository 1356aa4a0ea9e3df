"""Tasks prepare what prepare in memory does; a killed one goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from small_sets import digests, renderer_files, said, small_renderer, small_section, tool_lines
from smollora.config import PrepareSection, SourceSection
from smollora.data import tasks
from smollora.data.ledger import read_ledger
from smollora.data.prepare import prepare_rows
from smollora.data.prepared import read_prepared
from smollora.data.sources import Undecodable, read_rows
from smollora.data.stretches import ShardTask, plan_file, plan_source, read_task, spool
from smollora.data.tasks import prepare_set, task_key
from smollora.errors import DataError
from smollora.runs import code_version


def rejected(folder: Path) -> list[dict[str, object]]:
    return read_ledger(folder / "rejected.parquet")


def test_tasks_keep_and_count_what_preparing_in_memory_does(tmp_path: Path) -> None:
    section, renderer = small_section(tmp_path), small_renderer(tmp_path)
    made = prepare_rows(section, renderer, seed=7)
    seen: list[int] = []
    counts = prepare_set(section, renderer, tmp_path / "set", seed=7, on_rows=seen.append)
    rows = read_prepared(tmp_path / "set" / "rows")
    assert list(rows) == list(made.rows)
    assert counts.rows_in == made.rows_in == 90 + 4 + 60
    assert counts.rows_in == len(made.rows) + sum((counts.rejected or {}).values())
    assert counts.rejected == {"bad_json": 4, "empty_turn": 3}
    assert counts.rows_rendered == len(rows)
    assert counts.tokens == sum(len(row.rendered.token_ids) for row in made.rows)
    assert counts.labelled_tokens == sum(sum(row.rendered.trained) for row in made.rows)
    assert seen == sorted(seen) and seen[-1] == counts.rows_in
    by_number = [(r.source, r.row, r.reason, r.detail) for r in made.rejects]
    assert [tuple(r.values()) for r in rejected(tmp_path / "set")] == sorted(by_number)
    assert len(list((tmp_path / "set" / "rows").iterdir())) == 5
    assert not (tmp_path / "set" / "work").exists()


def test_the_size_of_a_shard_changes_no_row(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)
    found = []
    for size in (7, 1000):
        section = small_section(tmp_path, shard_rows=size, negatives=0.5)
        prepare_set(section, renderer, tmp_path / str(size), seed=7)
        found.append(list(read_prepared(tmp_path / str(size) / "rows")))
    assert found[0] == found[1]


# ── which records a task holds ────────────────────────────────────────────────────────────────


def test_stretches_hold_so_many_records_and_cover_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n1\n22\n\n\n333\n4444\n \n5")
    assert list(plan_file(path, 2, None)) == [(0, 6, 1), (6, 17, 4), (17, 20, 8)]
    assert list(plan_file(path, 2, 3)) == [(0, 6, 1), (6, 12, 4)]
    assert list(plan_file(path, 2, 2)) == [(0, 6, 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_stretches_of_a_file_read_as_the_file_does(tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["", "1", '{"x', "[2]", "", "", "NaNa", '"5"']) + "\n")
    source = SourceSection(name="s", path=str(path), kind="tool")

    def shown(rows: object) -> list[object]:
        assert isinstance(rows, list)
        return [(n, r.detail if isinstance(r, Undecodable) else r) for n, r in rows]

    found = [
        item
        for task in plan_source(0, source, path, 0, size)
        for item in read_task(task, tmp_path / "work")
    ]
    assert shown(found) == shown(list(read_rows(path)))
    assert not list((tmp_path / "work").rglob("*.jsonl"))


def test_spooled_records_read_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "spooled.jsonl"
    records = [(1, {"a": "é\ud83d", "b": [None, 1.5]}), (3, Undecodable("line 3: no")), (4, None)]
    spool(records, path)
    task = ShardTask(0, 0, str(path), 0, path.stat().st_size, 1, spooled=True)
    found = list(read_task(task, tmp_path))
    assert [number for number, _ in found] == [1, 3, 4]
    assert found[0] == records[0] and found[2] == records[2]
    assert isinstance(found[1][1], Undecodable) and found[1][1].detail == "line 3: no"


def test_a_limit_holds_across_shards(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(tool_lines(50)))
    source = SourceSection(name="a", path=str(tmp_path / "a.jsonl"), kind="tool", limit=23)
    section = PrepareSection(sources=(source,), shard_rows=10)
    counts = prepare_set(section, small_renderer(tmp_path), tmp_path / "set", seed=7)
    assert counts.rows_in == 23
    assert len(list((tmp_path / "set" / "rows").iterdir())) == 3


# ── killed and started again ──────────────────────────────────────────────────────────────────

CHILD = """
import sys, time
from pathlib import Path
from smollora.config import PrepareSection
from smollora.data import prepare
from smollora.data.tasks import prepare_set
from smollora.data.worker import RendererFiles
from smollora.tokens import TokenFacts

folder, section, facts = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
prepare.BATCH = 8
template = (folder / "template.jinja").read_text()
files = RendererFiles(
    template, TokenFacts.model_validate_json(facts.read_text()), str(folder / "tokenizer.json")
)

def tell(rows):
    print(rows, flush=True)
    time.sleep(0.02)

prepare_set(
    PrepareSection.model_validate_json(section.read_text()),
    files.load(), folder / "killed", seed=7, on_rows=tell,
)
"""


def test_a_prepare_that_was_killed_goes_on_and_leaves_the_same_files_nothing_twice(
    tmp_path: Path,
) -> None:
    section = small_section(tmp_path, tools=150, general=150, duplicates="remove", negatives=0.3)
    files = renderer_files(tmp_path)
    prepare_set(section, files.load(), tmp_path / "whole", seed=7)
    (tmp_path / "template.jinja").write_text(files.template)
    (tmp_path / "section.json").write_text(section.model_dump_json())
    (tmp_path / "facts.json").write_text(files.facts.model_dump_json())
    arguments = [str(tmp_path), str(tmp_path / "section.json"), str(tmp_path / "facts.json")]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 140:  # in the middle of the fifth of ten tasks
            os.kill(child.pid, signal.SIGKILL)
            break
    assert child.wait(60) == -signal.SIGKILL
    killed = tmp_path / "killed"
    finished = sorted((killed / "work" / "counts").iterdir())
    assert 0 < len(finished) < 10
    assert not (killed / "rejected.parquet").exists()
    before = {
        path.stem: (killed / "rows" / f"{path.stem}.parquet").stat().st_mtime_ns
        for path in finished[:2]  # tool rows, of which no duplicate goes
    }
    again: list[int] = []
    prepare_set(section, files.load(), killed, seed=7, on_rows=again.append)
    assert digests(killed) == digests(tmp_path / "whole")
    assert again[0] > 32 * len(finished) - 32, "finished tasks are not done again"
    after = {stem: (killed / "rows" / f"{stem}.parquet").stat().st_mtime_ns for stem in before}
    assert after == before


def test_a_killed_prepare_of_other_rows_is_not_gone_on_with(tmp_path: Path) -> None:
    section, renderer = small_section(tmp_path), small_renderer(tmp_path)
    place = tasks.Workplace(tmp_path / "set")
    place.open(task_key(section, renderer, seed=7, code=""))
    place.rows.mkdir(parents=True)
    place.shard(9).write_bytes(b"of another run")
    (place.work / "counts").mkdir()
    place.counts(0).write_text("{}")
    os.utime(tmp_path / "a.jsonl", (1, 1))
    prepare_set(section, renderer, tmp_path / "set", seed=7)
    prepare_set(section, renderer, tmp_path / "fresh", seed=7)
    assert digests(tmp_path / "set") == digests(tmp_path / "fresh")


def test_the_key_of_the_tasks_knows_rows_template_tokenizer_recipe_and_code(
    tmp_path: Path,
) -> None:
    section, renderer = small_section(tmp_path), small_renderer(tmp_path)

    def key(**keys: object) -> str:
        changed = section.model_copy(update=keys)
        return task_key(changed, renderer, seed=7, code="one")

    first = key()
    assert key(engine="in_process", workers=3) == first
    assert key(max_length=100) != first
    assert task_key(section, renderer, seed=8, code="one") != first
    assert task_key(section, renderer, seed=7, code="two") != first
    facts = renderer.facts.model_copy(update={"template_sha256": "other"})
    object.__setattr__(renderer, "facts", facts)
    assert key() != first
    (tmp_path / "a.jsonl").write_text("\n".join(tool_lines(3)))
    assert len(code_version()) == 64


# ── duplicates ────────────────────────────────────────────────────────────────────────────────


def test_repeated_conversations_are_dropped_across_shards_and_sources_and_counted(
    tmp_path: Path,
) -> None:
    renderer = small_renderer(tmp_path)
    for name, rows in (("a", ["x", "y", "x"]), ("b", ["z", "y", "z"])):
        lines = [json.dumps({**said(f"{t}?", t), "id": f"{name}{i}"}) for i, t in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = tuple(
        SourceSection(name=name, path=str(tmp_path / f"{name}.jsonl"), kind="general")
        for name in "ab"
    )
    section = PrepareSection(sources=sources, shard_rows=2, duplicates="remove")
    counts = prepare_set(section, renderer, tmp_path / "set", seed=7)
    rows = read_prepared(tmp_path / "set" / "rows")
    assert [row.rendered.conversation_id for row in rows] == ["a0", "a1", "b0"]
    assert [(r["source"], r["row"], r["detail"]) for r in rejected(tmp_path / "set")] == [
        ("a", 3, "the same as row 1 of a"),
        ("b", 2, "the same as row 2 of a"),
        ("b", 3, "the same as row 1 of b"),
    ]
    assert (counts.rows_in, counts.rows_rendered) == (6, 3)
    assert counts.rejected == {"duplicate": 3}
    assert counts.tokens == sum(rows.table.length)
    assert counts.labelled_tokens == sum(rows.table.labelled)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


def test_what_holds_no_rows_is_named_and_nothing_left_says_why(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)

    def over(content: bytes, name: str = "a.jsonl") -> None:
        (tmp_path / name).write_bytes(content)
        source = SourceSection(name="mine", path=str(tmp_path / name), kind="tool")
        prepare_set(PrepareSection(sources=(source,)), renderer, tmp_path / "set", seed=7)

    with pytest.raises(DataError, match="is empty"):
        over(b"")
    with pytest.raises(DataError, match=r"source mine .* holds no rows"):
        over(b"\n\n \n")
    with pytest.raises(DataError, match="none of 2 rows is left: 1 bad_json, 1 no_answer"):
        over(b'{"messages": [{"role": "user", "content": "?"}]}\n{\n')
    with pytest.raises(DataError, match="is not there"):
        source = SourceSection(name="mine", path=str(tmp_path / "none.jsonl"), kind="tool")
        prepare_set(PrepareSection(sources=(source,)), renderer, tmp_path / "set", seed=7)


def test_strict_stops_and_names_the_row_of_the_whole_file(tmp_path: Path) -> None:
    section = small_section(tmp_path, shard_rows=2, strict=True)
    lines = [json.dumps(said("1?", "1"))] * 5 + ["{"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"row 6 of a: bad_json: line 6:"):
        prepare_set(section, small_renderer(tmp_path), tmp_path / "set", seed=7)


def test_a_full_disk_says_so_and_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left") as caught:
        prepare_set(small_section(tmp_path), small_renderer(tmp_path), tmp_path / "set", seed=7)
    assert type(caught.value).__name__ == "SmolloraError"
    assert not list((tmp_path / "set").rglob("*.parquet"))
