"""What a worker renders with: template, facts and tokenizer, read from files without transformers.

In: the renderer of this process, as three picklable values. Out: an equal renderer in another
process, a second instead of ten after its start. The tokenizer is the live one written out, not the
model folder's file, so that both encode alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from smollora.render import Renderer
from smollora.tokenizer_file import FileTokenizer
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
    return Renderer(template, bare_tokenizer(tokenizer), TokenFacts.model_validate_json(facts))


def bare_tokenizer(path: str) -> FileTokenizer:
    """A tokenizer.json as a tokenizer: rendering and verifying need no file beside it."""
    from tokenizers import Tokenizer

    return FileTokenizer(Tokenizer.from_file(path), {}, None)
