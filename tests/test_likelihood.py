"""Log-probabilities of given tokens are those of transformers' own loss, in any arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from smollora import likelihood as module
from smollora.likelihood import score_rows, token_logprobs
from smollora.runs import hash_of
from tiny_models import FAMILIES, tiny_model

ROW = [5, 17, 3, 99, 240, 17, 17, 8, 301, 42, 7, 7, 12, 400, 1, 2, 3]
ALL = [True] * len(ROW)


def loss_of_transformers(model: torch.nn.Module, row: list[int]) -> float:
    """Mean cross entropy, computed by the library."""
    ids = torch.tensor([row])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stretch", [512, 5, 1])
def test_their_mean_is_the_loss_of_the_library(
    family: str, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH", stretch)
    model = tiny_model(family).eval()
    found = token_logprobs(model, ROW, ALL)
    assert found[0] is None and len(found) == len(ROW)
    values = [value for value in found if value is not None]
    assert -sum(values) / len(values) == pytest.approx(loss_of_transformers(model, ROW), abs=2e-4)


def test_the_head_is_exact_under_bfloat16() -> None:
    model = tiny_model("llama").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())  # the same weights in both arithmetics
        model.get_output_embeddings().weight.mul_(64)  # logits as far apart as a trained model's
    exact = token_logprobs(model, ROW, ALL)
    rounded = token_logprobs(model.bfloat16(), ROW, ALL)
    ids = torch.tensor([ROW])
    with torch.no_grad():
        logits = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
    plain = logits[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
    pairs = list(zip(exact[1:], rounded[1:], plain, strict=True))
    ours = max(abs((a or 0) - (b or 0)) for a, b, _ in pairs)
    theirs = max(abs((a or 0) - c) for a, _, c in pairs)
    assert ours < theirs


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama").eval().bfloat16()
    token_logprobs(model, ROW, ALL)
    assert not model.get_output_embeddings()._forward_hooks
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("row", [[], [7]])
def test_a_row_without_a_second_token_has_nothing_to_predict(row: list[int]) -> None:
    found = token_logprobs(tiny_model("llama").eval(), row, [True] * len(row))
    assert found == [None] * len(row)


@pytest.mark.parametrize("stretch", [512, 4])
def test_only_what_is_labelled_is_scored_and_alike(
    stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH", stretch)
    model = tiny_model("llama").eval()
    counts = [place in (6, 7, 12) for place in range(len(ROW))]
    found, whole = (token_logprobs(model, ROW, wanted) for wanted in (counts, ALL))
    assert [place for place, value in enumerate(found) if value is not None] == [6, 7, 12]
    for place in (6, 7, 12):
        assert found[place] == pytest.approx(whole[place], abs=2e-4)


def test_a_line_says_which_row_it_belongs_to() -> None:
    rows = [
        {"conversation_id": "a", "token_ids": ROW, "trained": ALL},
        {"conversation_id": "a", "token_ids": [1], "trained": [False]},
    ]
    done: list[int] = []
    lines = list(score_rows(tiny_model("llama").eval(), "base", rows, on_done=done.append))
    assert [(line["model"], line["row"]) for line in lines] == [("base", 0), ("base", 1)]
    assert lines[0]["token_ids_sha256"] == hash_of(ROW) != lines[1]["token_ids_sha256"]
    assert all(value is None or math.isfinite(value) for value in lines[0]["logprobs"])
    assert done == [1, 2]
