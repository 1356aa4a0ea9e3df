"""A model's architecture in true words, from its config.json alone.

In: a model folder. Out: heads and their sharing, layers without rotary embedding, ties, context,
the exact number of parameters, and what LoRA on it needs. Neither torch nor transformers is
imported, and no weights are read but the headers of safetensors files, if there are any.

The surprise: a config.json leaves out what is its class's default, and the defaults of families
differ (SmolLM3 ties its embeddings, Llama does not), so an absent key is looked up in the source of
the installed transformers, never guessed.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from smollora.errors import ModelError
from smollora.tokenizer_file import read_json_object

LORA_RANK = 16
"""Rank that the memory of LoRA is worked out for: the recipes' default."""


@dataclass(frozen=True, slots=True)
class Family:
    """What a family's layers hold beyond four projections, a gated MLP and two norms."""

    qkv_bias: bool | None = None
    """None: as `attention_bias` says, which then holds for the output projection as well."""
    norms: int = 2
    """Normalisations of the hidden state in a layer."""
    qk_norm: Literal["none", "head", "all"] = "none"
    head_size: int | None = None
    """Where config.json names none; None: hidden size by heads."""
    experts: str = ""
    """Key of the number of experts; empty for dense layers."""
    expert_size: str = "intermediate_size"


FAMILIES = {
    "llama": Family(),
    "mistral": Family(qkv_bias=False),
    "smollm3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head", head_size=128),
    "gemma": Family(head_size=256),
    "gemma2": Family(norms=4, head_size=256),
    "gemma3_text": Family(norms=4, qk_norm="head", head_size=256),
    "phi3": Family(qkv_bias=False),
    "granite": Family(),
    "olmo2": Family(qk_norm="all"),
    "mixtral": Family(qkv_bias=False, experts="num_local_experts"),
    "qwen3_moe": Family(qk_norm="head", experts="num_experts", expert_size="moe_intermediate_size"),
}
"""Families whose parameters can be counted from the config; a test holds each to transformers."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        ModelError: not there, or no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no config.json", "give a model folder in Hugging Face form"
        )
    return read_json_object(path)


def ties_embeddings(folder: Path) -> bool:
    """True if input embedding and head are one tensor; an absent key means the class's default."""
    return _ties(read_config(folder))


def _ties(config: dict[str, Any]) -> bool:
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    default = class_default(str(config.get("model_type")), "tie_word_embeddings")
    return True if default is None else default


@lru_cache(maxsize=64)
def class_default(family: str, key: str) -> bool | None:
    """The default of a switch in transformers' config class, read from its source; None if absent.

    Importing the class would import torch.
    """
    found = importlib.util.find_spec("transformers")
    if found is None or not found.origin or not re.fullmatch(r"\w+", family):
        return None
    for name in (family, family.removesuffix("_text")):
        path = Path(found.origin).parent / "models" / name / f"configuration_{name}.py"
        if path.is_file():
            source = path.read_text(encoding="utf-8")
            said = re.search(rf"\b{key}(?:: [\w |]+)? ?= ?(True|False)\b", source)
            return said[1] == "True" if said else None
    return None


def read_architecture(folder: Path) -> dict[str, Any]:
    """The architecture in true words; nothing is loaded."""
    config = read_config(folder)
    config = (
        {**config, **config["text_config"]}
        if isinstance(config.get("text_config"), dict)
        else config
    )
    heads = _whole(config, "num_attention_heads")
    kv_heads = _whole(config, "num_key_value_heads") or heads
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    counted, weights = count_parameters(config), _count_in_files(folder)
    parameters = weights if counted is None else counted
    return {
        "model_type": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "hidden_size": config.get("hidden_size"),
        "attention": _attention(heads, kv_heads),
        "gqa_ratio": heads // kv_heads if heads and kv_heads else None,
        "layers_without_rotary_embedding": _layers_without_rotary(config),
        "vocabulary": config.get("vocab_size"),
        "tied_embeddings": _ties(config),
        "context": config.get("max_position_embeddings"),
        "rope_scaling": None if kind == "default" else f"{kind}, factor {scaling.get('factor')}",
        "yarn_factor": scaling.get("factor") if kind == "yarn" else None,
        "parameters": parameters,
        "parameters_from": None
        if parameters is None
        else "weights"
        if counted is None
        else "config",
        "parameters_in_weights": weights,
        "lora_memory_bytes_bf16": _lora_memory(config, parameters),
    }


def _attention(heads: int, kv_heads: int) -> str | None:
    if not heads or not kv_heads:
        return None
    if heads == kv_heads:
        return f"{heads} heads, each with keys and values of its own"
    return f"{heads} query heads on {kv_heads} key-value heads (GQA {heads // kv_heads}:1)"


def _layers_without_rotary(config: dict[str, Any]) -> list[int]:
    """Layers whose attention sees no positions; `no_rope_layers` holds 0 for them."""
    marks = config.get("no_rope_layers")
    layers = _whole(config, "num_hidden_layers")
    if marks is None and config.get("model_type") == "smollm3":
        every = _whole(config, "no_rope_layer_interval") or 4
        marks = [int((layer + 1) % every != 0) for layer in range(layers)]
    return [layer for layer, has_rotary in enumerate(marks or []) if not has_rotary]


def _whole(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def count_parameters(config: dict[str, Any]) -> int | None:
    """Exact number of parameters; None for families that are not in `FAMILIES` or lack a size."""
    family = FAMILIES.get(str(config.get("model_type")))
    sizes = [_whole(config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")]
    hidden, layers, vocabulary = sizes
    if family is None or not all(sizes) or not _whole(config, "num_attention_heads"):
        return None
    embedding = vocabulary * hidden
    body = layers * (_attention_size(config, family) + family.norms * hidden)
    mlp = sum(_mlp_size(config, family, layer) for layer in range(layers))
    return embedding * (1 if _ties(config) else 2) + body + mlp + hidden


def _projections(config: dict[str, Any], family: Family) -> dict[str, tuple[int, int]]:
    """(in, out) of the projections of one attention."""
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    size = _whole(config, "head_dim") or family.head_size or hidden // heads
    queries, keys = heads * size, (_whole(config, "num_key_value_heads") or heads) * size
    return {
        "q": (hidden, queries),
        "k": (hidden, keys),
        "v": (hidden, keys),
        "o": (queries, hidden),
    }


def _attention_size(config: dict[str, Any], family: Family) -> int:
    parts = _projections(config, family)
    biased = {"q", "k", "v"} if family.qkv_bias else set()
    if family.qkv_bias is None and config.get("attention_bias"):
        biased = set(parts)
    size = sum(into * out + (out if name in biased else 0) for name, (into, out) in parts.items())
    if family.qk_norm == "all":
        return size + parts["q"][1] + parts["k"][1]
    if family.qk_norm == "head":
        return size + 2 * (parts["q"][1] // _whole(config, "num_attention_heads"))
    return size


def _mlp_size(config: dict[str, Any], family: Family, layer: int) -> int:
    hidden, inner = _whole(config, "hidden_size"), _whole(config, "intermediate_size")
    every = _whole(config, "decoder_sparse_step") or 1
    is_sparse = layer not in (config.get("mlp_only_layers") or []) and (layer + 1) % every == 0
    if family.experts and is_sparse:
        experts = _whole(config, family.experts)
        return experts * (3 * hidden * _whole(config, family.expert_size)) + experts * hidden
    return 3 * hidden * inner + (2 * inner + hidden if config.get("mlp_bias") else 0)


def _lora_memory(config: dict[str, Any], parameters: int | None) -> int | None:
    """Bytes: weights in bf16; factors of rank 16 on every linear layer, with gradients and Adam's
    two moments, in fp32; and a GiB for activations, which depend on the batch.
    """
    if parameters is None:
        return None
    family = FAMILIES.get(str(config.get("model_type")))
    factors = parameters // 100
    if family is not None and not family.experts:
        hidden, inner = _whole(config, "hidden_size"), _whole(config, "intermediate_size")
        sides = sum(map(sum, _projections(config, family).values())) + 3 * (hidden + inner)
        factors = LORA_RANK * sides * _whole(config, "num_hidden_layers")
    return 2 * parameters + 16 * factors + 2**30


def _count_in_files(folder: Path) -> int | None:
    """Parameters in the safetensors files of a folder; None without weights."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in files:
        try:
            with safe_open(path, framework="numpy") as archive:
                for name in archive.keys():  # noqa: SIM118 (safe_open is no dict)
                    count += math.prod(archive.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ModelError(
                f"{path} is not a safetensors file: {error}", "fetch the model again"
            ) from error
    return count
