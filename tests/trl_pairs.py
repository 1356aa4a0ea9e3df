"""Chat templates in pairs: a model's own, and trl's copy with `{% generation %}` set by hand.

The PyPI wheel of trl holds them. Only its templates are read, nothing of it is imported; the wheel
is cached in `$SMOLLORA_CACHE` or `~/.cache/smollora`. Beside the pairs stands what the wheel does
not say: at which tokens each family stops (`eos_token_id` of the published generation_config.json).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smollora.models import fetch_wheel

WHEEL = "trl==1.16.0"
WHEEL_SHA256 = "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396"
FOLDER = "trl/chat_templates/"


@dataclass(frozen=True)
class Family:
    """What a template's source does not say."""

    stops: tuple[str, ...]
    """At which tokens generation ends; the first is the tokenizer's own end of sequence."""
    tokens: tuple[str, ...] = ()
    """Further added tokens."""
    bos: str | None = None
    parts: bool = False
    """True for vision models, which take content as a list of parts."""


CHATML = Family(
    ("<|im_end|>", "<|endoftext|>"),
    (
        *("<|im_start|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        *("<think>", "</think>"),
    ),
)
COHERE = Family(
    ("<|END_OF_TURN_TOKEN|>",),
    (
        *("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    bos="<BOS_TOKEN>",
)
DEEPSEEK = Family(
    ("<｜end▁of▁sentence｜>",),
    (
        *("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
        *(
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>",
        ),
        *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    ),
    bos="<｜begin▁of▁sentence｜>",
)
GEMMA = Family(("<eos>", "<end_of_turn>"), ("<start_of_turn>", "<start_of_image>"), "<bos>")
GEMMA4 = Family(
    ("<eos>", "<turn|>", "<|tool_response>"),
    (
        *("<|turn>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
        *("<tool_response|>", "<|channel>", "<channel|>", '<|"|>', "<|think|>"),
    ),
    bos="<bos>",
)
GLM = Family(
    ("<|endoftext|>", "<|user|>", "<|observation|>"),
    (
        *("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<think>", "</think>", "<tool_call>"),
        *("</tool_call>", "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>"),
    ),
)
GPT_OSS = Family(
    ("<|return|>", "<|endoftext|>", "<|call|>"),
    ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
)
LFM2 = Family(
    ("<|im_end|>",),
    (
        *("<|im_start|>", "<|tool_list_start|>", "<|tool_list_end|>"),
        *("<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>"),
        "<|tool_response_end|>",
    ),
    bos="<|startoftext|>",
)
LLAMA3 = Family(
    ("<|eot_id|>", "<|end_of_text|>"),
    ("<|start_header_id|>", "<|end_header_id|>"),
    bos="<|begin_of_text|>",
)
MUSE = Family(("<|eot|>",), ("<|start|>", "<|message|>", "<|eom|>"), "<|begin_of_text|>")
PHI3 = Family(("<|endoftext|>", "<|assistant|>", "<|end|>"), ("<|system|>", "<|user|>"), "<s>")
VISION = Family(
    ("<end_of_utterance>",), ("<|begin_of_text|>", "<|im_start|>", "<image>"), parts=True
)

FAMILIES = {
    "cohere": COHERE,
    "deepseek": DEEPSEEK,
    "diffusion_gemma": GEMMA4,
    "gemma": GEMMA,
    "glm4moe": GLM,
    "gptoss": GPT_OSS,
    "idefics3": VISION,
    "lfm2": LFM2,
    "llama3": LLAMA3,
    "llava_next": Family(("</s>",), ("[INST]", "[/INST]", "<image>"), "<s>", parts=True),
    "muse_glimmer": MUSE,
    "nemotron": CHATML,
    "phi3": PHI3,
    "qwen": CHATML,
    "smolvlm": VISION,
}
"""By the beginning of the template's name."""


@dataclass(frozen=True)
class Pair:
    """A model's own template, and the same with the model's part marked by hand."""

    name: str
    stock: str
    marked: str
    family: Family


@lru_cache(maxsize=1)
def templates() -> dict[str, str]:
    """Every chat template of the wheel, by name.

    Raises:
        ModelError: the wheel cannot be downloaded, or is not what was published.
    """
    with zipfile.ZipFile(fetch_wheel(WHEEL, WHEEL_SHA256)) as archive:
        return {
            name.removeprefix(FOLDER).removesuffix(".jinja"): archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith(FOLDER) and name.endswith(".jinja")
        }


@lru_cache(maxsize=1)
def pairs() -> tuple[Pair, ...]:
    """Every pair of the wheel, by name."""
    sources = templates()
    names = sorted(name for name in sources if f"{name}_training" in sources)
    return tuple(
        Pair(
            name,
            sources[name],
            sources[f"{name}_training"],
            next(family for start, family in FAMILIES.items() if name.startswith(start)),
        )
        for name in names
    )


def byte_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Every byte a token, and the family's added tokens: the finest mask there can be."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    added = [*family.stops, *family.tokens, *([family.bos] if family.bos else [])]
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=family.stops[0], bos_token=family.bos
    )
