"""Head and loss of labelled positions against PyTorch's own cross entropy of all logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from smollora.train import head as module
from smollora.train.head import Targets, head_loss

WIDTH, VOCABULARY = 8, 300


class TwoRows(nn.Module):
    """A frozen head, two of whose rows are trained apart, as `embeddings: tool_tokens` has them."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
        self.shared = [nn.Parameter(torch.randn(2, WIDTH))]  # a list: not among parameters()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        index = torch.tensor([3, 290])
        return self.frozen(states).index_copy(-1, index, states @ self.shared[0].T)


def case(count: int) -> tuple[torch.Tensor, Targets]:
    """Every third position refuses token 3, which is never its target."""
    torch.manual_seed(count)
    states = (3 * torch.randn(count, WIDTH)).requires_grad_()
    tokens, weights = torch.randint(4, VOCABULARY, (count,)), torch.rand(count)
    refuses = torch.arange(count) % 3 == 0
    words = torch.where(refuses, torch.rand(count), weights)
    return states, Targets(tokens, weights, torch.where(refuses, 3, 0), words)


def reference(head: Any, states: Any, targets: Targets) -> tuple[Any, Any, Any]:
    """A refused token by two losses: whether it is chosen, and which other one is."""
    logits = head(states)
    each = functional.cross_entropy(logits, targets.tokens, reduction="none")
    chosen = targets.weights * each
    for at in (targets.refused == 3).nonzero()[:, 0].tolist():
        others = torch.cat([logits[at, :3], logits[at, 4:]])
        both = torch.stack([logits[at, 3], others.logsumexp(0)])
        choice = functional.cross_entropy(both, torch.tensor(1))
        word = functional.cross_entropy(others, targets.tokens[at] - 1)
        rest = chosen.clone()
        rest[at] = targets.weights[at] * choice + targets.words[at] * word
        chosen = rest
    return chosen.sum(), each.detach(), logits.argmax(dim=-1) == targets.tokens


@pytest.mark.parametrize("count", [1, 16, 17, 70])
@pytest.mark.parametrize("kind", ["frozen", "trained", "two rows"])
def test_values_and_gradients_are_those_of_cross_entropy_over_all_logits(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 32)  # several pieces, the last one short
    head: Any = TwoRows() if kind == "two rows" else nn.Linear(WIDTH, VOCABULARY)
    trained = head.shared if kind == "two rows" else list(head.parameters())
    if kind == "frozen":
        head.requires_grad_(False)
        trained = []
    states, targets = case(count)
    targets.tokens[0] = 290
    wanted = reference(head, states, targets)
    gradients = torch.autograd.grad(wanted[0] / 7, [states, *trained])
    found = head_loss(head, states, targets)
    assert torch.allclose(found.total, wanted[0], rtol=1e-5)
    assert torch.allclose(found.each, wanted[1], atol=1e-5)
    assert torch.equal(found.hits, wanted[2])
    (found.total / 7).backward()
    for got, right in zip([states, *trained], gradients, strict=True):
        assert torch.allclose(got.grad, right, atol=1e-5), kind
        assert right.abs().max() > 0


def test_no_labelled_position_gives_zero_and_no_gradient() -> None:
    found = head_loss(nn.Linear(WIDTH, VOCABULARY), *case(0))
    found.total.backward()
    assert (
        float(found.total.detach()) == 0 and found.each.shape == (0,) and found.hits.shape == (0,)
    )


def test_without_gradients_the_values_are_the_same() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    states, targets = case(9)
    with torch.no_grad():
        found = head_loss(head, states, targets)
    assert torch.allclose(found.each, reference(head, states, targets)[1], atol=1e-5)
    assert not found.total.requires_grad


def test_a_target_that_the_model_thinks_impossible_has_its_full_loss() -> None:
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[200.0], [0.0], [-100.0]])
    one = torch.ones(1)
    targets = Targets(torch.tensor([2]), one, torch.tensor([1]), one)
    found = head_loss(head, torch.ones(1, 1), targets)
    assert float(found.each.detach()) == 300.0 and not bool(found.hits)


def test_a_refused_token_that_is_nearly_certain_is_pushed_down_by_its_whole_weight() -> None:
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[50.0], [0.0], [0.0]])
    targets = Targets(torch.tensor([2]), 4 * torch.ones(1), torch.tensor([0]), torch.ones(1))
    found = head_loss(head, torch.ones(1, 1), targets)
    found.total.backward()
    assert float(found.total.detach()) == pytest.approx(4 * (50 - math.log(2)) + math.log(2))
    # Down by the choice's weight; of the others, the choice raises both alike, the word only one.
    assert head.weight.grad[:, 0].tolist() == pytest.approx([4.0, -1.5, -2.5])


def test_a_state_that_is_not_a_number_shows_in_the_loss() -> None:
    states, targets = case(4)
    found = head_loss(nn.Linear(WIDTH, VOCABULARY), states * torch.nan, targets)
    assert bool(found.total.isnan())
