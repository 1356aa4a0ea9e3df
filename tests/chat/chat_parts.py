"""What the tests of the chat are made of: a model without weights, tools, and calls as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pseudo_terminal import PseudoTerminal

Start = Callable[..., PseudoTerminal]
"""`start(["Hello."], "--tools", file)`: a chat with those answers, in a pseudo-terminal."""
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
