"""Greedy generation in batches gives what transformers' own generate gives, prompt by prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from smollora.generate import LocalGenerator
from tiny_models import tiny_model

PROMPTS = [
    [random.Random(seed).randrange(10, 500) for _ in range(length)]
    for seed, length in enumerate((3, 40, 11, 25, 25, 60, 5, 33, 18))
]


def talkative(family: str) -> Any:
    """A tiny model whose next token hangs on all that came before (freshly drawn layers do next to
    nothing).
    """
    model = tiny_model(family, tied=False, embedding_std=1.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= 12
    return model


def expected(model: Any, prompt: list[int], stops: list[int], most: int = 24) -> list[int]:
    """transformers' greedy answer, nothing batched or padded."""
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def stops_on_the_way(model: Any) -> list[int]:
    """Ids that some answers reach early, some late and others never."""
    first, second = (expected(model, prompt, []) for prompt in PROMPTS[:2])
    return sorted({first[4], second[11]})


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["llama", "smollm3", "qwen3", "mistral"])
def test_batches_give_the_ids_of_plain_greedy_generation(family: str) -> None:
    model = talkative(family)
    stops = stops_on_the_way(model)
    wanted = [expected(model, prompt, stops) for prompt in PROMPTS]
    assert len({len(answer) for answer in wanted}) > 2, "rows must leave a batch one by one"
    generator = LocalGenerator(
        model, stop_ids=stops, opener_id=9, pad_id=0, batch_tokens=4096, batch_rows=4
    )
    told: list[int] = []
    answers = generator.generate(PROMPTS, max_new_tokens=24, on_done=told.append)
    assert [list(answer.token_ids) for answer in answers] == wanted
    assert [a.finish for a in answers] == ["stop" if w[-1] in stops else "length" for w in wanted]
    assert told == [4, 8, 9]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].float()
        logprob = float(torch.log_softmax(logits, -1)[9])
        assert answer.opener_logprob == pytest.approx(logprob, abs=1e-3)
