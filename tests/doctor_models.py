"""What the doctor's tests share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fake_server import FakeServer
from tiny_models import tiny_tokenizer

Serve = Callable[..., FakeServer]
"""`serve(served_template=..., write=..., **server)`."""


def save_folder(folder: Path, template: str) -> Path:
    """A model folder: tokenizer and template are all that the doctor reads."""
    tiny_tokenizer(template=template).save_pretrained(folder)
    return folder
