"""Rooms for the keys and values of rows that go on, each in its slot.

In: computed prompts (`prompt_attention.Chunk`), one token a row. Out: logits. Rows stand at the
left: row r of a layer's room holds `lengths[r]` tokens from 0 on, and a slot is filled again when
its row has ended. The surprise: what a room has never held is set to zero before it is read, for a
masked NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smollora.generate.prompt_attention import Chunk, attending_in_slots, own_model
from smollora.generate.prompt_tree import Stretch

ROOM_STEP = 64
"""Tokens by which a room's used width grows."""
OFF_AT_MOST = 0.05
"""How far a trial's logits may be from plain ones, as a share of the largest: rounding alone."""


class Slots:
    """Rows that go on, each in its slot, and the rooms of their keys and values."""

    def __init__(self, model: Any, slots: int, width: int) -> None:
        import torch
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        shared = self
        own = own_model(model)
        self.model = model
        self.device = next(own.parameters()).device
        self.lengths = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.used = 0
        """Slots from 0 that are computed; some of them may be free."""
        self.width = 0
        """Tokens of every room that have been set."""
        self.rows = torch.arange(slots, device=self.device)

        class SlotLayer(DynamicLayer):  # type: ignore[misc]
            """Keys and values [slots, key-value heads, tokens, head_dim]."""

            room: tuple[Any, Any] | None = None

            def make_room(self, keys: Any) -> None:
                whole = (slots, keys.shape[0], width, keys.shape[2])
                self.room = (keys.new_empty(whole), keys.new_empty(whole))

            def update(self, key: Any, value: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
                assert self.room is not None
                rows, at = shared.rows[: shared.used], shared.lengths[: shared.used]
                seen = slice(0, shared.seen)
                for room, states in zip(self.room, (key, value), strict=True):
                    room[rows, :, at] = states[:, :, 0]
                keys, values = (room[: shared.used, :, seen] for room in self.room)
                return keys, values

        self.cache = DynamicCache(config=own.config)
        self.cache.layers = [SlotLayer() for _ in self.cache.layers]
        self.seen = 0

    def _widen(self, width: int, states: list[tuple[Any, Any]] | None = None) -> None:
        if states is not None and self.cache.layers[0].room is None:
            for layer, (keys, _) in zip(self.cache.layers, states, strict=True):
                layer.make_room(keys)
        most = self.cache.layers[0].room[0].shape[2]
        while self.width < width:
            new = min(most, self.width + ROOM_STEP)
            for layer in self.cache.layers:
                for room in layer.room:
                    room[:, :, self.width : new] = 0
            self.width = new

    def place(self, slot: int, chunk: Chunk, path: Sequence[Stretch]) -> None:
        """Copy a prompt's keys and values into a slot."""
        length = sum(end - start for start, end in path)
        self._widen(length + 1, chunk.states)
        for layer, pair in zip(self.cache.layers, chunk.states, strict=True):
            for room, states in zip(layer.room, pair, strict=True):
                at = 0
                for start, end in path:
                    room[slot, :, at : at + end - start] = states[:, start:end]
                    at += end - start
        self.lengths[slot] = length

    def move(self, source: int, target: int) -> None:
        """Copy one slot into another."""
        length = int(self.lengths[source])
        for layer in self.cache.layers:
            for room in layer.room:
                room[target, :, :length] = room[source, :, :length]
        self.lengths[target] = length

    def step(self, tokens: Sequence[int]) -> Any:
        """Feed one token to each of the used slots; logits [used, vocabulary]."""
        import torch

        at = self.lengths[: self.used]
        self.seen = int(at.max()) + 1
        self._widen(self.seen)
        columns = torch.arange(self.seen, device=self.device)
        output = self.model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=(columns[None] <= at[:, None])[:, None, None],
            position_ids=at[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.lengths[: self.used] += 1
        return output.logits[:, -1].float()


def can_use_slots(model: Any) -> bool:
    """True if every layer of the model attends to everything before it, through transformers' own
    interface, and a trial of two short prompts that share a beginning gives the logits that they
    give one by one, at their ends and a token later.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    own = own_model(model)
    if own.config._attn_implementation != "sdpa" or not own._supports_attention_backend:
        return False
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=own.config).layers):
        return False
    device = next(own.parameters()).device
    begin = [token % own.config.vocab_size for token in range(3, 23)]
    prompts, following = [[*begin, 1, 2], [*begin, 2, 1, 1]], [2, 1]

    def plain(prompt: Sequence[int]) -> Any:
        return model(input_ids=torch.tensor([prompt], device=device)).logits[0, -1].float()

    with torch.no_grad():
        wanted = [plain(prompt) for prompt in prompts]
        wanted += [
            plain([*prompt, token]) for prompt, token in zip(prompts, following, strict=True)
        ]
        try:
            with attending_in_slots(model):
                chunk = Chunk.compute(model, prompts)
                slots = Slots(model, len(prompts), 2 * len(prompts[1]))
                for slot, path in enumerate(chunk.tree.paths):
                    slots.place(slot, chunk, path)
                slots.used = len(prompts)
                found = [*chunk.logits, *slots.step(following)]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False
    wide = max(float(row.abs().max()) for row in wanted)
    off = max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
    return off <= OFF_AT_MOST * wide
