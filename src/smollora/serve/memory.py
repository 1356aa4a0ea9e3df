"""How long a conversation may be, and how much memory its keys and values get.

In: a model folder and a machine. Out: a `Room`. The surprise: on a CPU vLLM takes 92% of the
machine's memory unless it is told how much, and refuses to start where that is not free; so the
cache is sized here, for eight conversations of full length if there is room, never more than half
of what is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.architecture import read_config
from smollora.errors import ConfigError, SmolloraError
from smollora.serve.machine import Machine
from smollora.tokenizer_file import read_json_object

GIB = 2**30
OVERHEAD_BYTES = 2 * GIB
"""What vLLM's processes take beside weights and cache (two Pythons with torch)."""
CONVERSATIONS = 8
LEAST_CACHE = GIB
LEAST_LENGTH = 512
BLOCK = 128
"""Tokens in a block of the cache on a CPU."""
DTYPES = ("auto", "bfloat16", "float16", "float32")
VALUE_BYTES = {"float32": 4}
"""Of a key or a value; two for the other types."""


@dataclass(frozen=True, slots=True)
class Room:
    """What fits."""

    dtype: str
    max_length: int | None
    """None: the longest conversation that vLLM finds room for (`--max-model-len auto`)."""
    cache_bytes: int | None
    """None: as much as vLLM takes on a GPU."""
    eager: bool
    """True: layers are not compiled, which on a CPU takes minutes before the first answer."""
    notes: tuple[str, ...] = ()


def plan_room(
    folder: Path, machine: Machine, wanted: int | None, *, dtype: str | None = None
) -> Room:
    """Type, length and cache of a model on a machine.

    Args:
        folder: the model.
        machine: where it is served.
        wanted: longest conversation in tokens; None: the model's context, as far as memory goes.
        dtype: None: bfloat16 on a CPU that computes it, else float32; on a GPU what vLLM chooses.

    Raises:
        ConfigError: a length beyond the context, or an unknown type.
        SmolloraError: not enough memory.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f'"{dtype}" is no type', f"use one of: {', '.join(DTYPES)}")
    context = read_context(folder)
    if wanted is not None and wanted < 1:
        raise ConfigError(f"--max-length is {wanted}", "use the number of tokens, such as 4096")
    if wanted is not None and context is not None and wanted > context:
        raise ConfigError(
            f"--max-length is {wanted:,}, and the model's context {context:,} tokens",
            f"use at most {context}",
        )
    length = wanted or context
    if machine.device == "gpu":
        return Room(dtype or "auto", wanted, None, False)
    chosen = dtype or ("bfloat16" if machine.has_bf16 else "float32")
    per_token = cache_bytes_per_token(folder, VALUE_BYTES.get(chosen, 2))
    if machine.free_bytes is None or per_token is None or length is None:
        return Room(chosen, length, LEAST_CACHE, True)
    free = machine.free_bytes - weight_bytes(folder) - OVERHEAD_BYTES
    cache = min(free // 2, max(LEAST_CACHE, CONVERSATIONS * length * per_token))
    fits = max(0, cache // (per_token * BLOCK) - 1) * BLOCK
    if fits >= length:
        return Room(chosen, length, cache, True)
    short = f"{machine.free_bytes / GIB:.1f} GiB of memory are free"
    if fits < min(LEAST_LENGTH, length):
        raise SmolloraError(
            f"the model does not fit: {short}, its weights take {weight_bytes(folder) / GIB:.1f}",
            "end other programs, or use a larger machine",
        )
    if wanted is not None:
        raise SmolloraError(
            f"{short}, which is enough for conversations of {fits:,} tokens, not {wanted:,}",
            f"use --max-length {fits}, or end other programs",
        )
    note = f"the model's context is {length:,} tokens; {short}, enough for {fits:,}"
    return Room(chosen, fits, cache, True, (note,))


def _text_config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def read_context(folder: Path) -> int | None:
    """Tokens that vLLM lets a conversation have: what config.json says, and never more than the
    tokenizer's own limit; None if neither names one.
    """
    said = _text_config(folder).get("max_position_embeddings")
    limit = read_json_object(folder / "tokenizer_config.json").get("model_max_length")
    known = [int(n) for n in (said, limit) if isinstance(n, int | float) and 0 < n < 10**9]
    return min(known) if known else None


def cache_bytes_per_token(folder: Path, value_bytes: int) -> int | None:
    """Bytes of keys and values of one token in all layers; None where config.json does not say."""
    config = _text_config(folder)
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    layers, hidden, heads = (int(config.get(key) or 0) for key in keys)
    if not layers or not hidden or not heads:
        return None
    size = int(config.get("head_dim") or hidden // heads)
    return 2 * layers * int(config.get("num_key_value_heads") or heads) * size * value_bytes


def weight_bytes(folder: Path) -> int:
    """Size of the weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
