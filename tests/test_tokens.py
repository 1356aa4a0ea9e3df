"""Token facts come from the tokenizer at hand: ids, single or special or not, what ends a turn."""

from __future__ import annotations

import hashlib

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from smollm3_tokenizer import smollm3_tokenizer
from smollora.errors import ModelError
from smollora.formats.hermes import HERMES
from smollora.tokens import RESULT_TAGS, read_delimiter, read_token_facts
from tiny_models import tiny_tokenizer


@pytest.mark.network
def test_smollm3s_facts_are_the_published_ones() -> None:
    """Ids from the tokenizer_config.json that HuggingFaceTB/SmolLM3-3B publishes (FACTS 1)."""
    facts = read_token_facts(smollm3_tokenizer(), HERMES, "a template", (128012,))
    assert (facts.open.id, facts.close.id) == (128015, 128016)
    assert facts.open.single
    assert facts.close.single
    assert not facts.open.special
    assert not facts.close.special
    assert facts.stop_ids == (128012,)
    assert facts.stop_texts == ("<|im_end|>",)
    assert facts.pad_id == 128012
    assert facts.bos_text == ""
    assert facts.eos_text == "<|im_end|>"
    assert facts.has_delimiters
    assert [read_delimiter(smollm3_tokenizer(), tag).id for tag in RESULT_TAGS] == [128013, 128014]
    assert not read_delimiter(smollm3_tokenizer(), "<tools>").single, "which is no token there"


def test_a_tokenizer_without_the_tags_says_how_it_spells_them() -> None:
    facts = read_token_facts(tiny_tokenizer(tags=()), HERMES, "")
    assert not facts.has_delimiters
    assert facts.open.id is None
    assert len(facts.open.ids) > 1
    assert not facts.open.special


def test_one_tag_of_two_is_not_enough() -> None:
    facts = read_token_facts(tiny_tokenizer(tags=("<tool_call>",)), HERMES, "")
    assert facts.open.single
    assert not facts.close.single
    assert not facts.has_delimiters


def test_a_tag_that_is_flagged_special_is_reported_so() -> None:
    """A server that skips special tokens would swallow it (vllm PR#25281)."""
    tokenizer = tiny_tokenizer(tags=())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>"]})
    facts = read_token_facts(tokenizer, HERMES, "")
    assert facts.has_delimiters
    assert facts.open.special
    assert facts.close.special


def test_unk_is_no_delimiter() -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    found = read_delimiter(tokenizer, "<tool_call>")
    assert (found.id, found.ids, found.single, found.special) == (None, (0,), False, False)


def test_every_stop_id_is_kept_once_the_tokenizers_own_first() -> None:
    tokenizer = tiny_tokenizer()
    pad, end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    facts = read_token_facts(tokenizer, HERMES, "", (pad, end, pad))
    assert facts.stop_ids == (end, pad)
    assert facts.stop_texts == ("<|im_end|>", "<|endoftext|>")


def test_a_tokenizer_that_says_nothing_about_the_end_of_a_turn_is_refused() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    with pytest.raises(ModelError, match="eos"):
        read_token_facts(PreTrainedTokenizerFast(tokenizer_object=backend), HERMES, "")


def test_no_padding_token_is_a_fact_too_and_the_templates_hash_is_kept() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>"
    )
    facts = read_token_facts(tokenizer, HERMES, "naïve {{ template }}")
    assert facts.pad_id is None
    assert facts.bos_text == "<s>"
    assert facts.template_sha256 == hashlib.sha256("naïve {{ template }}".encode()).hexdigest()
