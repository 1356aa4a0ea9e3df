"""A tokenizer for template tests that need no model: every letter a token, and the added ones."""

from __future__ import annotations

import re

CHATML = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>")


class LetterTokenizer:
    """Letters are their code points; added tokens have ids from 2,000,000 on, by their order."""

    def __init__(
        self, added: tuple[str, ...] = CHATML, *, eos: str | None = "<|im_end|>", bos: str = ""
    ) -> None:
        self.added = {token: 2_000_000 + place for place, token in enumerate(added)}
        self.eos_token = eos
        self.special_tokens_map = {"bos_token": bos or None, "eos_token": eos}

    def get_added_vocab(self) -> dict[str, int]:
        return self.added

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        pieces = re.split("(" + "|".join(map(re.escape, self.added)) + ")", text)
        spelled = [[self.added[p]] if p in self.added else map(ord, p) for p in pieces]
        return [token for piece in spelled for token in piece]
