"""Which adapters vLLM serves as LoRA modules, and why it refuses the others.

In: adapter_config.json. Out: reasons in words (none: vLLM takes it) and the rank to allow. They
follow vLLM 0.32: `vllm/lora/peft_helper.py` refuses what it does not compute, and `lora_model.py`
every tensor that is no LoRA factor, which is what trained token rows are. The surprise: vLLM says
so only after the model is loaded, and then ends; here it is said before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollora.errors import ModelError
from smollora.serve.target import Target, merge_command, shown

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes (`MaxLoRARanks` in vllm/config/lora.py)."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""`init_lora_weights` that leave the base as it is; other names change its weights."""
HEADS = ("classifier", "score")
"""The `modules_to_save` that vLLM takes, of models that classify."""


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM would refuse the adapter; empty if it takes it."""
    reasons = []
    kind = config.get("peft_type")
    if kind != "LORA":
        reasons.append(f"it is no LoRA adapter but {kind}")
    if config.get("trainable_token_indices"):
        reasons.append("it trains rows of single tokens (trainable_token_indices)")
    saved = [name for name in config.get("modules_to_save") or [] if name not in HEADS]
    if saved:
        reasons.append(f"it holds whole modules (modules_to_save: {', '.join(saved)})")
    if config.get("ensure_weight_tying"):
        reasons.append("it trains embedding and head as one (ensure_weight_tying)")
    if config.get("use_dora"):
        reasons.append("it is DoRA (use_dora)")
    if config.get("lora_bias") or config.get("bias", "none") != "none":
        reasons.append("it trains biases (bias, lora_bias)")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        reasons.append(f"its start changed the base's weights (init_lora_weights: {init})")
    for key in ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"):
        if config.get(key):
            reasons.append(f"vLLM does not compute {key}")
    if highest_rank(config) > RANKS[-1]:
        reasons.append(f"its rank {highest_rank(config)} is above {RANKS[-1]}")
    return reasons


def highest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any module.

    Raises:
        ModelError: the config names none.
    """
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ModelError(
            f"adapter_config.json has no usable rank (r: {config.get('r')})",
            "check that the adapter is whole",
        )
    return max(rank for rank in ranks if isinstance(rank, int))


def allowed_rank(config: Mapping[str, Any]) -> int:
    """The smallest `--max-lora-rank` that holds the adapter."""
    return next(rank for rank in RANKS if rank >= highest_rank(config))


def check_adapter(target: Target, config: Mapping[str, Any]) -> None:
    """Raises ModelError with every reason, and the command that serves the merged model instead."""
    adapter = target.adapter
    assert adapter is not None
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{adapter} holds no adapter_model.safetensors", "smollora reads no pickled weights"
        )
    reasons = refusals(config)
    if reasons:
        raise ModelError(
            f"vLLM does not serve the adapter {adapter}: {'; '.join(reasons)}",
            f"serve it merged: {_merged_command(target, config)}",
        )


def _merged_command(target: Target, config: Mapping[str, Any]) -> str:
    run = target.run
    if run is not None and (run / "merge" / "model").is_dir():
        return f"smollora serve {shown(run)}"
    if run is not None:
        return f"{merge_command(run)}, then smollora serve {shown(run)}"
    if config.get("ensure_weight_tying"):
        return (
            "train it again without ensure_weight_tying, for peft adds its change twice when it"
            " merges; then smollora serve the merged folder"
        )
    return (
        'python -c "from peft import AutoPeftModelForCausalLM as M;'
        f" M.from_pretrained('{shown(target.adapter or target.model)}').merge_and_unload()"
        ".save_pretrained('merged')\", copy the tokenizer's files and chat_template.jinja beside,"
        " then smollora serve merged"
    )
