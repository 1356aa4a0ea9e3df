"""Parameters, ties and the rest of an architecture, worked out from config.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from smollora.architecture import (
    FAMILIES,
    class_default,
    count_parameters,
    read_architecture,
    read_config,
    ties_embeddings,
)
from smollora.errors import ModelError

SMOLLM3_3B = {
    "model_type": "smollm3",
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 11008,
    "vocab_size": 128256,
    "max_position_embeddings": 65536,
    "attention_bias": False,
    "mlp_bias": False,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "rope_scaling": None,
}
"""The numbers of the published config.json; `tie_word_embeddings` is absent there as well."""

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "pad_token_id": 0,
}


def folder_with(path: Path, config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def counted_by_transformers(family: str, config: dict[str, Any]) -> int:
    """What the real class holds, without memory for it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    unique = {id(p): p.numel() for p in model.parameters()}  # a tied head is one tensor
    return sum(unique.values())


def test_smollm3_has_the_parameters_that_its_shards_hold(tmp_path: Path) -> None:
    """3,075,098,624: bf16 bytes of the published shards, by two."""
    found = read_architecture(folder_with(tmp_path, SMOLLM3_3B))
    assert found["parameters"] == 3_075_098_624
    assert found["parameters_from"] == "config"
    assert found["attention"] == "16 query heads on 4 key-value heads (GQA 4:1)"
    assert found["layers_without_rotary_embedding"] == [3, 7, 11, 15, 19, 23, 27, 31, 35]
    assert found["tied_embeddings"] is True
    assert found["context"] == 65536
    assert found["rope_scaling"] is None
    assert found["yarn_factor"] is None
    assert 6.2e9 < found["lora_memory_bytes_bf16"] < 9e9


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_count_is_that_of_the_real_class(family: str, tied: bool) -> None:
    config = {**SMALL, "tie_word_embeddings": tied}
    if family == "phi3":
        config.pop("head_dim")
    if FAMILIES[family].experts:
        config |= {FAMILIES[family].experts: 8, "moe_intermediate_size": 48}
    assert count_parameters({"model_type": family, **config}) == counted_by_transformers(
        family, config
    )


@pytest.mark.parametrize(
    "more",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_biases_count(more: dict[str, bool]) -> None:
    config = {**SMALL, "tie_word_embeddings": True, **more}
    for family in ("llama", "smollm3"):
        assert count_parameters({"model_type": family, **config}) == counted_by_transformers(
            family, config
        )


@pytest.mark.parametrize("family", sorted({*FAMILIES, "cohere", "gpt_neox", "olmo3"}))
def test_an_absent_tie_is_the_default_of_its_class(family: str, tmp_path: Path) -> None:
    config = {"model_type": family, "hidden_size": 64}
    wanted = CONFIG_MAPPING[family]().tie_word_embeddings
    assert ties_embeddings(folder_with(tmp_path, config)) is wanted


def test_a_default_is_looked_up_only_for_names_of_families() -> None:
    assert class_default("../../../etc/passwd", "tie_word_embeddings") is None
    assert class_default("no_such_family", "tie_word_embeddings") is None


def test_an_unknown_family_without_weights_has_no_count(tmp_path: Path) -> None:
    found = read_architecture(folder_with(tmp_path, {**SMALL, "model_type": "fable"}))
    assert found["parameters"] is None
    assert found["lora_memory_bytes_bf16"] is None


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_yarn_is_told_with_its_factor(key: str, tmp_path: Path) -> None:
    config = {**SMOLLM3_3B, key: {"rope_type": "yarn", "factor": 2.0}}
    found = read_architecture(folder_with(tmp_path, config))
    assert (found["yarn_factor"], found["rope_scaling"]) == (2.0, "yarn, factor 2.0")


def test_layers_without_rotary_follow_the_interval_where_no_list_is_given(tmp_path: Path) -> None:
    config = {key: value for key, value in SMOLLM3_3B.items() if key != "no_rope_layers"}
    found = read_architecture(folder_with(tmp_path, {**config, "no_rope_layer_interval": 6}))
    wanted = CONFIG_MAPPING["smollm3"](num_hidden_layers=36, no_rope_layer_interval=6)
    assert found["layers_without_rotary_embedding"] == [
        layer for layer, on in enumerate(wanted.no_rope_layers) if not on
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_config_that_is_none_is_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_config(tmp_path / "absent")
