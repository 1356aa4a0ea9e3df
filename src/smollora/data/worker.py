"""What a worker renders with: template, facts and tokenizer, read from files without transformers.

In: the renderer of this process, as three picklable values. Out: an equal renderer in another
process, a second instead of ten after its start. The tokenizer is the live one written out, not the
model folder's file, so that both encode alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from smollora.render import Renderer
from smollora.tokens import TokenFacts


@dataclass(frozen=True)
class RendererFiles:
    """What a worker builds its renderer from, without transformers."""

    template: str
    facts: TokenFacts
    tokenizer: str
    """A tokenizer.json."""

    def load(self) -> Renderer:
        """The renderer; built once a process."""
        return _load_renderer(self.template, self.facts.model_dump_json(), self.tokenizer)


@lru_cache(maxsize=1)
def _load_renderer(template: str, facts: str, tokenizer: str) -> Renderer:
    return Renderer(template, BareTokenizer(tokenizer), TokenFacts.model_validate_json(facts))


class BareTokenizer:
    """The few methods of a Hugging Face tokenizer that rendering and verifying use."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(path)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self.backend_tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens shown."""
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token; None if there is no such token."""
        found: int | None = self.backend_tokenizer.token_to_id(token)
        return found
