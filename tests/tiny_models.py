"""Models and tokenizers that fit into a test: real classes, random weights, nothing downloaded.

The tokenizer is a byte-level BPE like those of Llama 3 and Qwen, trained here on a few lines, with
ChatML's tokens added as SmolLM3 has them: turn markers special, tool tags not.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = (
    *("<think>", "</think>", "<tool_response>", "</tool_response>"),
    *("<tool_call>", "</tool_call>"),
)
CORPUS = (
    "system user assistant tool You may call one or more functions to assist with the user query.",
    '{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}',
    '{"type": "function", "function": {"name": "find", "description": "", "parameters": {}}}',
    "What is the weather in Porto? It rains in Porto; take an umbrella with you.",
) * 4
FAMILIES = ("smollm3", "llama", "qwen3", "mistral")


@lru_cache(maxsize=2)
def trained_bpe(vocabulary: int = 480) -> str:
    """A byte-level BPE as tokenizer.json text, before anything is added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(
    *, tags: tuple[str, ...] = TAGS, template: str | None = None
) -> PreTrainedTokenizerFast:
    """About 490 tokens; `<|im_end|>` ends a turn, `<|endoftext|>` pads."""
    backend = Tokenizer.from_str(trained_bpe())
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(
    family: str,
    *,
    tied: bool = True,
    vocabulary: int = 512,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    seed: int = 0,
    embedding_std: float = 0.2,
    **more: Any,
) -> Any:
    """A causal language model of hidden size 64, float32, GQA, in evaluation mode.

    The embedding is drawn wide enough for logits of the size that trained models have; the larger
    the vocabulary, the wider it must be for any token to become likely.
    """
    if family == "smollm3":
        more = {"no_rope_layers": [1, 0] * (layers // 2), "max_window_layers": layers, **more}
    config = AutoConfig.for_model(
        family,
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=64 // heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **more},
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, embedding_std)
        if not tied:
            model.get_output_embeddings().weight.normal_(0, embedding_std)
    return model.eval()


def save_model(model: Any, tokenizer: Any, folder: Path) -> Path:
    """A model folder in Hugging Face form."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
