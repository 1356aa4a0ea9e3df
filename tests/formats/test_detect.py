"""Which format a published template writes: decided by hand from what each of them renders."""

from __future__ import annotations

import pytest

from smollora.formats import FORMATS
from smollora.formats.detect import UNKNOWN, detect_format
from trl_pairs import templates

FAMILIES: dict[str, str] = {
    "cohere": UNKNOWN,
    "cohere2": UNKNOWN,
    "deepseek_r1_distill": "deepseek_v3",
    "deepseekv3": "deepseek_v3",
    "diffusion_gemma": "gemma4",
    "gemma": UNKNOWN,
    "gemma3": UNKNOWN,
    "gemma4": "gemma4",
    "gemma4_v5": "gemma4",
    "glm4moe": UNKNOWN,  # <tool_call> too, but <arg_key> inside
    "gptoss": UNKNOWN,  # harmony
    "idefics3": UNKNOWN,
    "lfm2": UNKNOWN,  # its first template renders no calls
    "lfm2_v2": "lfm2",
    "lfm2_2_5": "lfm2",
    "lfm2_2_5_v2": "lfm2",
    "llama3": UNKNOWN,
    "llama3_1": "llama3_json",
    "llama3_2": "llama3_json",
    "llava_next": UNKNOWN,
    "muse_glimmer": UNKNOWN,
    "nemotron_3_nano": "qwen3_coder",
    "nemotron_3_super": "qwen3_coder",
    "nemotron_3_ultra": "qwen3_coder",
    "nemotron_3_5_lightning": "qwen3_coder",
    "phi3": UNKNOWN,
    "qwen2_5": "hermes",
    "qwen2_5_vl": UNKNOWN,
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
    "qwen3_5_think": "qwen3_coder",
    "qwen3_5_nothink": "qwen3_coder",
    "qwen3_6": "qwen3_coder",
    "qwen3_8": "qwen3_coder",
    "smolvlm": UNKNOWN,
}
"""From the template alone, with no vocabulary."""


@pytest.mark.network
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_format_is_told_from_its_template(family: str) -> None:
    assert detect_format(set(), templates()[family]) == FAMILIES[family]


@pytest.mark.network
def test_a_template_made_for_training_is_of_the_same_format() -> None:
    pairs = [name for name in templates() if f"{name}_training" in templates()]
    assert len(pairs) > 20
    for name in pairs:
        found = detect_format(set(), templates()[f"{name}_training"])
        assert found == detect_format(set(), templates()[name]), name


@pytest.mark.network
def test_where_the_template_is_silent_the_vocabulary_tells() -> None:
    tags = {"<|tool_call_start|>": 1, "<|tool_call_end|>": 2}
    assert detect_format(tags, templates()["lfm2"]) == "lfm2"
    tags = {"<tool_call>": 1, "</tool_call>": 2}
    assert detect_format(tags, templates()["qwen2_5_vl"]) == "hermes"
    assert detect_format(tags, templates()["glm4moe"]) == UNKNOWN, "the same tags, another grammar"
    assert detect_format({"<|python_tag|>": 1}, templates()["llama3"]) == "llama3_json"


MISTRAL = "{% for call in message.tool_calls %}[TOOL_CALLS] [{{ call }}]{% endfor %}"


def test_mistrals_two_formats_are_told_apart_by_a_token_or_by_the_template() -> None:
    assert detect_format({"[TOOL_CALLS]": 5}, MISTRAL) == "mistral"
    assert detect_format({"[TOOL_CALLS]": 5, "[ARGS]": 6}, MISTRAL) == "mistral_v11"
    assert detect_format(set(), "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}") == "mistral_v11"


def test_nothing_at_all_is_unknown() -> None:
    assert detect_format(set(), "") == UNKNOWN
    assert UNKNOWN not in FORMATS
