"""Tool-call formats: how a family of models writes a call, and how it is read back from token ids.

A format is a small module-level object with `name`, its delimiters as strings, `show(calls) -> str`
and `parse(token_ids, tokenizer) -> tuple[ParsedCall, ...]`. Every attempt is kept with its status;
nothing is repaired here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from smollora.errors import ConfigError
from smollora.formats.hermes import HERMES
from smollora.types import ParsedCall, ToolCall


class Tokenizer(Protocol):
    """What a format needs of a tokenizer."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...


class ToolFormat(Protocol):
    """How one family of models writes tool calls."""

    @property
    def name(self) -> str: ...
    @property
    def open(self) -> str: ...
    @property
    def close(self) -> str: ...
    @property
    def vllm_parser(self) -> str: ...
    def show(self, calls: Sequence[ToolCall]) -> str: ...
    def parse(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[ParsedCall, ...]: ...


FORMATS: dict[str, ToolFormat] = {"hermes": HERMES}


def get_format(name: str) -> ToolFormat:
    """The format of that name.

    Raises:
        ConfigError: no such format.
    """
    if name not in FORMATS:
        raise ConfigError(
            f'unknown tool-call format "{name}"', f"use one of: {', '.join(sorted(FORMATS))}"
        )
    return FORMATS[name]
