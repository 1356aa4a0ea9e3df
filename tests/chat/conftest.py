"""A chat model without weights, tool files, and chats in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_parts import HERE, TOOLS, Start, write_chat_model
from pseudo_terminal import PseudoTerminal

from smollora.templates.engine import load_shipped


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model", load_shipped("chatml_tools"))


@pytest.fixture(scope="session")
def tool_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(TOOLS, encoding="utf-8")
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For a chat in a process of its own: no colour, a cache folder of the test's."""
    path = os.pathsep.join([str(HERE), *sys.path])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TERM": "dumb",
        "SMOLLORA_CACHE": str(tmp_path / "cache"),
    }


@pytest.fixture
def start(tmp_path: Path, chat_model: Path, environment: dict[str, str]) -> Iterator[Start]:
    """`start(["Hello."], "--tools", file)`: a chat with those answers, in a pseudo-terminal."""
    running: list[PseudoTerminal] = []

    def started(
        answers: Sequence[Any], *arguments: object, columns: int = 80, **env: str
    ) -> PseudoTerminal:
        script = tmp_path / "script.json"
        script.write_text(json.dumps(answers), encoding="utf-8")
        program = [sys.executable, str(HERE / "scripted_chat.py"), str(script), str(chat_model)]
        terminal = PseudoTerminal(
            [*program, *map(str, arguments)],
            env={**environment, **env},
            columns=columns,
            cwd=str(tmp_path),
        )
        running.append(terminal)
        return terminal

    yield started
    for terminal in running:
        terminal.close()
