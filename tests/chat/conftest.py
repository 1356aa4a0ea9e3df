"""A chat model without weights, tool files, and chats in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pseudo_terminal import PseudoTerminal

from smollora.templates.engine import load_shipped

HERE = Path(__file__).parent

TOOLS = '''
import time

def get_weather(city: str, days: int = 1) -> dict:
    """Get the weather of a city.

    Args:
        city: Name of the city.
        days: How many days ahead.
    """
    return {"city": city, "celsius": 21}

def leave_a_mark(path: str) -> str:
    """Write a file.

    Args:
        path: Where.
    """
    open(path, "w").close()
    return "written"

def fail(reason: str) -> str:
    """Raise.

    Args:
        reason: Why.
    """
    print("on the way", "to fail")
    raise ValueError(reason)

def flood() -> str:
    """Return 10 MB."""
    return "x" * 10_000_000

def hang() -> str:
    """Never end."""
    while True:
        time.sleep(1)

def give_up() -> str:
    """Leave the process."""
    import os
    os._exit(3)

def _hidden(x): ...
'''

CALL = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def call_text(name: str, **arguments: Any) -> str:
    """What a model writes to call a tool."""
    return CALL.format(name=name, arguments=json.dumps(arguments))


def write_chat_model(folder: Path, template: str | None, context: int = 4096) -> Path:
    """A folder that can be opened for a chat, with an empty file for weights."""
    from tiny_models import tiny_tokenizer

    tiny_tokenizer(template=template).save_pretrained(folder)
    config = {"model_type": "llama", "max_position_embeddings": context, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").touch()
    return folder


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


Start = Callable[..., PseudoTerminal]


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
