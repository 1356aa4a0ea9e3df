"""The merged model is the trained model: transformers and peft, loaded afresh, are the judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from smollora import merge
from smollora.config import MergeSection, TrainSection
from smollora.data.batch import Row
from smollora.errors import ConfigError, ModelError
from smollora.merge import Lean, apply_merge, load_live, plan_merge
from smollora.models import load_model
from smollora.train import Trained, train_adapter
from tiny_models import FAMILIES, save_model, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer(template="{{ messages }}")
TAGS = TOKENIZER.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
MODES = ("lora", "tool_tokens", "frozen")
TEXTS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Porto"}}\n</tool_call>',
    "It rains in Porto; take an umbrella with you.",
    '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>',
)


def training_rows() -> list[Row]:
    rows = []
    for number, text in enumerate(TEXTS * 2):
        prompt = TOKENIZER.encode(f"user {number}: What is the weather?")
        said = TOKENIZER.encode(f"{text}<|im_end|>")
        weights = (0.0,) * len(prompt) + (1.0,) * len(said)
        parts = (-1,) * len(prompt) + (4,) * len(said)
        rows.append(Row(f"row-{number}", (*prompt, *said), weights, parts))
    return rows


ROWS = training_rows()
PROOF = [row.token_ids for row in ROWS[:3]]


def settings(mode: str, **more: Any) -> TrainSection:
    return TrainSection.model_validate(
        {
            **{"embeddings": mode, "lr": 1e-2, "epochs": 8, "rank": 4, "alpha": 8},
            **{"batch_tokens": 256, "dtype": "float32", "compile": "off"},
            **more,
        }
    )


def trained(
    folder: Path, model: Any, mode: str, *, token_ids: Sequence[int] = TAGS, **more: Any
) -> tuple[Path, Path, Trained]:
    """(base folder, adapter folder, what training made) after a few steps."""
    base, adapter = folder / "base", folder / "adapter"
    save_model(model, TOKENIZER, base)
    adapter.mkdir()
    made = train_adapter(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        ROWS,
        ROWS[:2],
        settings(mode, **more),
        token_ids=token_ids,
        pad_id=TOKENIZER.pad_token_id,
        out=adapter,
    )
    return base, adapter, made


def logits(model: Any) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in PROOF]


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def as_trained(base: Path, adapter: Path) -> Any:
    """What peft itself loads, on a head of its own where the adapter changes the embedding.

    The merge is not asked: base and head are put together by hand here.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    if "embed_tokens" in targets and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return PeftModel.from_pretrained(model, adapter)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_saved_and_loaded_again_is_the_live_adapter(
    family: str, mode: str, tmp_path: Path
) -> None:
    base, adapter, made = trained(tmp_path, tiny_model(family), mode)
    assert made.summary["loss_last"] < made.summary["loss_first"] - 0.5, "nothing was learned"
    live = logits(as_trained(base, adapter))
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert difference(live, logits(untrained)) > 0.5, "the adapter changes nothing"

    plan = plan_merge(base, adapter, tmp_path / "merged", "float32")
    assert plan.unties_head == (mode == "lora")
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert type(again) is type(untrained)
    assert difference(live, logits(again)) <= 1e-4
    assert values["passed"]
    assert values["max_logit_difference_in_memory"] <= 1e-4
    assert values["max_logit_difference_reloaded"] <= 1e-4
    assert values["top1_agreement"] == 1.0
    beginnings = {tuple(row[: end + 1]) for row in PROOF for end in range(len(row))}
    assert values["positions"] == len(beginnings)

    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert values["tied_before"] is True
    assert values["tied_after"] is tied is (mode != "lora")
    if mode != "lora":
        names = stored(tmp_path / "merged")
        assert not any("lm_head" in name for name in names), "a tied head is stored once"


def stored(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as archive:
            names.update(archive.keys())
    return names


@pytest.mark.parametrize("mode", MODES)
def test_a_model_whose_head_is_its_own_is_merged_likewise(mode: str, tmp_path: Path) -> None:
    base, adapter, _ = trained(tmp_path, tiny_model("llama", tied=False), mode)
    live = logits(as_trained(base, adapter))
    plan = plan_merge(base, adapter, tmp_path / "merged", "float32")
    assert not plan.unties_head
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(live, logits(again)) <= 1e-4
    assert values["passed"]
    assert (values["tied_before"], values["tied_after"]) == (False, False)


def test_smollm3_keeps_its_layers_without_rotary_embedding(tmp_path: Path) -> None:
    base, adapter, _ = trained(tmp_path, tiny_model("smollm3"), "lora")
    apply_merge(
        plan_merge(base, adapter, tmp_path / "merged", "float32"),
        PROOF,
        MergeSection(dtype="float32"),
    )
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["model_type"] == "smollm3"
    assert config["no_rope_layers"] == [1, 0]
    assert config["tie_word_embeddings"] is False


def test_the_merged_folder_holds_what_a_server_needs_and_no_adapter(tmp_path: Path) -> None:
    base, adapter, _ = trained(tmp_path, tiny_model("smollm3"), "tool_tokens")
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 2], "do_sample": true}')
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "old.safetensors").touch()
    apply_merge(plan_merge(base, adapter, tmp_path / "merged", "bfloat16"), PROOF, MergeSection())
    merged = tmp_path / "merged"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [1, 2]
    assert not list(merged.glob("adapter*"))
    assert not (merged / "old.safetensors").exists()
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert not any("lora" in name for name in stored(merged))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_adapter_folder_does_not_hold_the_base_embedding(tmp_path: Path) -> None:
    """SmolLM3's would be 525 MB (FACTS 2)."""
    _, adapter, _ = trained(tmp_path, tiny_model("smollm3"), "lora")
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as archive:
        shapes = {name: archive.get_slice(name).get_shape() for name in archive.keys()}  # noqa: SIM118
    assert [512, 64] not in shapes.values()
    assert any("embed_tokens" in name for name in shapes)


def test_bfloat16_falls_short_of_a_tolerance_that_it_cannot_reach(tmp_path: Path) -> None:
    base, adapter, _ = trained(tmp_path, tiny_model("llama"), "frozen")
    plan = plan_merge(base, adapter, tmp_path / "merged", "bfloat16")
    values = apply_merge(plan, PROOF, MergeSection(kl_at_most=1e-12))
    assert values["max_logit_difference_reloaded"] <= 1e-4
    assert values["mean_kl"] > 0
    assert not values["passed"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["smollm3", "qwen3"])
def test_part_by_part_float64_is_float64(
    family: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a model too large to be turned as a whole is compared as exactly."""
    base, adapter, _ = trained(tmp_path, tiny_model(family), mode)
    live = load_live(plan_merge(base, adapter, tmp_path / "merged", "float32"))
    before = {name: p.clone() for name, p in live.named_parameters()}
    with torch.no_grad():
        compared = merge.distinct_rows(PROOF, 1000)
        whole = merge._exact_logits(live, compared)
        monkeypatch.setattr(merge, "WHOLE_UP_TO", 0)
        parts = merge._exact_logits(live, compared)
        single = merge._logits(live, compared)
    assert all(each.dtype == torch.float64 for each in parts)
    # turned as a whole, the frequencies of the rotary embedding are computed in float64 as well
    assert merge._difference(whole, parts) <= 1e-6 < 1e2 * merge._difference(whole, single)
    assert not any(layer._forward_hooks for layer in live.modules())
    for name, parameter in live.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name]), name


def test_a_position_that_rows_begin_with_in_common_counts_once() -> None:
    rows = [[1, 2, 3], [1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9], [7], [1, 2, 4, 5, 6], [8]]
    found = merge.distinct_rows(rows, 9)
    wanted = [([1, 2, 3], 0), ([1, 2, 4, 5], 2), ([1, 2, 3, 9], 3), ([7], 0), ([1, 2, 4, 5, 6], 4)]
    assert found == [*wanted, ([8], 0)]
    assert merge.distinct_rows(rows, 6) == wanted[:3], "as many as are asked for, and no row more"


def test_what_rounding_alone_does_passes_and_a_wrong_weight_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance below float32's own rounding stands for a position that magnifies rounding."""
    base, adapter, _ = trained(tmp_path, tiny_model("llama"), "frozen")
    plan = plan_merge(base, adapter, tmp_path / "merged", "float32")
    strict = MergeSection(dtype="float32", tolerance=1e-12, rounding_times=0)
    values = apply_merge(plan, PROOF, strict)
    assert values["max_logit_difference_reloaded"] > 1e-12
    assert 1e-8 < values["adapter_logit_rounding_float32_arithmetic"] < 1e-4
    assert not values["passed"]
    lenient = MergeSection(dtype="float32", tolerance=1e-12)
    assert apply_merge(plan, PROOF, lenient)["passed"]

    def one_weight_off(folder: Path, **given: Any) -> Any:
        model = load_model(folder, **given)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
        return model

    monkeypatch.setattr(merge, "load_model", one_weight_off)
    assert not apply_merge(plan, PROOF, lenient)["passed"]


# ── what peft does alone ──────────────────────────────────────────────────────────────────────


def test_pefts_own_merge_of_a_tied_model_with_lora_on_the_embedding_is_still_wrong() -> None:
    """FACTS 2, peft 0.21.2: off by 2.03. If this fails, peft has changed: read merge.py again."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"
    )
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        live = get_peft_model(tiny_model("smollm3"), config).eval()
        with torch.no_grad():
            for name, parameter in live.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2)
        expected = logits(live)
        merged = live.merge_and_unload()
    assert difference(expected, logits(merged)) > 0.1


# ── training leaves the rest as it was ────────────────────────────────────────────────────────


SAMPLE = torch.tensor([[*ROWS[0].token_ids, *TAGS, 5, 6]])


@pytest.mark.parametrize("nats", [0.7, -0.4])
@pytest.mark.parametrize(
    ("mode", "tied", "more"),
    [
        *((mode, tied, {}) for mode in MODES for tied in (True, False)),
        ("frozen", False, {"modules_to_save": ["lm_head"]}),
        *(("tool_tokens", tied, {"token_ids": TAGS[1:]}) for tied in (True, False)),
    ],
)
def test_a_bias_moves_the_opening_token_alone_and_the_merge_is_proved_with_it(
    mode: str, tied: bool, more: dict[str, Any], nats: float, tmp_path: Path
) -> None:
    """Against the live adapter without it, opened by peft: where answers begin, the opening token's
    logit rises by so much in the mean, and no other's changes. Also where other rows are trained.
    """
    base, adapter, _ = trained(tmp_path, tiny_model("llama", tied=tied), mode, **more)
    begin = [row.token_ids[: row.weights.index(1.0)] for row in ROWS[:4]]
    plan = plan_merge(base, adapter, tmp_path / "merged", "float32")
    made = apply_merge(plan, PROOF, MergeSection(), lean=Lean(TAGS[0], nats, begin))
    assert made["passed"] and made["open_bias"] == nats
    merged = AutoModelForCausalLM.from_pretrained(plan.out, dtype=torch.float32).eval()
    before, after = (
        torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in begin])
        for model in (as_trained(base, adapter), merged)
    )
    moved = (after - before).detach()
    assert moved[:, TAGS[0]].mean().item() == pytest.approx(nats, abs=1e-3)
    others = [token for token in range(moved.shape[1]) if token != TAGS[0]]
    assert moved[:, others].abs().max() < 1e-3


def test_a_bias_without_a_prompt_to_measure_it_on_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = trained(tmp_path, tiny_model("llama"), "tool_tokens")
    plan = plan_merge(base, adapter, tmp_path / "merged", "float32")
    with pytest.raises(ConfigError, match="no held-out row with tools") as refused:
        apply_merge(plan, PROOF, MergeSection(), lean=Lean(TAGS[0], 1.0, ()))
    assert "merge.open_bias" in str(refused.value.hint)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_token_rows_computed_apart_are_what_peft_computes(tied: bool) -> None:
    """compute_rows_apart against peft's own layer: the same logits and the same gradients."""
    from smollora.train import attach_adapter, compute_rows_apart

    def run(apart: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        peft = attach_adapter(tiny_model("smollm3", tied=tied), settings("tool_tokens"), TAGS)
        torch.manual_seed(2)
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.1)
                assert parameter.dtype == torch.float32, name
        if apart:
            compute_rows_apart(peft)
        found = peft(input_ids=SAMPLE, use_cache=False).logits
        (found.sigmoid() * torch.linspace(-1, 1, found.shape[-1])).sum().backward()
        return found.detach(), {
            name: p.grad for name, p in peft.named_parameters() if p.grad is not None
        }

    (ours, our_grads), (pefts, pefts_grads) = run(True), run(False)
    assert (ours - pefts).abs().max() <= 1e-5
    assert our_grads.keys() == pefts_grads.keys()
    for name, grad in pefts_grads.items():
        assert (our_grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


@pytest.mark.parametrize("mode", MODES)
def test_only_what_the_mode_names_is_trained(mode: str, tmp_path: Path) -> None:
    base, _, made = trained(tmp_path, tiny_model("smollm3"), mode)
    names = [name for name, p in made.model.named_parameters() if p.requires_grad]
    embedding = [name for name in names if "embed_tokens" in name]
    if mode == "lora":
        assert {name.split(".")[-2] for name in embedding} == {
            "lora_embedding_A",
            "lora_embedding_B",
        }
    elif mode == "tool_tokens":
        assert [p.shape for n, p in made.model.named_parameters() if n in embedding] == [(2, 64)]
    else:
        assert embedding == []
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    compared = 0
    for name, parameter in made.model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if not parameter.requires_grad and plain in stock:
            assert torch.equal(parameter, stock[plain]), name
            compared += 1
    assert compared >= 2 * 9, "of each layer seven products and two norms"


def test_a_target_that_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="c_attn match nothing") as caught:
        trained(tmp_path, tiny_model("llama"), "frozen", targets=["q_proj", "c_attn"])
    assert "q_proj" in caught.value.hint


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    base = save_model(tiny_model("llama"), TOKENIZER, tmp_path / "base")
    with pytest.raises(ModelError, match="no readable adapter"):
        plan_merge(base, tmp_path / "nowhere", tmp_path / "merged", "float32")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _, adapter, _ = trained(tmp_path, tiny_model("llama"), "frozen")
    other = tmp_path / "other"
    save_model(tiny_model("llama", key_value_heads=4), TOKENIZER, other)
    plan = plan_merge(other, adapter, tmp_path / "merged", "float32")
    with pytest.raises(ModelError, match="does not fit"):
        load_live(plan)


def test_a_config_that_says_nothing_about_tying_means_its_familys_default(tmp_path: Path) -> None:
    """True for SmolLM3, False for Llama and Mistral: what transformers would load."""
    from smollora.models import read_architecture

    for family, tied in (("smollm3", True), ("llama", False), ("mistral", False)):
        base = save_model(tiny_model(family, tied=tied), TOKENIZER, tmp_path / family)
        config = json.loads((base / "config.json").read_text())
        del config["tie_word_embeddings"]
        (base / "config.json").write_text(json.dumps(config))
        loaded = AutoModelForCausalLM.from_pretrained(base)
        assert (
            loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        ) is tied
        assert read_architecture(base)["tied_embeddings"] is tied
