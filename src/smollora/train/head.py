"""Head and loss of labelled positions, piece by piece: logits of one piece exist at one time, and
their gradient is computed where they are, in the forward pass.

In: hidden states of labelled positions, targets, weights. Out: the weighted sum of the losses, with
gradients of the states and of whatever the head trains. Nothing is computed twice and no tensor of
[positions, vocabulary] is kept: one in float32 costs more in fresh pages than in arithmetic.
Source: Liger kernel's fused linear cross entropy (Hsu et al. 2024), here in plain PyTorch, and for
bfloat16 on a CPU in C++ (native/softmax.cpp).

The surprise: where an answer in words begins though it could have been a call, the cross entropy is
taken apart, -log P(target) = -log(1 - P(refused)) - log P(target | not refused), and each half has
a weight of its own: that no call is opened, and which word it is instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from smollora import native

CHUNK = 320
"""Positions whose logits exist at one time, at most; pieces are of about the same size, for a
product with few positions reads the head as often as one with many.
"""
ROUND = 64
"""Positions are filled up to a multiple of this: logits of a few sizes find the memory that others
left, those of any size break the heap into pieces (docs/log.md).
"""
LINES = 16
"""Lines of them that a processor makes float32 at one time: as many as a core's cache holds."""
LEAST = -60.0
"""Log-probabilities below this count as this in the gradient, and in the loss of refusing a
token: smaller ones are subnormal numbers, which a processor multiplies many times as slowly.
"""


class HeadLoss(NamedTuple):
    """What the labelled positions gave."""

    total: Tensor
    """Weighted sum of the losses; gradients flow from here only."""
    each: Tensor
    """Loss of each position [n], float32."""
    hits: Tensor
    """Whether the target was the most likely token [n], bool."""


class Targets(NamedTuple):
    """What is to come at each of n positions, and what that weighs."""

    tokens: Tensor
    """[n] int64."""
    weights: Tensor
    """[n] float32: weight of the loss; where a token is refused, of not choosing that one."""
    refused: Tensor
    """[n] int64: a token that must not be chosen; any where `words` is `weights`."""
    words: Tensor
    """[n] float32: weight of which other token it is; `weights` where none is refused."""

    def filled(self, more: int) -> Targets:
        """With so many more positions that weigh nothing."""
        return Targets(*(functional.pad(each, (0, more)) for each in self))

    def at(self, here: slice) -> Targets:
        """Some of the positions."""
        return Targets(*(each[here] for each in self))


def head_loss(head: Any, states: Tensor, targets: Targets) -> HeadLoss:
    """Cross entropy of `head(states)`.

    Args:
        head: module from states to logits; whatever it trains gets its gradient.
        states: [n, width]; n may be 0.
        targets: of n positions.
    """
    trained = _trained(head, states) if torch.is_grad_enabled() else []
    count = len(targets.tokens)
    more = -count % ROUND
    filled = functional.pad(states, (0, 0, 0, more))
    total, each, hits = _HeadLoss.apply(head, filled, targets.filled(more), *trained)
    return HeadLoss(total, each[:count], hits[:count])


def _trained(head: Any, states: Tensor) -> list[Tensor]:
    """What the head's logits depend on that is trained: parameters of its own and rows that it
    shares with the embedding.
    """
    logits = head(states[:0].detach())
    found: dict[int, Tensor] = {}
    todo, seen = [logits.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        todo.extend(following for following, _ in node.next_functions)
    return list(found.values())


class _HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, head: Any, states: Tensor, targets: Targets, *trained: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad)
        count = len(targets.tokens)
        each = torch.empty(count, device=states.device)
        weighted = torch.empty(count, device=states.device)
        hits = torch.empty(count, dtype=torch.bool, device=states.device)
        d_states = torch.zeros_like(states)
        d_trained = [torch.zeros_like(parameter) for parameter in trained]
        pieces = -(-count // CHUNK) or 1
        size = -(-count // (pieces * ROUND)) * ROUND
        for here in _pieces(count, size or ROUND):
            with torch.set_grad_enabled(wanted):
                piece = states[here].detach().requires_grad_(wanted)
                logits = head(piece)
            gradient = logits.detach()
            _to_gradient(gradient, targets.at(here), each[here], weighted[here], hits[here])
            if wanted:
                found = torch.autograd.grad(logits, [piece, *trained], gradient, allow_unused=True)
                d_states[here] = found[0]
                for total, more in zip(d_trained, found[1:], strict=True):
                    if more is not None:
                        total += more
        ctx.save_for_backward(d_states, *d_trained)
        ctx.mark_non_differentiable(each, hits)
        return weighted.sum(), each, hits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        d_states, *d_trained = ctx.saved_tensors
        scale = gradients[0]
        return (
            None,
            (d_states * scale).to(d_states.dtype),
            None,
            *((grad * scale).to(grad.dtype) for grad in d_trained),
        )


def head_with_rows(head: Any, states: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Logits [..., vocabulary] of a frozen linear head, some of whose rows are others.

    Args:
        head: torch.nn.Linear.
        states: [..., width].
        rows: [n, width], what stands in their place and is trained.
        index: [n] int64, which ones.
    """
    logits: Tensor = _HeadWithRows.apply(states, rows, head, index)
    return logits


class _HeadWithRows(torch.autograd.Function):  # type: ignore[misc]
    """Autograd alone would copy all logits forward and their gradient backward."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor, head: Any, index: Tensor) -> Tensor:
        ctx.head = head
        ctx.save_for_backward(states, rows, index)
        logits: Tensor = head(states)
        values = functional.linear(states, rows.to(states.dtype))
        return logits.index_copy_(-1, index, values.to(logits.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        states, rows, index = ctx.saved_tensors
        weight, (gradient,) = ctx.head.weight, gradients
        few = gradient.index_select(-1, index)
        other = (rows - weight[index]).to(few.dtype)
        d_states = gradient @ weight.to(gradient.dtype) + few @ other
        d_rows = few.flatten(0, -2).T @ states.flatten(0, -2).to(few.dtype)
        return d_states.to(states.dtype), d_rows.to(rows.dtype), None, None


def _to_gradient(
    logits: Tensor, targets: Targets, each: Tensor, weighted: Tensor, hits: Tensor
) -> None:
    """Turn logits [n, vocabulary] into the gradient of their weighted losses, in place, and fill
    `each` (losses without weights), `weighted` and `hits` [n].
    """
    if logits.device.type == "cpu" and logits.stride(1) == 1 and not native.why_not(logits.dtype):
        _by_kernel(logits, targets, each, weighted, hits)
        return
    lines = LINES if logits.device.type == "cpu" else CHUNK
    for here in _pieces(len(logits), lines):
        values = logits[here].to(torch.float32, copy=True)
        target, weight, refused, word = (part[:, None] for part in targets.at(here))
        top = values.amax(dim=-1, keepdim=True)
        picked = values.gather(1, target)
        hits[here] = (picked >= top)[:, 0]
        values.sub_(top).clamp_(min=LEAST).exp_()
        opened = values.gather(1, refused)
        others = values.scatter_(1, refused, 0.0).sum(dim=-1, keepdim=True)
        total = others + opened
        loss, choice = total.log() + top - picked, (total / others).log()
        each[here] = loss[:, 0]
        weighted[here] = (word * loss + (weight - word) * choice)[:, 0]
        odds = (weight - word) * opened / others
        values.mul_((word - odds) / total).scatter_(1, refused, weight * opened / total)
        logits[here] = values.scatter_add_(1, target, -word)


def _by_kernel(
    logits: Tensor, targets: Targets, each: Tensor, weighted: Tensor, hits: Tensor
) -> None:
    """The same in C++ (native/softmax.cpp), for bfloat16."""
    count, vocabulary = logits.shape
    for name, tokens in (("target", targets.tokens), ("refused", targets.refused)):
        if count and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise IndexError(f"{name}: a token that is none of the vocabulary's {vocabulary}")
    given = [part.contiguous() for part in targets]
    tokens, weights, refused, words = (ctypes.c_void_p(part.data_ptr()) for part in given)
    made = (ctypes.c_void_p(part.data_ptr()) for part in (each, weighted, hits))
    sizes = native.integers((count, vocabulary, logits.stride(0), torch.get_num_threads()))
    native.kernels().library.differentiate_logits(
        sizes, ctypes.c_void_p(logits.data_ptr()), tokens, refused, weights, words, *made
    )


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
