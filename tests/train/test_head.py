"""Head and loss of labelled positions against PyTorch's own cross entropy of all logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from native_kernels import apart
from native_kernels import kernel as kernel  # a fixture
from smollora import native
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
    monkeypatch.setattr(module, "ROUND", 16)
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


# ── the kernel ────────────────────────────────────────────────────────────────────────────────


def lines(count: int, vocabulary: int) -> tuple[torch.Tensor, Targets]:
    """Logits in bfloat16 and targets; every third position refuses token 3."""
    torch.manual_seed(count + vocabulary)
    logits = (4 * torch.randn(count, vocabulary)).bfloat16()
    _, targets = case(count)
    tokens = torch.where(targets.refused == 3, 4, torch.arange(count) % vocabulary)
    tokens[-1] = vocabulary - 1
    return logits, targets._replace(tokens=tokens)


def by_kernel(logits: torch.Tensor, targets: Targets) -> list[torch.Tensor]:
    """Losses, weighted losses, hits, and the gradient."""
    count = len(logits)
    made = torch.empty(count), torch.empty(count), torch.empty(count, dtype=torch.bool)
    gradient = logits.clone()
    module._to_gradient(gradient, targets, *made)
    return [*made, gradient]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("count", "vocabulary"), [(1, 5), (7, 16), (34, 300), (3, 50_000)])
def test_the_kernel_gives_losses_and_gradients_of_the_same_logits(
    count: int, vocabulary: int, threads: int, kernel: native.Kernels
) -> None:
    torch.set_num_threads(threads)
    logits, targets = lines(count, vocabulary)
    exact = logits.double().requires_grad_()
    total, losses, _ = reference(lambda x: x, exact, targets)
    total.backward()
    assert exact.grad is not None
    each, weighted, hits, gradient = by_kernel(logits, targets)
    assert torch.allclose(each.double(), losses, atol=1e-4)
    assert float(weighted.sum()) == pytest.approx(float(total.detach()), abs=1e-4 * count)
    picked = logits.gather(1, targets.tokens[:, None])[:, 0]
    assert torch.equal(hits, picked == logits.amax(dim=1))
    rounded = exact.grad.bfloat16().double()
    assert (gradient.double() - rounded).abs().max() <= 2.0**-8 * rounded.abs().max()
    assert apart(gradient, exact.grad) < 3e-3


def test_the_kernel_and_torchs_operators_agree_where_logits_are_extreme(
    kernel: native.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, targets = lines(9, 200)
    logits[0, 3], logits[3, 3] = 80, 300  # nearly certain; position 0 and 3 refuse it
    logits[1, int(targets.tokens[1])] = -500
    logits[2] = 0
    logits[4, 7], logits[5, 7] = float("nan"), float("inf")
    found = by_kernel(logits, targets)
    monkeypatch.setattr(native, "find_kernels", lambda: "not here")
    wanted = by_kernel(logits, targets)
    numbers = [0, 1, 2, 3, 6, 7, 8]
    for got, right in zip(found, wanted, strict=True):
        assert torch.allclose(got[numbers].float(), right[numbers].float(), rtol=1e-2, atol=1e-4)
    for made in (found, wanted):
        assert made[0][[4, 5]].isnan().all()
        assert made[3][[4, 5]].isnan().any(dim=1).all()


def test_the_kernel_refuses_a_token_that_is_none_of_the_vocabulary(kernel: native.Kernels) -> None:
    logits, targets = lines(3, 20)
    for wrong in (20, -1):
        with pytest.raises(IndexError, match="none of the vocabulary's 20"):
            by_kernel(logits, targets._replace(tokens=torch.tensor([1, wrong, 2])))
        with pytest.raises(IndexError, match="refused"):
            by_kernel(logits, targets._replace(refused=torch.tensor([1, wrong, 2])))
