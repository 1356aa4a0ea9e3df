"""Tool-call formats: how a family of models writes a call, and how it is read back from token ids.

A format is a small module-level object with its delimiters as strings, `show(calls) -> str` and
`parse(token_ids, tokenizer) -> tuple[ParsedCall, ...]`. Every attempt is kept with its status;
nothing is repaired here. What varies between formats are five separate things: the delimiters, the
grammar between them, the names of the keys, whether each delimiter is one id, and whether it is
flagged special; the last two are facts about a tokenizer (`tokens.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from smollora.errors import ConfigError
from smollora.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from smollora.formats.gemma import FUNCTIONGEMMA, GEMMA4
from smollora.formats.hermes import HERMES
from smollora.formats.json_list import GRANITE, GRANITE_31, PHI4_MINI
from smollora.formats.llama3 import LLAMA3_JSON
from smollora.formats.mistral import MISTRAL, MISTRAL_V11
from smollora.formats.python_calls import LFM2, PYTHONIC
from smollora.formats.qwen3_coder import QWEN3_CODER
from smollora.types import ParsedCall, ToolCall, ToolSpec

Delimited = Literal["token", "text", "none"]
"""By what a call is told: a delimiter that must be one token, a mark that is ordinary text, or
nothing but the shape of the answer.
"""


class Tokenizer(Protocol):
    """What a format needs of a tokenizer."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...


class ToolFormat(Protocol):
    """How one family of models writes tool calls."""

    @property
    def name(self) -> str: ...
    @property
    def open(self) -> str:
        """The opening delimiter; "" where there is none."""
        ...

    @property
    def close(self) -> str:
        """The closing delimiter; "" where nothing closes a call."""
        ...

    @property
    def inner(self) -> tuple[str, ...]:
        """Further tokens of the grammar, which stand between the two."""
        ...

    @property
    def delimited(self) -> Delimited: ...
    @property
    def one_block(self) -> bool:
        """True: one pair of delimiters around all calls of a turn; False: a pair for each call."""
        ...

    @property
    def arguments_mark(self) -> str:
        """What the model writes between the name and the arguments."""
        ...

    @property
    def vllm_parser(self) -> str:
        """What `--tool-call-parser` takes."""
        ...

    def show(self, calls: Sequence[ToolCall]) -> str: ...
    def parse(
        self, token_ids: Sequence[int], tokenizer: Tokenizer, tools: Sequence[ToolSpec] = ()
    ) -> tuple[ParsedCall, ...]:
        """Every attempt. Only formats whose values carry no type (qwen3_coder) need `tools`."""
        ...


_ALL: tuple[ToolFormat, ...] = (
    HERMES,
    GRANITE,
    GRANITE_31,
    PHI4_MINI,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_V11,
    PYTHONIC,
    LFM2,
    QWEN3_CODER,
    GEMMA4,
    FUNCTIONGEMMA,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
)
FORMATS: dict[str, ToolFormat] = {fmt.name: fmt for fmt in _ALL}


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


def tokens_of(fmt: ToolFormat) -> tuple[str, ...]:
    """The texts that a format wants as one token each: its delimiters and those between them."""
    return tuple(text for text in (fmt.open, fmt.close, *fmt.inner) if text)
