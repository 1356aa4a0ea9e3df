"""A server's life: waited for, stopped whole, whatever ends it. The server here is a fake."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_vllm import (
    child_of_tests,
    free_port,
    hear_signals,
    is_alive,
    read_pids,
    write_python,
)
from smollora.errors import SmolloraError
from smollora.serve.ask import ask_once, curl_line, openai_lines
from smollora.serve.machine import choose_port
from smollora.serve.process import running, wait_for_health
from smollora.templates.engine import load_shipped
from test_serve_plan import write_folder
from tiny_models import tiny_tokenizer

LONG = 60.0
"""Seconds after which a wait in these tests has failed."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_python(tmp_path_factory.mktemp("env"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write_folder(folder, tiny_tokenizer(), load_shipped("chatml_tools"))


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "pids"
    folder.mkdir()
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(folder))
    yield folder
    for pid in read_pids(folder).values():
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def until(happens: object, what: str) -> None:
    """Wait until `happens()` is true."""
    assert callable(happens)
    ends = time.monotonic() + LONG
    while not happens():
        assert time.monotonic() < ends, f"not within {LONG:g} s: {what}"
        time.sleep(0.05)


def nothing_is_left(pids: Path) -> bool:
    left = read_pids(pids)
    return len(left) == 2 and not any(is_alive(pid) for pid in left.values())


def command(python: Path, port: int) -> list[str]:
    server = ["-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "tiny"]
    return [str(python), *server, "--port", str(port)]


# ── in this process ───────────────────────────────────────────────────────────────────────────


def test_a_server_is_waited_for_asked_and_gone_afterwards(
    python: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "slow")  # health says 503 for two seconds
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    seen: list[str] = []
    with running(command(python, port), tmp_path / "log") as server:
        took = wait_for_health(server, url, "tiny", seconds=LONG, say=lambda _, s: seen.append(s))
        assert took > 1.5
        assert any("loading" in line for line in seen), "progress shows the log's last line"
        answer = ask_once(url, "tiny")
        assert answer.called
        assert json.loads(answer.calls[0]["function"]["arguments"]) == {"city": "Oslo"}
        assert all(is_alive(pid) for pid in read_pids(pids).values())
        assert read_pids(pids)["server"] == server.pid
    assert nothing_is_left(pids)


def test_a_server_and_worker_that_do_not_listen_to_reason_are_killed(
    python: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    port = free_port()
    with running(command(python, port), tmp_path / "log", grace=0.5) as server:
        wait_for_health(server, f"http://127.0.0.1:{port}", "tiny", seconds=LONG)
    assert nothing_is_left(pids)


def test_an_early_death_is_told_with_the_last_lines_of_the_log(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "dies")
    port = free_port()
    with (
        pytest.raises(SmolloraError, match=r"(?s)exit code 3.*was told to die") as told,
        running(command(python, port), tmp_path / "log") as server,
    ):
        wait_for_health(server, f"http://127.0.0.1:{port}", "tiny", seconds=LONG)
    assert str(tmp_path / "log") in told.value.hint


def test_a_worker_does_not_outlive_a_server_that_ends_by_itself(
    python: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "ends stubborn")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(command(python, port), tmp_path / "log") as server:
        wait_for_health(server, url, "tiny", seconds=LONG)
        assert ask_once(url, "tiny").called
        assert server.wait_until_ended() == 1
        assert nothing_is_left(pids)


@pytest.mark.parametrize("mode", ["never", "hangs"])
def test_waiting_has_an_end_whether_the_server_never_listens_or_never_answers(
    mode: str, python: Path, pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", mode)
    port = free_port()
    with (
        pytest.raises(SmolloraError, match=r"not ready after 2 s") as told,
        running(command(python, port), tmp_path / "log", grace=2) as server,
    ):
        until(lambda: len(read_pids(pids)) == 2, "the fake server starts")
        wait_for_health(server, f"http://127.0.0.1:{port}", "tiny", seconds=2)
    assert "--timeout" in told.value.hint
    assert nothing_is_left(pids)


def test_another_server_on_the_port_is_not_taken_for_ours(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have come between the look at the port and the start."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(command(python, port), tmp_path / "other.log") as other:
        wait_for_health(other, url, "tiny", seconds=LONG)
        monkeypatch.setenv("FAKE_VLLM", "dies")
        with (
            pytest.raises(SmolloraError, match="exit code 3"),
            running(command(python, port), tmp_path / "log") as server,
        ):
            wait_for_health(server, url, "mine", seconds=LONG)


def test_a_command_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(SmolloraError, match="/no/python cannot be started"),
        running(["/no/python"], tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("words", 200, "It rains."),
        ("broken", 200, ""),
        ("error", 500, ""),
        ("html", 0, "not a chat completion"),
    ],
)
def test_a_smoke_call_that_brings_no_usable_call_says_what_came(
    mode: str,
    status: int,
    words: str,
    python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_VLLM", mode)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(command(python, port), tmp_path / "log") as server:
        wait_for_health(server, url, "tiny", seconds=LONG)
        answer = ask_once(url, "tiny")
    assert (answer.status, answer.called) == (status, False)
    assert words in answer.content
    assert ask_once(url, "tiny").status == 0, "a server that is gone is an answer as well"


def test_the_next_free_port_is_taken_and_a_taken_one_refused() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(SmolloraError, match=f"port {port} of 127.0.0.1 is taken"):
            choose_port("127.0.0.1", port)
        assert choose_port("127.0.0.1", None) != port
    with pytest.raises(SmolloraError, match="no address of this machine"):
        choose_port("203.0.113.7", 8000)
    with pytest.raises(SmolloraError, match="no port"):
        choose_port("127.0.0.1", 70000)


# ── the command, in a process of its own ──────────────────────────────────────────────────────


def start(
    python: Path, model: Path, port: int, *more: str, mode: str = "", heard: Any = None
) -> subprocess.Popen[str]:
    """`smollora serve` as a terminal starts it: the leader of a process group."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "smollora.cli", "serve", str(model), "--python", str(python)),
            *("--port", str(port), "--log", str(model.parent / f"{port}.log"), *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_of_tests(FAKE_VLLM=mode),
        start_new_session=True,
        preexec_fn=hear_signals if heard is None else heard,
    )


def read_until(started: subprocess.Popen[str], words: str) -> str:
    assert started.stdout is not None
    read = ""
    for line in started.stdout:
        read += line
        if words in line:
            return read
    raise AssertionError(read + (started.stderr.read() if started.stderr else ""))


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_ctrl_c_and_termination_stop_the_server_and_all_of_it(
    how: signal.Signals, code: int, python: Path, model: Path, pids: Path
) -> None:
    started = start(python, model, free_port())
    shown = read_until(started, "Ctrl-C stops it")
    assert "tool_calls came back: get_weather" in shown
    os.killpg(started.pid, how)  # as a terminal does
    _, said = started.communicate(timeout=LONG)
    assert (started.returncode, "Traceback" in said) == (code, False)
    assert nothing_is_left(pids)


def test_under_nohup_the_server_survives_the_terminal(
    python: Path, model: Path, pids: Path
) -> None:
    def as_nohup_does() -> None:
        hear_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    started = start(python, model, free_port(), heard=as_nohup_does)
    read_until(started, "Ctrl-C stops it")
    os.killpg(started.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(timeout=1)
    started.terminate()
    assert started.wait(timeout=LONG) == 143
    assert nothing_is_left(pids)


def test_nothing_is_left_when_smollora_itself_is_killed(
    python: Path, model: Path, pids: Path
) -> None:
    started = start(python, model, free_port())
    read_until(started, "Ctrl-C stops it")
    started.kill()
    started.wait(timeout=LONG)
    until(lambda: nothing_is_left(pids), "the server ends after kill -9 of smollora")


def test_ctrl_c_while_it_starts_stops_it_as_well(python: Path, model: Path, pids: Path) -> None:
    started = start(python, model, free_port(), mode="never")
    until(lambda: len(read_pids(pids)) == 2, "the fake server starts")
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=LONG)
    assert (started.returncode, "Traceback" in said) == (130, False)
    assert nothing_is_left(pids)


@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [
        ("", 0, "tool_calls came back: get_weather"),
        ("words", 1, "no tool_calls came back"),
        ("error", 1, "failed with 500"),
        ("dies", 2, "was told to die"),
    ],
)
def test_check_starts_asks_stops_and_tells_by_its_exit_code(
    mode: str, code: int, message: str, python: Path, model: Path
) -> None:
    started = start(python, model, free_port(), "--check", mode=mode)
    out, said = started.communicate(timeout=LONG)
    assert started.returncode == code, said
    assert message in out + said
    assert "Traceback" not in said


def test_as_json_one_line_says_where_it_is_and_what_came_back(python: Path, model: Path) -> None:
    port = free_port()
    started = start(python, model, port, "--check", "--json")
    out, said = started.communicate(timeout=LONG)
    found = json.loads(out)
    assert found["base_url"] == f"http://127.0.0.1:{port}"
    assert found["name"] == "tiny"
    assert found["tool_calls"][0]["function"]["name"] == "get_weather"
    assert said == ""


def test_a_taken_port_is_one_message_and_exit_2(python: Path, model: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        started = start(python, model, busy.getsockname()[1])
        _, said = started.communicate(timeout=LONG)
    assert started.returncode == 2
    assert "is taken" in said
    assert "leave --port out" in said


def test_the_printed_curl_line_is_the_smoke_call(python: Path, model: Path, tmp_path: Path) -> None:
    """Its quoting survives a shell; curl itself need not be there."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "curl").write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/curl.py "$@"\n')
    (tmp_path / "curl").chmod(0o755)
    (tmp_path / "curl.py").write_text(
        "import sys, urllib.request as u\n"
        "url, kind, body = sys.argv[2], sys.argv[4].partition(': ')[2], sys.argv[6]\n"
        "r = u.Request(url, data=body.encode(), headers={'Content-Type': kind})\n"
        "print(u.urlopen(r).read().decode())\n"
    )
    with running(command(python, port), tmp_path / "log") as server:
        wait_for_health(server, url, "tiny", seconds=LONG)
        done = subprocess.run(
            ["sh", "-c", curl_line(url, "tiny")],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
    assert "get_weather" in done.stdout, done.stderr
    compile(openai_lines(url, "tiny"), "lines", "exec")
