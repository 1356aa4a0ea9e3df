"""Prompts in, token ids out: greedy, batched, stopping at the stop token.

`Generator` is the protocol that probe, evaluation and chat see; `LocalGenerator` runs a
transformers model. Prompts are sorted by length and left-padded in batches bounded by tokens;
finished sequences leave the batch. The log-probability of the opening delimiter at the first
position is kept beside the ids: it says how near the decision was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from smollora.memory import keep_freed_memory
from smollora.tokens import TokenFacts
from smollora.types import Generation

LEAVE_AT = 0.75
"""Finished sequences leave a batch when at most this share of it goes on: leaving copies the
rest.
"""


class Generator(Protocol):
    """Anything that continues prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Continue each prompt greedily; `on_done(n)` is told how many have finished so far."""
        ...


class LocalGenerator:
    """Greedy generation with a transformers model on this machine."""

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: Sequence[int],
        opener_id: int | None,
        pad_id: int,
        batch_tokens: int = 16384,
        batch_rows: int = 48,
    ) -> None:
        """Args: model in eval mode; ids that end a turn; id of the opening delimiter (None: no
        log-probability); padding id; bounds of a batch.
        """
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.opener_id = opener_id
        self.pad_id = pad_id
        self.batch_tokens = batch_tokens
        self.batch_rows = batch_rows

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Generator`. Shapes inside: prompts [rows, longest], logits [rows, vocabulary]."""
        keep_freed_memory()
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        results: dict[int, Generation] = {}
        start = 0
        while start < len(order):
            count = 1
            while (
                start + count < len(order)
                and count < self.batch_rows
                and (count + 1) * (len(prompts[order[start + count]]) + max_new_tokens // 2)
                <= self.batch_tokens
            ):
                count += 1
            part = order[start : start + count]
            answers = self._batch([prompts[index] for index in part], max_new_tokens)
            results.update(zip(part, answers, strict=True))
            start += count
            if on_done:
                on_done(len(results))
        return [results[index] for index in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        import torch

        device = next(self.model.parameters()).device
        rows = len(prompts)
        longest = max(len(prompt) for prompt in prompts)
        token_ids = torch.full((rows, longest), self.pad_id, dtype=torch.long)
        attended = torch.zeros((rows, longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            token_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            attended[row, longest - len(prompt) :] = 1
        token_ids, attended = token_ids.to(device), attended.to(device)
        positions = (attended.cumsum(1) - 1).clamp(min=0)
        cache = _roomy_cache(self.model.config, longest + max_new_tokens)
        produced: list[list[int]] = [[] for _ in range(rows)]
        finish = ["length"] * rows
        opener: list[float | None] = [None] * rows
        rows_here = list(range(rows))
        alive = set(rows_here)
        with torch.no_grad():
            output = self.model(
                input_ids=token_ids,
                attention_mask=attended,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1].float()
            if self.opener_id is not None:
                scores = torch.log_softmax(logits, dim=-1)[:, self.opener_id]
                opener = [round(float(score), 4) for score in scores]
            position = positions[:, -1]
            for step in range(max_new_tokens):
                chosen = logits.argmax(dim=-1)
                for row, token in zip(rows_here, chosen.tolist(), strict=True):
                    if row in alive:
                        produced[row].append(token)
                        if token in self.stop_ids:
                            finish[row] = "stop"
                            alive.discard(row)
                if not alive or step + 1 == max_new_tokens:
                    break
                if len(alive) <= LEAVE_AT * len(rows_here):
                    keep = torch.tensor(
                        [place for place, row in enumerate(rows_here) if row in alive],
                        device=device,
                    )
                    cache.batch_select_indices(keep)
                    rows_here = [row for row in rows_here if row in alive]
                    chosen, attended, position = chosen[keep], attended[keep], position[keep]
                attended = torch.cat([attended, attended.new_ones((len(rows_here), 1))], dim=1)
                position = position + 1
                output = self.model(
                    input_ids=chosen[:, None],
                    attention_mask=attended,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                logits = output.logits[:, -1].float()
        return [
            Generation(tuple(ids), "stop" if end == "stop" else "length", logprob)
            for ids, end, logprob in zip(produced, finish, opener, strict=True)
        ]


def _roomy_cache(config: Any, length: int) -> Any:
    """transformers' key-value cache with room for `length` tokens from the start.

    The stock one copies every key and value at every token to append one, which took half of the
    time of a batch of 32 (docs/log.md). Layers of other kinds (sliding windows) stay as they are.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values [rows, heads, tokens, head_dim] are the front of larger tensors."""

        keys: Any
        values: Any
        room: list[Any] | None = None

        def update(
            self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            old = self.keys.shape[-2] if self.keys.numel() else 0
            new = old + key_states.shape[-2]
            if self.room is None or self.room[0].shape[-2] < new:
                whole = (*key_states.shape[:2], max(length, new), key_states.shape[3])
                room = [key_states.new_empty(whole), value_states.new_empty(whole)]
                if old:
                    room[0][:, :, :old], room[1][:, :, :old] = self.keys, self.values
                self.room = room
            self.room[0][:, :, old:new] = key_states
            self.room[1][:, :, old:new] = value_states
            self.keys, self.values = self.room[0][:, :, :new], self.room[1][:, :, :new]
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            if self.room is not None:
                length_now = self.keys.shape[-2]
                self.room = [states[indices] for states in self.room]
                self.keys, self.values = (states[:, :, :length_now] for states in self.room)

    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def local_generator(model: Any, facts: TokenFacts, batch_tokens: int) -> LocalGenerator:
    """A `LocalGenerator` that stops, pads and watches the opener as a tokenizer's facts say."""
    return LocalGenerator(
        model,
        stop_ids=facts.stop_ids,
        opener_id=facts.open.id,
        pad_id=facts.padding_id,
        batch_tokens=batch_tokens,
    )
