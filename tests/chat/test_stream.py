"""Tokens out of a transformers model: the expected side is transformers' own `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smollora.chat.settings import Settings
from smollora.chat.stream import LocalStream
from tiny_models import FAMILIES, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def never() -> bool:
    return False


def reference(model: Any, prompt: list[int], asked: Settings) -> list[int]:
    """What `generate` says, without a cache from before."""
    torch.manual_seed(asked.seed or 0)
    sampling = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
    output = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=asked.max_new_tokens,
        do_sample=asked.do_sample,
        repetition_penalty=asked.repetition_penalty,
        eos_token_id=None,
        pad_token_id=0,
        **(sampling if asked.do_sample else {}),
    )
    return list(output[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "asked",
    [
        Settings(max_new_tokens=12),
        Settings(max_new_tokens=12, repetition_penalty=1.4),
        Settings(max_new_tokens=12, do_sample=True, temperature=0.8, top_p=0.9, seed=5),
        Settings(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=1.0, seed=6),
    ],
    ids=["greedy", "penalty", "sampled", "all of the mass"],
)
def test_three_turns_with_one_cache_say_what_generate_says(family: str, asked: Settings) -> None:
    model = tiny_model(family)
    stream = LocalStream(model)
    prompt = list(range(40, 60))
    for turn in range(3):
        said = list(stream.tokens(prompt, asked, (), never))
        assert said == reference(model, prompt, asked)
        prompt += [*said, 7 + turn, 9]
        assert stream.computed == (20 if turn == 0 else 3)


def test_a_changed_history_is_computed_again_from_where_it_differs() -> None:
    model = tiny_model("llama")
    stream = LocalStream(model)
    asked = Settings(max_new_tokens=5)
    list(stream.tokens(list(range(100)), asked, (), never))
    other = [*range(60), 300, *range(61, 80)]
    assert list(stream.tokens(other, asked, (), never)) == reference(model, other, asked)
    assert stream.computed == 20


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5))
def test_whatever_was_asked_before_the_answer_is_the_same(prompts: list[list[int]]) -> None:
    model = tiny_model("llama")
    asked = Settings(max_new_tokens=4)
    stream = LocalStream(model)
    for prompt in prompts:
        assert list(stream.tokens(prompt, asked, (), never)) == reference(model, prompt, asked)


def test_the_same_prompt_again_is_the_same_answer_to_the_bit() -> None:
    """In bf16 the second greedy answer used to differ: its prompt's last token came alone."""
    model = tiny_model("llama", embedding_std=0.02).to(torch.bfloat16)
    stream = LocalStream(model)
    asked = Settings(max_new_tokens=40)
    prompt = [(11 * place) % 480 for place in range(60)]
    first = list(stream.tokens(prompt, asked, (), never))
    exact = stream._end[1].clone()
    assert list(stream.tokens(prompt, asked, (), never)) == first
    assert stream.computed == 0 and torch.equal(stream._end[1], exact)
    list(stream.tokens(prompt[:20], asked, (), never))
    assert stream.computed > 0


def test_a_long_prompt_in_pieces_is_the_same_prompt() -> None:
    model = tiny_model("smollm3")
    prompt = [(7 * place) % 400 for place in range(700)]
    asked = Settings(max_new_tokens=4)
    said = list(LocalStream(model).tokens(prompt, asked, (), never))
    assert said == reference(model, prompt, asked)


def test_a_sliding_window_that_cannot_be_cut_is_begun_anew() -> None:
    model = tiny_model("mistral", sliding_window=16)
    stream = LocalStream(model)
    asked = Settings(max_new_tokens=8)
    for prompt in (list(range(40)), [*range(20), 99, *range(21, 40)]):
        assert list(stream.tokens(prompt, asked, (), never)) == reference(model, prompt, asked)


def test_it_ends_at_a_stop_token_and_when_it_is_told_to() -> None:
    model = tiny_model("llama")
    free = list(LocalStream(model).tokens([1, 2, 3], Settings(max_new_tokens=9), (), never))
    stop = free[4]
    said = list(LocalStream(model).tokens([1, 2, 3], Settings(max_new_tokens=9), (stop,), never))
    assert said == free[: free.index(stop) + 1]
    assert list(LocalStream(model).tokens([1, 2], Settings(), (), lambda: True)) != []
    long = list(range(400))
    assert list(LocalStream(model).tokens(long, Settings(), (), lambda: True)) == []


def test_a_pass_that_is_broken_off_does_not_spoil_the_next_answer() -> None:
    model = tiny_model("llama")
    stream = LocalStream(model)
    asked = Settings(max_new_tokens=4)
    list(stream.tokens(list(range(30)), asked, (), never))
    layer = model.model.layers[1]
    whole = layer.forward

    def breaks(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    layer.forward = breaks
    with pytest.raises(KeyboardInterrupt):
        list(stream.tokens(list(range(35)), asked, (), never))
    layer.forward = whole
    prompt = list(range(32))
    assert list(stream.tokens(prompt, asked, (), never)) == reference(model, prompt, asked)


def test_the_same_seed_draws_the_same_and_none_does_not() -> None:
    stream = LocalStream(tiny_model("llama"))
    asked = Settings(max_new_tokens=20, do_sample=True, temperature=5.0, top_p=1.0, seed=1)
    again = [list(stream.tokens([1, 2, 3], asked, (), never)) for _ in range(2)]
    assert again[0] == again[1]
    free = asked.model_copy(update={"seed": None})
    assert list(stream.tokens([1, 2, 3], free, (), never)) != again[0]
