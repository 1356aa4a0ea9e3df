"""Token by token out of a transformers model, with keys and values kept from turn to turn.

In: the ids of a prompt, settings. Out: ids, one at a time. The cache holds the ids of the last
turn; what the next prompt begins alike is not computed again. The surprise: a forward pass that is
broken off (Ctrl-C) leaves a cache whose layers disagree, so the cache is taken out for each pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from smollora.chat.start import skip_what_no_answer_needs
from smollora.models import load_model, on_gpu

CHUNK = 256
"""Prompt tokens in one forward pass: between two of them an interruption is heard."""


class Sampling(Protocol):
    """What is read of the settings."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def do_sample(self) -> bool: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def seed(self) -> int | None: ...


class TokenStream(Protocol):
    """Anything that continues a prompt token by token."""

    def warm(self, prompt_ids: Sequence[int]) -> None:
        """Compute a prompt ahead of the question."""
        ...

    def tokens(
        self,
        prompt_ids: Sequence[int],
        settings: Sampling,
        stop_ids: Sequence[int],
        stopped: Callable[[], bool],
    ) -> Iterator[int]:
        """The answer's ids, the stop token included; ends early when `stopped()`."""
        ...


class LocalStream:
    """A transformers model in evaluation mode."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache: Any = None
        self._held: list[int] = []
        """The ids whose keys and values the cache holds."""
        self._end: tuple[list[int], Any] = ([], None)
        """The last prompt and the logits after it."""
        self.computed = 0
        """Prompt tokens that the last call computed; the others were in the cache."""

    def warm(self, prompt_ids: Sequence[int]) -> None:
        """See `TokenStream`."""
        self._feed(prompt_ids, lambda: False)

    def tokens(
        self,
        prompt_ids: Sequence[int],
        settings: Sampling,
        stop_ids: Sequence[int],
        stopped: Callable[[], bool],
    ) -> Iterator[int]:
        """See `TokenStream`."""
        import torch

        logits = self._feed(prompt_ids, stopped)
        if logits is None:
            return
        processors = _processors(settings)
        device = logits.device
        draw = torch.Generator(device=device)
        if settings.seed is None:
            draw.seed()
        else:
            draw.manual_seed(settings.seed)
        ids = torch.tensor([list(prompt_ids)], device=device)
        for count in range(1, settings.max_new_tokens + 1):
            scores = processors(ids, logits)
            if settings.do_sample:
                chosen = torch.multinomial(scores.softmax(dim=-1), 1, generator=draw)
            else:
                chosen = scores.argmax(dim=-1, keepdim=True)
            token = int(chosen)
            yield token
            if token in stop_ids or count == settings.max_new_tokens or stopped():
                return
            ids = torch.cat([ids, chosen], dim=1)
            logits = self._forward([token])

    def _feed(self, prompt_ids: Sequence[int], stopped: Callable[[], bool]) -> Any:
        """Logits [1, vocabulary] after the prompt; None if stopped before its end.

        The same prompt again has the same logits: in bf16 a token computed alone differs in its
        last bits from the same token computed with others, enough to turn a greedy answer.
        """
        if list(prompt_ids) == self._end[0] == self._held[: len(prompt_ids)]:
            self._cut(len(prompt_ids))
            if len(self._held) == len(prompt_ids):
                self.computed = 0
                return self._end[1]
        common = 0
        for held, wanted in zip(self._held, prompt_ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        self._cut(common)
        rest = list(prompt_ids[len(self._held) :])
        self.computed = len(rest)
        logits = None
        for at in range(0, len(rest), CHUNK):
            if at and stopped():
                return None
            logits = self._forward(rest[at : at + CHUNK])
        self._end = (list(prompt_ids), logits)
        return logits

    def _cut(self, length: int) -> None:
        """Keep the first `length` tokens; all are dropped where a cache cannot be cut."""
        from transformers import DynamicCache

        extra = len(self._held) - length
        if self._cache is not None and extra:
            try:
                self._cache.crop(-extra)
                self._held = self._held[:length]
            except (RuntimeError, ValueError, NotImplementedError):  # sliding windows, state spaces
                self._cache = None
        if self._cache is None:
            self._cache, self._held = DynamicCache(config=self.model.config), []

    def _forward(self, ids: list[int]) -> Any:
        import torch

        cache, self._cache = self._cache, None
        device = next(self.model.parameters()).device
        with torch.no_grad():
            output = self.model(
                input_ids=torch.tensor([ids], device=device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = cache
        self._held += ids
        return output.logits[:, -1].float()


def _processors(settings: Sampling) -> Any:
    """transformers' own, in the order in which its `generate` applies them."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.do_sample and settings.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(settings.temperature))
    if settings.do_sample and settings.top_p < 1.0:
        chain.append(TopPLogitsWarper(settings.top_p))
    return chain


def open_stream(folder: Path, *, alone: bool = False) -> TokenStream:
    """The weights of a folder, on the accelerator where there is one. `alone`: this process does
    nothing but chat, and does without what no answer needs.

    Raises:
        ModelError: no safetensors weights there, or they do not fit the config.
    """
    if alone:
        skip_what_no_answer_needs()
    return LocalStream(on_gpu(load_model(folder)))
