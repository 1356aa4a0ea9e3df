"""Generation in batches gives what transformers' own generate gives, prompt by prompt: with and
without shared beginnings, in slots and left-padded, greedy and drawn.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from smollora.generate import LocalGenerator, Sampling, draw
from smollora.generate.slots import can_use_slots
from tiny_models import tiny_model


def drawn(seed: int, length: int) -> list[int]:
    """Ids that are the same for the same seed."""
    dice = random.Random(seed)
    return [dice.randrange(10, 500) for _ in range(length)]


APART = [drawn(seed, length) for seed, length in enumerate((3, 40, 11, 25, 25, 60, 5, 33, 18))]
SYSTEM, TOOLS, OTHER_TOOLS = drawn(20, 20), drawn(21, 70), drawn(22, 45)
ALIKE = [
    [*SYSTEM, *TOOLS, *drawn(30, 9)],
    [*SYSTEM, *TOOLS, *drawn(31, 4)],
    [*SYSTEM, *TOOLS],  # the beginning of the others
    [*SYSTEM, *TOOLS, *drawn(30, 9)],  # twice the same
    [*SYSTEM, *TOOLS, *drawn(30, 9), *drawn(32, 30)],  # goes on from the first
    [*SYSTEM, *OTHER_TOOLS, *drawn(33, 12)],
    [*SYSTEM, *OTHER_TOOLS, *drawn(33, 12), *drawn(34, 17)],
    [*SYSTEM[:5], *drawn(35, 30)],  # parts from the others within a few tokens
    [7],
]
PROMPTS = [*APART, *ALIKE]
IN_SLOTS = {"llama": True, "smollm3": True, "qwen3": True, "mistral": False}
"""Mistral's layers see a window, so its prompts go through left-padded batches."""


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
    first, second = (expected(model, prompt, []) for prompt in APART[:2])
    return sorted({first[4], second[11]})


def logprob_of(model: Any, prompt: list[int], token: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].float()
    return float(torch.log_softmax(logits, -1)[token])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", list(IN_SLOTS))
def test_batches_give_the_ids_of_plain_greedy_generation(family: str) -> None:
    model = talkative(family)
    stops = stops_on_the_way(model)
    wanted = [expected(model, prompt, stops) for prompt in PROMPTS]
    assert len({len(answer) for answer in wanted}) > 2, "rows must leave a batch one by one"
    generator = LocalGenerator(
        model, stop_ids=stops, opener_id=9, pad_id=0, batch_tokens=4096, batch_rows=4
    )
    assert generator.in_slots == IN_SLOTS[family]
    told: list[int] = []
    answers = generator.generate(PROMPTS, max_new_tokens=24, on_done=told.append)
    assert [list(answer.token_ids) for answer in answers] == wanted
    assert [a.finish for a in answers] == ["stop" if w[-1] in stops else "length" for w in wanted]
    assert told == sorted(set(told)) and told[-1] == len(PROMPTS)
    assert model.config._attn_implementation == "sdpa", "the model is left as it was"
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.opener_logprob == pytest.approx(logprob_of(model, prompt, 9), abs=1e-3)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("batch_tokens, batch_rows", [(1, 48), (150, 3), (100_000, 48)])
def test_the_bounds_of_a_batch_change_no_answer(batch_tokens: int, batch_rows: int) -> None:
    model = talkative("llama")
    stops = stops_on_the_way(model)
    generator = LocalGenerator(
        model,
        stop_ids=stops,
        opener_id=None,
        pad_id=0,
        batch_tokens=batch_tokens,
        batch_rows=batch_rows,
    )
    for most in (1, 2, 24):
        answers = generator.generate(PROMPTS, max_new_tokens=most)
        wanted = [expected(model, prompt, stops, most) for prompt in PROMPTS]
        assert [list(answer.token_ids) for answer in answers] == wanted


@pytest.mark.usefixtures("one_thread")
def test_a_live_adapter_generates_in_slots_as_it_does_alone() -> None:
    from peft import LoraConfig, get_peft_model

    model = talkative("llama")
    plain = [expected(model, prompt, []) for prompt in ALIKE]
    torch.manual_seed(3)
    live = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    wanted = [expected(live, prompt, []) for prompt in ALIKE]
    assert wanted != plain, "the adapter must change something"
    generator = LocalGenerator(live, stop_ids=(), opener_id=None, pad_id=0)
    assert generator.in_slots
    answers = generator.generate(ALIKE, max_new_tokens=24)
    assert [list(answer.token_ids) for answer in answers] == wanted


def test_models_that_do_not_see_everything_before_are_told() -> None:
    assert not can_use_slots(tiny_model("mistral"))
    assert can_use_slots(tiny_model("mistral", sliding_window=None))
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    assert not can_use_slots(eager)


def test_no_prompts_give_no_answers() -> None:
    generator = LocalGenerator(tiny_model("llama"), stop_ids=(), opener_id=None, pad_id=0)
    assert generator.generate([], max_new_tokens=3) == []


# ── drawing ───────────────────────────────────────────────────────────────────────────────────

SETTINGS = [
    Sampling(temperature=0.6, top_p=0.95),
    Sampling(temperature=1.3, top_k=7),
    Sampling(temperature=0.9, top_p=0.5, top_k=20),
    Sampling(),
]


def shares_in_transformers(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution that transformers' generate would draw from."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.clone())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("sampling", SETTINGS)
def test_drawing_gives_the_shares_of_transformers(sampling: Sampling) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 50) * 2
    wanted = shares_in_transformers(logits, sampling)[0]
    count = 4000  # points evenly over [0, 1): shares are met to one part in so many
    points = [(number + 0.5) / count for number in range(count)]
    tokens = draw(logits.expand(count, -1), sampling, points)
    found = torch.bincount(torch.tensor(tokens), minlength=50) / count
    assert float((found - wanted).abs().max()) <= 2 / count
    assert {token for token in range(50) if wanted[token] == 0}.isdisjoint(tokens)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_what_is_drawn_hangs_on_the_seed_and_not_on_the_batch(family: str) -> None:
    model = talkative(family)

    def answers(seed: int, batch_rows: int) -> list[tuple[int, ...]]:
        generator = LocalGenerator(
            model,
            stop_ids=(),
            opener_id=None,
            pad_id=0,
            batch_rows=batch_rows,
            sampling=Sampling(temperature=1.5, seed=seed),
        )
        return [each.token_ids for each in generator.generate(PROMPTS, max_new_tokens=8)]

    first = answers(5, 2)
    assert answers(5, 16) == first
    assert answers(6, 2) != first
    assert first[9] != first[12], "the same prompt twice is two draws"
