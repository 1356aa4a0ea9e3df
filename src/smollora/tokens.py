"""What the delimiters, stop tokens and special variables are for THIS tokenizer.

In: a fast Hugging Face tokenizer, a tool-call format, the chat template's source. Out:
`TokenFacts`, which every later stage reads instead of constants. The surprise: ids that documents
quote are worth nothing; `<tool_call>` is 128015 in SmolLM3, 151657 in Qwen, and five ordinary
tokens in SmolLM2.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict

from smollora.errors import ModelError
from smollora.formats import Delimited, ToolFormat

RESULT_TAGS = ("<tool_response>", "</tool_response>")
"""Tags that frame a tool's result in ChatML-type templates."""


class Delimiter(BaseModel):
    """One delimiter of a tool-call format, as a tokenizer sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """"" where the format has no such delimiter."""
    id: int | None
    """The token id; None when the text is not one token."""
    ids: tuple[int, ...]
    """How the tokenizer encodes the text."""
    special: bool
    """Whether it is left out where special tokens are skipped: the token's own flag decides, not
    the lists in tokenizer_config.json.
    """
    single: bool


class TokenFacts(BaseModel):
    """Everything later stages need to know about a tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    open: Delimiter
    close: Delimiter
    inner: tuple[Delimiter, ...] = ()
    """Further tokens of the format's grammar, between the two."""
    delimited: Delimited = "token"
    """By what the format tells a call; only "token" can be proved on ids."""
    stop_ids: tuple[int, ...]
    stop_texts: tuple[str, ...]
    pad_id: int | None
    bos_text: str
    eos_text: str
    template_sha256: str

    @property
    def padding_id(self) -> int:
        """What sequences are padded with: the pad token, else a stop token (padding is masked)."""
        return self.pad_id if self.pad_id is not None else self.stop_ids[0]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the format's tokens that this tokenizer has."""
        every = (self.open, self.close, *self.inner)
        return tuple(each.id for each in every if each.id is not None)

    @property
    def lacking(self) -> tuple[Delimiter, ...]:
        """What the format wants as one token and this tokenizer spells with several; empty for a
        format that tells calls by text alone.
        """
        if self.delimited != "token":
            return ()
        wanted = (self.open, self.close, *self.inner)
        return tuple(each for each in wanted if each.text and not each.single)

    @property
    def has_delimiters(self) -> bool:
        """True if calls are told by delimiters here, and each of them is one id."""
        return self.delimited == "token" and not self.lacking


def read_delimiter(tokenizer: Any, text: str) -> Delimiter:
    """How `tokenizer` sees the delimiter `text`."""
    if not text:
        return Delimiter(text="", id=None, ids=(), special=False, single=False)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    single = len(ids) == 1 and tokenizer.decode(list(ids)) == text
    special = single and not tokenizer.decode(list(ids), skip_special_tokens=True)
    return Delimiter(
        text=text, id=ids[0] if single else None, ids=ids, special=special, single=single
    )


def read_token_facts(
    tokenizer: Any, fmt: ToolFormat, template: str, stop_ids: tuple[int, ...] = ()
) -> TokenFacts:
    """Facts about `tokenizer` under `template`.

    Args:
        tokenizer: fast Hugging Face tokenizer.
        fmt: the tool-call format that is taught.
        template: source of the chat template.
        stop_ids: further ids that end a turn (from the generation config).

    Raises:
        ModelError: the tokenizer has no end-of-turn token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no eos token, so nothing says where a turn ends",
            "set eos_token in tokenizer_config.json",
        )
    stops = tuple(dict.fromkeys((tokenizer.eos_token_id, *stop_ids)))
    return TokenFacts(
        format=fmt.name,
        open=read_delimiter(tokenizer, fmt.open),
        close=read_delimiter(tokenizer, fmt.close),
        inner=tuple(read_delimiter(tokenizer, text) for text in fmt.inner),
        delimited=fmt.delimited,
        stop_ids=stops,
        stop_texts=tuple(tokenizer.decode([stop]) for stop in stops),
        pad_id=tokenizer.pad_token_id,
        bos_text=tokenizer.bos_token or "",
        eos_text=tokenizer.eos_token or "",
        template_sha256=hashlib.sha256(template.encode()).hexdigest(),
    )
