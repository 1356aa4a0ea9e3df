"""Prompts in, token ids out: batched, stopping at the stop token; greedy, or sampled as the model's
own settings say.

`Generator` is the protocol that probe, evaluation and chat see; `LocalGenerator` runs a
transformers model: in `slots` where the model's attention allows it, else in left-padded batches
sorted by length, which finished sequences leave. The log-probability of the opening delimiter at
the first position is kept beside the ids: it says how near the decision was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from smollora.generate.call_grammar import Constraint
from smollora.generate.slot_run import Row, SlotRun
from smollora.generate.slots import can_use_slots
from smollora.memory import keep_freed_memory
from smollora.tokens import TokenFacts
from smollora.types import Generation

LEAVE_AT = 0.75
"""Finished sequences leave a batch when at most this share of it goes on: leaving copies the
rest.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. What is drawn hangs on the seed, the prompt's place and the token's
    place, not on the batch.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    """The smallest set of likeliest tokens with this much probability is drawn from."""
    top_k: int = 0
    """Only so many likeliest tokens are drawn from; 0: all."""
    seed: int = 0


class Generator(Protocol):
    """Anything that continues prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Continue each prompt; `on_done(n)` is told how many have finished so far."""
        ...


class LocalGenerator:
    """Generation with a transformers model on this machine."""

    def __init__(
        self,
        model: Any,
        *,
        stop_ids: Sequence[int],
        opener_id: int | None,
        pad_id: int,
        batch_tokens: int = 16384,
        batch_rows: int = 48,
        sampling: Sampling | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Args: model in eval mode; ids that end a turn; id of the opening delimiter (None: no
        log-probability); padding id; bounds of a batch; how to draw (None: greedily); what forbids
        tokens (None: nothing).
        """
        self.model = model
        self.stop_ids = frozenset(stop_ids)
        self.opener_id = opener_id
        self.pad_id = pad_id
        self.batch_tokens = batch_tokens
        self.batch_rows = batch_rows
        self.sampling = sampling
        self.constraint = constraint
        self._in_slots: bool | None = None

    @property
    def in_slots(self) -> bool:
        """Whether this model's prompts are computed as a tree and continued in slots."""
        if self._in_slots is None:
            self._in_slots = can_use_slots(self.model)
        return self._in_slots

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Generator`."""
        keep_freed_memory()
        if not prompts:
            return []
        if self.in_slots:
            run = SlotRun(
                model=self.model,
                choose=self._choose,
                stop_ids=self.stop_ids,
                opener_id=self.opener_id,
                max_new_tokens=max_new_tokens,
                batch_tokens=self.batch_tokens,
                batch_rows=self.batch_rows,
            )
            return [_generation(row) for row in run.run(prompts, on_done)]
        return self._in_batches(prompts, max_new_tokens, on_done)

    def _choose(self, logits: Any, rows: Sequence[Row]) -> list[int]:
        """The next token of each row; logits [rows, vocabulary] float32."""
        if self.constraint is not None:
            logits = self.constraint.restrict(logits, rows)
        if self.sampling is None:
            return [int(token) for token in logits.argmax(dim=-1).tolist()]
        seed = self.sampling.seed
        return draw(
            logits,
            self.sampling,
            [random.Random(f"{seed}/{row.index}/{len(row.produced)}").random() for row in rows],
        )

    def _in_batches(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        on_done: Callable[[int], None] | None,
    ) -> list[Generation]:
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
            answers = self._batch(prompts, part, max_new_tokens)
            results.update(zip(part, answers, strict=True))
            start += count
            if on_done:
                on_done(len(results))
        return [results[index] for index in range(len(prompts))]

    def _batch(
        self, all_prompts: Sequence[Sequence[int]], part: Sequence[int], max_new_tokens: int
    ) -> list[Generation]:
        """One left-padded batch: prompts [rows, longest], logits [rows, vocabulary]."""
        import torch

        prompts = [all_prompts[index] for index in part]
        device = next(self.model.parameters()).device
        longest = max(len(prompt) for prompt in prompts)
        token_ids = torch.full((len(prompts), longest), self.pad_id, dtype=torch.long)
        attended = torch.zeros((len(prompts), longest), dtype=torch.long)
        for place, prompt in enumerate(prompts):
            token_ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            attended[place, longest - len(prompt) :] = 1
        token_ids, attended = token_ids.to(device), attended.to(device)
        positions = (attended.cumsum(1) - 1).clamp(min=0)
        cache = _roomy_cache(self.model.config, longest + max_new_tokens)
        rows = [Row(index) for index in part]
        here = list(rows)
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
                for row, score in zip(rows, scores.tolist(), strict=True):
                    row.opener_logprob = round(score, 4)
            position = positions[:, -1]
            for step in range(max_new_tokens):
                chosen = self._choose(logits, here)
                for row, token in zip(here, chosen, strict=True):
                    if not row.ended:
                        row.produced.append(token)
                        row.stopped = row.ended = token in self.stop_ids
                alive = sum(not row.ended for row in here)
                if not alive or step + 1 == max_new_tokens:
                    break
                fed = torch.tensor(chosen, device=device)
                if alive <= LEAVE_AT * len(here):
                    places = [place for place, row in enumerate(here) if not row.ended]
                    keep = torch.tensor(places, device=device)
                    cache.batch_select_indices(keep)
                    here = [here[place] for place in places]
                    fed, attended, position = fed[keep], attended[keep], position[keep]
                attended = torch.cat([attended, attended.new_ones((len(here), 1))], dim=1)
                position = position + 1
                output = self.model(
                    input_ids=fed[:, None],
                    attention_mask=attended,
                    position_ids=position[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                logits = output.logits[:, -1].float()
        return [_generation(row) for row in rows]


def _generation(row: Row) -> Generation:
    ends: Literal["stop", "length"] = "stop" if row.stopped else "length"
    return Generation(tuple(row.produced), ends, row.opener_logprob)


def draw(logits: Any, sampling: Sampling, points: Sequence[float]) -> list[int]:
    """A token of each row of logits [rows, vocabulary]: the one at that point of its distribution.

    Temperature, top_k and top_p in the order of transformers' generate.
    """
    import torch

    scores, tokens = (logits / max(sampling.temperature, 1e-4)).sort(dim=-1, descending=True)
    if sampling.top_k:
        scores[:, sampling.top_k :] = float("-inf")
    share = scores.softmax(dim=-1)
    before = share.cumsum(dim=-1) - share
    share = share.masked_fill(before >= sampling.top_p, 0.0)
    total = share.cumsum(dim=-1)
    point = torch.tensor(points, dtype=total.dtype, device=total.device)[:, None] * total[:, -1:]
    place = torch.searchsorted(total, point, right=True)
    last = (share > 0).sum(dim=-1, keepdim=True) - 1
    chosen = tokens.gather(1, torch.minimum(place, last))
    return [int(token) for token in chosen[:, 0].tolist()]


def _roomy_cache(config: Any, length: int) -> Any:
    """transformers' key-value cache with room for `length` tokens from the start.

    The stock one copies every key and value at every token to append one. Layers of other kinds
    (sliding windows) stay as they are.
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


def local_generator(
    model: Any,
    facts: TokenFacts,
    batch_tokens: int,
    *,
    sampling: Sampling | None = None,
    constraint: Constraint | None = None,
) -> LocalGenerator:
    """A `LocalGenerator` that stops, pads and watches the opener as a tokenizer's facts say."""
    return LocalGenerator(
        model,
        stop_ids=facts.stop_ids,
        opener_id=facts.open.id,
        pad_id=facts.padding_id,
        batch_tokens=batch_tokens,
        sampling=sampling,
        constraint=constraint,
    )
