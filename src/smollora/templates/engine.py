"""Renders chat templates as transformers does, with limits and without importing it.

In: a template's source text, messages, tools. Out: text, and where asked for the spans of
`{% generation %}`. The same sandbox, whitespace rules, `tojson`, `raise_exception`, `strftime_now`
and treatment of the input (`sandbox`, `given`), so that what is trained is what a server renders.

The surprise: the clock is frozen (`DEFAULT_DATE`) unless a date is given, for a row that renders
differently tomorrow cannot be hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from importlib import resources
from time import monotonic, thread_time
from typing import Any

from smollora.errors import TemplateError
from smollora.templates.given import plain, plain_message
from smollora.templates.growth import MAX_CHARACTERS, check_length
from smollora.templates.offer import Offer
from smollora.templates.sandbox import Program, compile_template, explain, run

DEFAULT_DATE = "2025-07-08"
"""What `strftime_now` says when no date is given: SmolLM3's release day."""
MAX_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendering with the places that the template itself marks as the model's."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Character ranges [start, end) of the `{% generation %}` blocks, in order; may be empty."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that renders as `apply_chat_template(tokenize=False)` does.

    Args:
        source: the Jinja text, compiled once: equal sources share the compiled program.

    Raises:
        TemplateError: the source is not valid Jinja.
    """

    source: str

    def __post_init__(self) -> None:
        compile_template(self.source)

    @cached_property
    def sha256(self) -> str:
        """Hash of the source, for manifests."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def has_generation_markers(self) -> bool:
        """True if the template says with `{% generation %}` what the model produces."""
        return compile_template(self.source).has_generation_markers

    def bind(
        self,
        tools: Sequence[Mapping[str, Any]] | Offer | None = None,
        *,
        date: str | None = None,
        **variables: Any,
    ) -> BoundTemplate:
        """The template with everything filled in but the messages: for the many renderings of one
        conversation, in which the tools are converted and written as JSON once.

        Args:
            tools: OpenAI form, or what an `OfferedTools` made of them.
            date: as for `render`.
            **variables: as for `render`.

        Raises:
            TemplateError: `date` is not a date.
        """
        offer = tools if isinstance(tools, Offer) else Offer.of(tools)
        return BoundTemplate(
            compile_template(self.source),
            {
                "tools": offer.tools,
                "documents": None,
                "strftime_now": _clock(date or DEFAULT_DATE),
                **{name: plain(value) for name, value in variables.items()},
            },
            offer,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        date: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: OpenAI form; keys whose value is None are dropped, as transformers does.
            tools: OpenAI form (or bare name/description/parameters), or None.
            add_generation_prompt: end with the header that asks the model to speak.
            date: ISO date (or date and time) that `strftime_now` reads; `DEFAULT_DATE` if None.
            **variables: what else the template may read: `bos_token`, `enable_thinking`, ...

        Raises:
            TemplateError: the template refuses the conversation, fails, or runs past 10 seconds or
                10 million characters.
        """
        bound = self.bind(tools, date=date, **variables)
        given = [plain_message(message) for message in messages]
        return bound.render(given, add_generation_prompt=add_generation_prompt)

    def render_marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        date: str | None = None,
        **variables: Any,
    ) -> Marked:
        """As `render`, with the spans of the `{% generation %}` blocks.

        Raises:
            TemplateError: as `render`, and for a block inside a macro or a captured `set`, whose
                place in the text is unknown.
        """
        spans: list[tuple[int, str]] = []
        bound = self.bind(tools, date=date, **variables)
        given = [plain_message(message) for message in messages]
        text = bound.render(given, add_generation_prompt=add_generation_prompt, spans=spans)
        for start, said in spans:
            if not text.startswith(said, start):
                raise TemplateError(
                    "the chat template has a {% generation %} block whose text is changed or moved "
                    "after it is written",
                    "keep {% generation %} out of macros and of {% set %} ... {% endset %}",
                )
        return Marked(text, tuple((start, start + len(said)) for start, said in spans))


@dataclass(frozen=True)
class BoundTemplate:
    """A chat template with its tools and variables; `ChatTemplate.bind` makes one."""

    program: Program
    context: Mapping[str, Any]
    """What the template is given besides the messages."""
    offer: Offer
    """The tools, whose JSON is written once."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        spans: list[tuple[int, str]] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: plain values, as `given.plain_message` makes them.
            add_generation_prompt: end with the header that asks the model to speak.
            spans: filled with the start and text of each `{% generation %}` block.

        Raises:
            TemplateError: as `ChatTemplate.render`.
        """
        if not messages:
            raise TemplateError("a conversation without messages cannot be rendered")
        template = self.program.template
        context = template.new_context(
            {
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
                **self.context,
            }
        )
        run.started, run.seconds = thread_time(), MAX_SECONDS
        run.deadline = monotonic() + MAX_SECONDS
        run.length, run.spans = 0, spans
        offer = self.offer
        run.kept, run.json = offer.kept, offer.json
        run.offered, run.offered_json = offer.tools, offer.list_json
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.root_render_func(context):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_CHARACTERS:
                    check_length(length)
                if spans is not None:
                    run.length = length
        except Exception as error:
            raise explain(error, template) from error
        finally:
            run.spans = run.json = run.offered = run.offered_json = None
        return "".join(pieces)


def load_shipped(name: str) -> str:
    """The source of a template that comes with smollora: "chatml_tools", "smollm3".

    Raises:
        TemplateError: there is none of that name.
    """
    folder = resources.files(__package__) / "shipped"
    path = folder / f"{name}.jinja"
    if not path.is_file():
        names = sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir())
        raise TemplateError(f'no shipped chat template "{name}"', f"use one of: {', '.join(names)}")
    return path.read_text(encoding="utf-8")


@lru_cache(maxsize=32)
def _clock(date: str) -> Callable[[str], str]:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise TemplateError(f'"{date}" is not a date', "write it as 2026-11-22") from error
    return lambda format: moment.strftime(format)
