"""Which format a model writes calls in, from its vocabulary and its chat template.

In: the added tokens of a tokenizer, the template's source. Out: the name of a format, or "unknown".
The surprise: the template is the better witness, because `<tool_call>` frames three different
grammars; the vocabulary decides only where the template is silent, as SmolLM3's is about calls.
"""

from __future__ import annotations

from collections.abc import Container

UNKNOWN = "unknown"

_FOREIGN = (
    "<arg_key>",  # GLM 4.5 and later
    "<|channel|>",  # gpt-oss, harmony
    "<|start|>assistant to=",  # Muse Glimmer
    "<|START_ACTION|>",  # Cohere Command
    "<|tool_calls_section_begin|>",  # Kimi K2
    "<minimax:tool_call>",
)
"""Signs of grammars that smollora does not read; some use delimiters of those that it does."""

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qwen3_coder", ("<tool_call>", "<function=")),
    ("lfm2", ("<|tool_call_start|>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("gemma4", ("<|tool_call>call:",)),
    ("functiongemma", ("<start_function_call>",)),
    ("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("granite", ("<|tool_call|>",)),
    ("phi4_mini", ("functools",)),
    ("hermes", ("<tool_call>", '"arguments"')),
    ("granite_31", ("<tool_call>[",)),
    ("llama3_json", ('"parameters": ', '{"name": ')),
    ("pythonic", ("func_name1(params_name1=",)),
)
"""Everything that a template of the format holds; the first format that fits is it."""

_TOKENS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lfm2", ("<|tool_call_start|>", "<|tool_call_end|>")),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>")),
    ("gemma4", ("<|tool_call>", "<tool_call|>")),
    ("functiongemma", ("<start_function_call>", "<escape>")),
    ("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("granite", ("<|tool_call|>",)),
    ("hermes", ("<tool_call>", "</tool_call>")),
    ("llama3_json", ("<|python_tag|>",)),
)
"""Tokens that only models of the format have, where the template does not speak of calls."""


def detect_format(tokenizer_vocab: Container[str], template_source: str) -> str:
    """The name of the format, or "unknown".

    Args:
        tokenizer_vocab: the tokenizer's tokens (`get_vocab()` or `get_added_vocab()`).
        template_source: the chat template; "" where there is none.
    """
    if any(sign in template_source for sign in _FOREIGN):
        return UNKNOWN
    for name, signs in _SIGNS:
        if all(sign in template_source for sign in signs):
            named = name == "mistral" and "[ARGS]" in tokenizer_vocab
            return "mistral_v11" if named else name
    for name, tokens in _TOKENS:
        if all(token in tokenizer_vocab for token in tokens):
            return name
    return UNKNOWN
