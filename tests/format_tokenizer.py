"""Tokenizers for format tests: bytes as tokens, and a format's own tokens as one each."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from smollora.formats import FORMATS, ToolFormat

BENCH = Path(__file__).resolve().parent.parent / "bench"


@lru_cache
def bench_module(name: str) -> ModuleType:
    """bench/NAME.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def format_tokenizer(fmt: ToolFormat, *, special: bool = False) -> Any:
    """A tokenizer that has every delimiter of `fmt` as one token; `<|im_end|>` ends a turn."""
    tokens = [text for text in (fmt.open, fmt.close, *fmt.inner) if text]
    if fmt.delimited == "text":
        tokens = []
    return bench_module("vllm_parsers").tokenizer_for(tokens, special)


def ids(fmt: ToolFormat, text: str) -> list[int]:
    """Ids of `text` with delimiters as tokens."""
    token_ids: list[int] = format_tokenizer(fmt).encode(text, add_special_tokens=False)
    return token_ids


def spelled(fmt: ToolFormat, text: str) -> list[int]:
    """Ids of `text` letter by letter, so that no delimiter is a token."""
    return [token for letter in text for token in ids(fmt, letter)]


ALL = list(FORMATS.values())
