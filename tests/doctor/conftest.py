"""A model folder, its scripted model and conversations for the doctor's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from doctor_models import Serve, ServedTokenizer, save_folder
from fake_server import FakeServer
from served_model import Scripted, Write, canonical
from smollora.doctor import choose_cases
from smollora.evaluate.cases import starter_cases
from smollora.templates.engine import load_shipped
from smollora.types import EvalCase


@pytest.fixture(scope="session")
def cases() -> list[EvalCase]:
    """Sixty of the built-in conversations, from every category."""
    return choose_cases(starter_cases(), 60)


@pytest.fixture(scope="session")
def few(cases: list[EvalCase]) -> list[EvalCase]:
    """Twenty-four of them, for faults that show at once."""
    return choose_cases(cases, 24)


@pytest.fixture(scope="session")
def template() -> str:
    """A template that loses nothing."""
    return load_shipped("chatml_tools")


@pytest.fixture
def folder(tmp_path: Path, template: str) -> Path:
    """A model folder: tokenizer and template are all that the doctor reads."""
    return save_folder(tmp_path / "model", template)


@pytest.fixture
def serve(cases: list[EvalCase], template: str) -> Serve:
    """A server over the scripted model."""

    def make(
        *,
        served_template: str = template,
        write: Write = canonical,
        after_stop: str = "",
        stops: frozenset[int] | None = None,
        **server: Any,
    ) -> FakeServer:
        tokenizer = ServedTokenizer(served_template)
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        model = Scripted(
            tokenizer,
            cases,
            write=write,
            stop=end,
            after_stop=tokenizer.encode(after_stop, add_special_tokens=False),
        )
        return FakeServer(tokenizer, model, frozenset({end}) if stops is None else stops, **server)

    return make
