"""Head and loss of labelled positions against PyTorch's own cross entropy of all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from smollora.train import head as module
from smollora.train.head import head_loss

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


def case(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(count)
    states = (3 * torch.randn(count, WIDTH)).requires_grad_()
    return states, torch.randint(0, VOCABULARY, (count,)), torch.rand(count)


def reference(head: Any, states: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
    logits = head(states)
    each = functional.cross_entropy(logits, targets, reduction="none")
    return (each * weights).sum(), each.detach(), logits.argmax(dim=-1) == targets


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
    states, targets, weights = case(count)
    targets[0] = 290
    wanted = reference(head, states, targets, weights)
    gradients = torch.autograd.grad(wanted[0] / 7, [states, *trained])
    found = head_loss(head, states, targets, weights)
    assert torch.allclose(found.total, wanted[0], rtol=1e-5)
    assert torch.allclose(found.each, wanted[1], atol=1e-5)
    assert torch.equal(found.hits, wanted[2])
    (found.total / 7).backward()
    for got, right in zip([states, *trained], gradients, strict=True):
        assert torch.allclose(got.grad, right, atol=1e-5), kind
        assert right.abs().max() > 0


def test_no_labelled_position_gives_zero_and_no_gradient() -> None:
    states, targets, weights = case(0)
    found = head_loss(nn.Linear(WIDTH, VOCABULARY), states, targets, weights)
    found.total.backward()
    assert (
        float(found.total.detach()) == 0 and found.each.shape == (0,) and found.hits.shape == (0,)
    )


def test_without_gradients_the_values_are_the_same() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    states, targets, weights = case(9)
    with torch.no_grad():
        found = head_loss(head, states, targets, weights)
    assert torch.allclose(found.each, reference(head, states, targets, weights)[1], atol=1e-5)
    assert not found.total.requires_grad


def test_a_target_that_the_model_thinks_impossible_has_its_full_loss() -> None:
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[200.0], [0.0], [-100.0]])
    found = head_loss(head, torch.ones(1, 1), torch.tensor([2]), torch.ones(1))
    assert float(found.each.detach()) == 300.0 and not bool(found.hits)


def test_a_state_that_is_not_a_number_shows_in_the_loss() -> None:
    states, targets, weights = case(4)
    found = head_loss(nn.Linear(WIDTH, VOCABULARY), states * torch.nan, targets, weights)
    assert bool(found.total.isnan())
