"""A model for transformers' own calls that answers from a script: faults can be planted in it.

Its keys are the token ids themselves, so a cache gives it back everything that it has read, however
generation batches, pads and drops rows. It likes best what the script says next, and second best
what a right answer would say, so that a grammar which forbids the first leaves the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig

Script = Callable[[list[int]], Sequence[str]]
"""Ids of a prompt to what the model would like to say: its favourite, then its second best."""


class ScriptedWeights(torch.nn.Module):
    """A causal language model in all that generation asks of one."""

    def __init__(self, tokenizer: Any, script: Script, vocabulary: int = 512) -> None:
        super().__init__()
        self.config = AutoConfig.for_model(
            "llama",
            vocab_size=vocabulary,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        self.config._attn_implementation = "eager"
        self.tokenizer, self.script = tokenizer, script
        self._texts: dict[tuple[int, ...], Sequence[str]] = {}
        self.header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
        self.stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(
        self, input_ids: Any, attention_mask: Any, past_key_values: Any, **_: Any
    ) -> SimpleNamespace:
        states = input_ids[:, None, :, None].float()
        keys, _values = past_key_values.update(states, states, 0)
        logits = torch.zeros(len(input_ids), 1, self.config.vocab_size)
        read_so_far = zip(keys[:, 0, :, 0].tolist(), attention_mask.tolist(), strict=True)
        for row, (ids, seen) in enumerate(read_so_far):
            read = [int(token) for token, is_read in zip(ids, seen, strict=True) if is_read]
            for place, token in enumerate(self._likes(read)):
                logits[row, 0, token] = max(float(logits[row, 0, token]), 9.0 - place)
        return SimpleNamespace(logits=logits)

    def _likes(self, read: list[int]) -> list[int]:
        """The next token of each text that goes on from what has been said."""
        width = len(self.header)
        start = next(
            place for place in range(len(read), 0, -1) if read[place - width : place] == self.header
        )
        said = read[start:]
        next_tokens = []
        prompt = tuple(read[:start])
        if prompt not in self._texts:  # asked once a prompt, not once a token
            self._texts[prompt] = self.script(read[:start])
        for text in self._texts[prompt]:
            whole = self.tokenizer.encode(text, add_special_tokens=False)
            spoken = self.tokenizer.decode(said)
            if whole[: len(said)] == said:
                next_tokens.append(whole[len(said)] if len(said) < len(whole) else self.stop)
            elif text.startswith(spoken):
                rest = self.tokenizer.encode(text[len(spoken) :], add_special_tokens=False)
                next_tokens.append(rest[0] if rest else self.stop)
        return next_tokens or [self.stop]
