"""`smollora doctor`: verdict first, exit codes, and what happens to servers that misbehave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor_models import Serve
from fake_server import FakeServer
from smollora.types import EvalCase
from tiny_runs import Ended, smollora

Doctor = Callable[..., Ended]


@pytest.fixture
def file(tmp_path: Path, few: list[EvalCase]) -> Path:
    """Twelve of the conversations, as a file of cases."""
    path = tmp_path / "cases.jsonl"
    rows = []
    for case in [case for case in few if all(m.role == "user" for m in case.messages)][:12]:
        rows.append(
            {
                "id": case.id,
                "category": case.category,
                "messages": [{"role": m.role, "content": m.content} for m in case.messages],
                "tools": [tool.as_openai() for tool in case.tools],
                "expected": [
                    {"name": c.name, "arguments": dict(c.arguments)} for c in case.expected
                ],
            }
        )
    assert len(rows) == 12
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def doctor(server: FakeServer | str, folder: Path, file: Path, *flags: object) -> Ended:
    url = server if isinstance(server, str) else server.url
    return smollora("doctor", folder, "--endpoint", url, "--cases", file, *flags)


def one_message(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    heads = [line for line in ended.err.splitlines() if line.startswith(("error", "fell short"))]
    assert len(heads) == 1, ended.err
    for word in (*words, "hint: "):
        assert word in ended.err


def test_a_sound_server_exits_with_0_and_the_verdict_first(
    serve: Serve, folder: Path, file: Path
) -> None:
    with serve() as server:
        ended = doctor(server, folder, file)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0] == "verdict: nothing wrong"
    assert "prompts served as rendered: 12 of 12" in ended.out


def test_a_fault_exits_with_1_and_says_what_to_type(serve: Serve, folder: Path, file: Path) -> None:
    with serve(parser="mistral") as server:
        ended = doctor(server, folder, file)
        quiet = doctor(server, folder, file, "--quiet")
    assert ended.out.splitlines()[0] == "verdict: parser"
    assert "fix: start the server with --enable-auto-tool-choice --tool-call-parser hermes" in (
        ended.out
    )
    assert "parser lost" in ended.out
    one_message(ended, 1, "parser: ", "--tool-call-parser hermes")
    assert quiet.out == "verdict: parser\n"


def test_json_holds_the_verdict_the_findings_and_the_counts(
    serve: Serve, folder: Path, file: Path
) -> None:
    with serve(parser="mistral") as server:
        ended = doctor(server, folder, file, "--json")
    found = json.loads(ended.out)
    assert ended.code == 1
    assert found["verdict"] == "parser"
    assert found["findings"][0]["cause"] == "lost"
    assert found["findings"][0]["token_ids"]
    assert found["outcomes"]["complete"]["parser lost"] == found["wanting_a_call"]


def test_limit_spreads_over_the_cases(serve: Serve, folder: Path, file: Path) -> None:
    with serve() as server:
        found = json.loads(doctor(server, folder, file, "--limit", 4, "--json").out)
    assert (found["conversations"], found["wanting_a_call"]) == (4, 2)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────


def test_nobody_there_is_one_message(folder: Path, file: Path) -> None:
    one_message(doctor("http://127.0.0.1:9", folder, file), 2, "cannot be reached")


def test_a_wrong_model_name_lists_those_there_are(serve: Serve, folder: Path, file: Path) -> None:
    with serve() as server:
        one_message(
            doctor(server, folder, file, "--served-model", "other"),
            2,
            "offers no model other",
            "fake",
        )


@pytest.mark.parametrize(
    ("trouble", "word", "seconds"),
    [
        ("html", "text/html, not JSON", 60),
        ("500", "engine is dead", 60),
        ("slow", "said nothing for 1 s", 1),
        ("endless", "still sends after 2 s", 2),
        ("json", "JSON of another shape", 60),
    ],
)
def test_a_server_that_never_answers_well_gives_no_verdict(
    serve: Serve, folder: Path, file: Path, trouble: str, word: str, seconds: int
) -> None:
    def after_hello(path: str, count: int) -> str:
        return "" if path == "/v1/models" else "drip" if trouble == "endless" else trouble

    with serve(trouble=after_hello) as server:
        ended = doctor(server, folder, file, "--timeout", seconds)
    assert "verdict" not in ended.out
    one_message(ended, 2, word)


def test_truncated_streams_are_harness_errors_and_no_fault_of_the_model(
    serve: Serve, folder: Path, file: Path
) -> None:
    with serve(trouble=lambda path, count: "truncated") as server:
        ended = doctor(server, folder, file, "--json")
    found = json.loads(ended.out)
    assert ended.code == 1
    assert found["verdict"] == "nothing wrong"
    assert found["harness_errors"] == {"truncated_stream": 12}
    assert found["outcomes"]["streamed"] == {"harness error": 12}
    one_message(ended, 1, "truncated_stream")


def test_a_few_errors_stand_beside_the_rates(serve: Serve, folder: Path, file: Path) -> None:
    with serve(trouble=lambda path, count: "500" if count in (5, 9) else "") as server:
        found = json.loads(doctor(server, folder, file, "--json", "--concurrency", 1).out)
    assert found["harness_errors"] == {"server_error": 2}
    assert found["verdict"] == "nothing wrong"
    words = [word for counts in found["outcomes"].values() for word in counts]
    assert set(words) == {"call", "silent", "harness error"}


def test_a_broken_row_of_cases_is_named(serve: Serve, folder: Path, file: Path) -> None:
    with file.open("a", encoding="utf-8") as more:
        more.write('{"id": "x", "messages": 3}\n')
    with serve() as server:
        one_message(doctor(server, folder, file), 2, "row 13", "cases.jsonl")


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "no role is called 'robot'"),
        ({"messages": [{"role": "user", "content": [1]}]}, "no text"),
        ({"messages": [{"role": "assistant", "content": "!"}]}, "ends with the assistant"),
        ({"expected": [{"name": "f", "arguments": 3}]}, "arguments of f"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    folder: Path, file: Path, row: dict[str, object], word: str
) -> None:
    asked = {"id": "odd", "category": "c", "messages": [{"role": "user", "content": "?"}]}
    with file.open("a", encoding="utf-8") as more:
        more.write(json.dumps({**asked, **row}) + "\n")
    one_message(doctor("http://127.0.0.1:9", folder, file), 2, "row 13", word)


def test_a_model_folder_that_is_none_is_one_message(
    serve: Serve, tmp_path: Path, file: Path
) -> None:
    with serve() as server:
        one_message(doctor(server, tmp_path / "nothing", file), 2, "no model folder")
        empty = tmp_path / "empty"
        empty.mkdir()
        one_message(doctor(server, empty, file), 2, "tokenizer")


@pytest.mark.parametrize("flag", ["--limit", "--max-tokens", "--timeout", "--concurrency"])
def test_numbers_below_one_are_refused(folder: Path, file: Path, flag: str) -> None:
    one_message(doctor("http://127.0.0.1:9", folder, file, flag, 0), 2, flag)
