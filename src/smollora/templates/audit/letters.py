"""A tokenizer whose tokens are letters and a few given texts: reads templates without a model.

It stands in where the tokenizer is beside the point: to read calls off plain text, or to audit a
`.jinja` file of which nobody has the model at hand. Token positions then count letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FIRST_ADDED = 2_000_000
"""Above every code point, so that an added token is never a letter."""

LIKELY_TOKENS = re.compile(
    r"<\|[^|<>\s']{1,40}\|?>|<[｜\w][^<>\s']{0,40}\|>|<｜[^｜<>]{1,40}｜>"
    r"|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|end_of_utterance|s)>"
    r"|\[/?[A-Z_]{3,20}\]|｜DSML｜"
)
"""How chat models spell their tokens, as far as a template's text shows it."""


class LetterTokenizer:
    """Letters are their code points; added tokens have ids from 2,000,000 on, by their order."""

    def __init__(self, added: Iterable[str], *, eos: str | None = None, bos: str = "") -> None:
        """Args: texts that are one token each; the token that ends a turn; the one that begins."""
        self.added = {text: FIRST_ADDED + place for place, text in enumerate(dict.fromkeys(added))}
        self.eos_token = eos
        self.special_tokens_map: Mapping[str, str | None] = {
            "bos_token": bos or None,
            "eos_token": eos,
        }
        longest_first = sorted(self.added, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def get_added_vocab(self) -> Mapping[str, int]:
        return self.added

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        if not self.added:
            return [ord(letter) for letter in text]
        spelled: list[int] = []
        for piece in self._pattern.split(text):
            spelled += [self.added[piece]] if piece in self.added else map(ord, piece)
        return spelled

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        names = {token: name for name, token in self.added.items()}
        return "".join(names.get(token) or chr(token) for token in token_ids)

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        return self.added.get(tokens)


def likely_tokens(source: str) -> list[str]:
    """The texts in a template's source that look like tokens, in order."""
    return list(dict.fromkeys(LIKELY_TOKENS.findall(source)))
