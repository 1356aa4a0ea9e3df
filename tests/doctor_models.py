"""What the tests of served models share: a small tokenizer, and a server's way to render with it.

Neither torch nor transformers is imported. Prompts are rendered by plain Jinja with the settings
that transformers documents, not by smollora's own engine, so that equal prompts mean something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from fake_server import FakeServer

Serve = Callable[..., FakeServer]
"""`serve(served_template=..., write=..., **server)`."""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>")
CORPUS = (
    "system user assistant tool You may call one or more functions to assist with the user query.",
    '{"name": "get_weather", "arguments": {"city": "Lisbon", "days": 3}}',
    '{"type": "function", "function": {"name": "find", "description": "", "parameters": {}}}',
    "What is the weather in Porto? It rains in Porto; take an umbrella with you.",
) * 4


@lru_cache(maxsize=1)
def tokenizer_json() -> str:
    """A byte-level BPE with ChatML's tokens: turn markers special, tool tags not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in TAGS])
    return str(tokenizer.to_str())


class ServedTokenizer:
    """A tokenizer as a server has it, under the names that transformers gives its members."""

    def __init__(self, template: str) -> None:
        self.backend = Tokenizer.from_str(tokenizer_json())
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        source = re.sub(r"\{%-? (?:end)?generation -?%\}", "{%- if true -%}{%- endif -%}", template)
        self.template = environment.from_string(source)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def convert_tokens_to_ids(self, token: str) -> int:
        found: int = self.backend.token_to_id(token)
        return found

    def apply_chat_template(self, messages: Any, *, tools: Any, **_: Any) -> list[int]:
        text = self.template.render(
            messages=messages,
            tools=tools,
            add_generation_prompt=True,
            bos_token="",
            eos_token="<|im_end|>",
        )
        return self.encode(text)


def save_folder(folder: Path, template: str) -> Path:
    """A model folder: tokenizer and template are all that is read of one."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
