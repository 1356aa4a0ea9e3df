"""The two places where a model answers: on this machine, or on a server.

In: a model folder and its adapter, or an address. Out: generators that answer freely, under a
grammar of calls, or under one that requires a call. The surprise: a server that does not know
structured outputs may pass the key over without a word, so it is asked for one token first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from smollora.cures import CONSTRAINED, NotOffered
from smollora.cures.structured import nothing_but, structured_outputs
from smollora.endpoint import Endpoint, EndpointError, ServedGenerator
from smollora.formats import ToolFormat
from smollora.generate import Generator, local_generator
from smollora.generate.call_grammar import CallGrammar
from smollora.merge import load_with_adapter
from smollora.models import on_gpu
from smollora.render import Renderer
from smollora.types import EvalCase


class Answering(Protocol):
    """A model that is there to be asked."""

    def generator(
        self, cure: str, cases: Sequence[EvalCase], renderer: Renderer, fmt: ToolFormat
    ) -> Generator:
        """What answers these cases, in this order.

        Raises:
            NotOffered: the cure cannot be had here.
        """
        ...


class Here:
    """A model on this machine, loaded once for all of its lines."""

    def __init__(self, folder: Path, adapter: Path | None, batch_tokens: int) -> None:
        self.model = on_gpu(load_with_adapter(folder, adapter))
        self.batch_tokens = batch_tokens

    def generator(
        self, cure: str, cases: Sequence[EvalCase], renderer: Renderer, fmt: ToolFormat
    ) -> Generator:
        """See `Answering`."""
        grammar = None
        if cure in CONSTRAINED:
            grammar = CallGrammar(
                renderer.tokenizer,
                renderer.facts,
                fmt,
                [case.tools for case in cases],
                required=cure == "required",
            )
        return local_generator(self.model, renderer.facts, self.batch_tokens, constraint=grammar)


class There:
    """A model of a server, asked by token ids."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def generator(
        self, cure: str, cases: Sequence[EvalCase], renderer: Renderer, fmt: ToolFormat
    ) -> Generator:
        """See `Answering`."""
        facts = renderer.facts
        keys = None
        if cure in CONSTRAINED:
            required = cure == "required"
            keys = [structured_outputs(facts, fmt, c.tools, required=required) for c in cases]
            self._try(next((case for case in cases if case.tools), None), renderer)
        return ServedGenerator(
            self.endpoint, stop_ids=facts.stop_ids, opener_id=facts.open.id, more=keys
        )

    def _try(self, case: EvalCase | None, renderer: Renderer) -> None:
        """Asks for a closing delimiter and nothing else, which no model begins an answer with."""
        wanted = renderer.facts.close.id
        if case is None or wanted is None:
            return
        prompt = renderer.prompt_ids(case.messages, case.tools)
        try:
            found = self.endpoint.complete(prompt, 1, **nothing_but(wanted))
        except EndpointError as error:
            if error.kind not in ("refused", "server_error"):
                raise
            raise NotOffered(f"the server takes no structural tag: {error.message}") from error
        if found.token_ids is None or found.token_ids[:1] != (wanted,):
            raise NotOffered("the server passes structured outputs over")
