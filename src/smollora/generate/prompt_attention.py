"""Prompts computed as one tree: attention over a flat sequence that holds each shared stretch once.

In: a transformers model, prompts as token ids. Out: their last logits, and keys and values of the
flat sequence, from which `slots` fills its rows. Nothing is padded. It goes through transformers'
attention interface, so a family needs no code of its own; one whose layers do not attend to
everything before them (sliding windows, recurrent layers) is told by `slots.can_use_slots`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from smollora.generate.prompt_tree import PromptTree, Segment, Stretch, lay_out

NAME = "smollora_slots"
"""What the model's attention implementation is set to while it generates."""
GROUP = 128
"""Tokens of neighbouring segments under one prompt that attention takes together."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One call of attention: queries [start, end) of the flat sequence see `before` and what `mask`
    [queries, keys] leaves of themselves; None: all up to themselves.
    """

    before: tuple[Stretch, ...]
    start: int
    end: int
    mask: Any


def _pieces(tree: PromptTree, device: Any) -> list[_Piece]:
    import torch

    gathered: list[list[Segment]] = []
    for segment in tree.segments:
        last = gathered[-1] if gathered else []
        together = (
            last
            and segment.before
            and last[0].before == segment.before
            and last[-1].end == segment.start
            and segment.end - last[0].start <= GROUP
        )
        if together:
            last.append(segment)
        else:
            gathered.append([segment])
    pieces = []
    for group in gathered:
        before, start, end = group[0].before, group[0].start, group[-1].end
        mask = None
        if before:
            seen = sum(stop - begin for begin, stop in before)
            mask = torch.zeros((end - start, seen + end - start), dtype=torch.bool)
            mask[:, :seen] = True
            for segment in group:
                size, at = segment.end - segment.start, segment.start - start
                mask[at : at + size, seen + at : seen + at + size] = torch.ones(
                    (size, size), dtype=torch.bool
                ).tril_()
            mask = mask.to(device)
        pieces.append(_Piece(before, start, end, mask))
    return pieces


def _tree_attention(query: Any, key: Any, value: Any, pieces: list[_Piece], scale: float) -> Any:
    """Attention over one flat sequence: query [1, heads, tokens, head_dim], key and value
    [1, key-value heads, tokens, head_dim]; output like query.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    heads, dim = query.shape[1], query.shape[3]
    kept = key.shape[1]
    times = heads // kept
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for piece in pieces:
        here = slice(piece.start, piece.end)
        q, k, v = query[:, :, here], key[:, :, here], value[:, :, here]
        if piece.mask is None:
            k, v = (states.repeat_interleave(times, dim=1) for states in (k, v))
            out[:, :, here] = attend(q, k, v, is_causal=True, scale=scale)
            continue
        k, v = (
            torch.cat([*(states[:, :, a:b] for a, b in piece.before), states[:, :, here]], dim=2)
            for states in (key, value)
        )
        size = piece.end - piece.start  # heads that share keys become queries of one head
        q = q.reshape(1, kept, times * size, dim)
        made = attend(q, k, v, attn_mask=piece.mask.repeat(times, 1), scale=scale)
        out[:, :, here] = made.reshape(1, heads, size, dim)
    return out


@cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> tuple[Any, Any]:
        pieces = options.pop("pieces", None)
        if pieces is None:
            return sdpa_attention_forward(  # type: ignore[no-any-return]
                module, query, key, value, attention_mask, **options
            )
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        out = _tree_attention(query, key, value, pieces, scale)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)


def own_model(model: Any) -> Any:
    """The transformers model inside of an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def attending_in_slots(model: Any) -> Iterator[None]:
    """The model attends to trees and to slots inside of this, as before it after it."""
    _register()
    own = own_model(model)
    before = own.config._attn_implementation
    own.set_attn_implementation(NAME)
    try:
        yield
    finally:
        own.set_attn_implementation(before)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompts computed as a tree: their last logits, and the keys and values of the flat
    sequence, [key-value heads, tokens, head_dim] a layer.
    """

    tree: PromptTree
    logits: Any
    states: list[tuple[Any, Any]]

    @staticmethod
    def compute(model: Any, prompts: Sequence[Sequence[int]]) -> Chunk:
        import torch
        from transformers import DynamicCache

        own = own_model(model)
        device = next(own.parameters()).device
        tree = lay_out(prompts)
        flat = DynamicCache(config=own.config)
        ends = torch.tensor([path[-1][1] - 1 for path in tree.paths], device=device)
        output = model(
            input_ids=torch.tensor([tree.token_ids], device=device),
            position_ids=torch.tensor([tree.positions], device=device),
            past_key_values=flat,
            use_cache=True,
            logits_to_keep=ends,
            pieces=_pieces(tree, device),
        )
        states = [(layer.keys[0], layer.values[0]) for layer in flat.layers]
        return Chunk(tree, output.logits[0].float(), states)
