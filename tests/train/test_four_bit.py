"""A 4-bit base: what is rounded and what is not, that it trains as its own rounded weights would,
and that the merge goes into the full ones.

The other side is bitsandbytes' own reading of its weights, written into a plain model.
"""

from __future__ import annotations

import json
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.import_utils import is_bnb_available
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from smollora.architecture import count_parameters
from smollora.config import MergeSection, load_recipe
from smollora.errors import ConfigError
from smollora.merge import Lean, apply_merge, plan_merge
from smollora.models import load_model, without_bitsandbytes
from smollora.pipeline import stage_keys
from smollora.train import (
    Trained,
    attach_adapter,
    compute_rows_apart,
    four_bit,
    fused_lora,
    train_adapter,
)
from smollora.train.four_bit import (
    FourBitPlan,
    base_weights_summary,
    check_four_bit,
    describe_saving,
    four_bit_layers,
    load_for_training,
    load_four_bit,
    plan_four_bit,
)
from smollora.train.fused_four_bit import fuse_four_bit
from smollora.train.speed import read_cost
from tiny_models import FAMILIES, save_model, tiny_model
from tiny_runs import copy_run, mixed_run, smollora
from tiny_training import (
    CLOSE,
    ENDS,
    OPEN,
    PAD,
    ROWS,
    TOKENIZER,
    curve,
    section,
    start,
    torchrun,
    wait_for_checkpoint,
)

PROOF = [row.token_ids for row in ROWS[:3]]
MODES = ("lora", "tool_tokens", "frozen")
IDS = torch.arange(3, 43)[None]


def base_folder(folder: Path, family: str = "llama", **more: Any) -> Path:
    return save_model(tiny_model(family, **more), TOKENIZER, folder / "base")


def train_on(base: Path, model: Any, out: Path, **more: Any) -> Trained:
    return train_adapter(
        model,
        ROWS,
        ROWS[:4],
        section(**{"lr": 1e-2, "epochs": 6, **more}),
        token_ids=[OPEN, CLOSE],
        pad_id=PAD,
        out=out / "adapter",
        base=base,
        ends=ENDS,
    )


def rounded(base: Path, model: Any) -> Any:
    """A plain model of full layers that hold what bitsandbytes reads out of 4-bit ones."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = dict(plain.named_modules())
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, Linear4bit):
                values = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                layers[name].weight.copy_(values)
    return plain


def logits(model: Any) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in PROOF]


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


# ── what is 4-bit ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_layers_are_4_bit_and_nothing_else_is(
    family: str, tied: bool, tmp_path: Path
) -> None:
    base = base_folder(tmp_path, family, tied=tied)
    model = load_four_bit(base, dtype="bfloat16")
    kinds = {name: type(module) for name, module in model.named_modules()}
    packed = {name.rsplit(".", 1)[-1] for name, kind in kinds.items() if kind is Linear4bit}
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert packed == wanted
    assert sum(kind is Linear4bit for kind in kinds.values()) == 2 * len(wanted)
    assert kinds["lm_head"] is torch.nn.Linear
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) is tied
    full = load_model(base, dtype="bfloat16")
    others = {name: p for name, p in full.named_parameters() if "_proj" not in name}
    assert "model.embed_tokens.weight" in others and "model.norm.weight" in others
    found = dict(model.named_parameters())
    for name, parameter in others.items():
        assert torch.equal(found[name], parameter), name
    for layer in four_bit_layers(model):
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)
        assert layer.compute_dtype == torch.bfloat16


def test_each_weight_is_what_bitsandbytes_makes_of_it(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    model = load_four_bit(base, dtype="float32")
    weights = load_file(base / "model.safetensors")
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            packed, state = quantize_4bit(
                weights[f"{name}.weight"].float(), compress_statistics=True, quant_type="nf4"
            )
            assert torch.equal(layer.weight.data, packed), name
            read = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            assert torch.equal(read, dequantize_4bit(packed, state)), name


def test_modules_that_are_trained_whole_stay_full(tmp_path: Path) -> None:
    base = base_folder(tmp_path, tied=False)
    model = load_four_bit(base, dtype="float32", whole=["mlp"])
    packed = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert packed == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert plan_four_bit(base, ["mlp"]).layers == len(four_bit_layers(model))


# ── what it saves ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_is_then_4_bit(family: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path, family)
    plan = plan_four_bit(base)
    found = base_weights_summary(load_four_bit(base, dtype="bfloat16"), "bfloat16")
    assert plan.layers == found["base_layers_4bit"]
    assert plan.parameters == found["base_parameters_4bit"]
    config = json.loads((base / "config.json").read_text())
    assert plan.parameters + plan.kept == count_parameters(config)


def test_a_weight_takes_4_bits_and_an_eighth() -> None:
    """Dettmers et al. 2023, section 3: double quantization takes the scales from 0.5 bits a weight
    to 0.127.
    """
    weight = torch.randn(1024, 2048)
    packed, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    held = packed.nbytes + sum(t.nbytes for t in state.as_dict(packed=True).values())
    plan = FourBitPlan(1, weight.numel(), 0)
    assert held * 8 / weight.numel() == pytest.approx(4.127, abs=0.01)
    assert plan.saved_bytes("bfloat16") == pytest.approx(2 * weight.numel() - held, rel=1e-3)
    assert plan.saved_bytes("float32") == pytest.approx(4 * weight.numel() - held, rel=1e-3)


def test_the_operations_of_a_packed_weight_are_those_of_the_full_one(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    packed = read_cost(load_four_bit(base, dtype="float32"), "float32", "cpu")
    full = load_model(base, dtype="float32")
    full.requires_grad_(False)
    full.get_output_embeddings().requires_grad_(True)
    plain = read_cost(full, "float32", "cpu")
    assert packed.per_token == plain.per_token


# ── training ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *(("llama", mode) for mode in MODES),
        *(("mistral", "frozen"), ("qwen3", "lora"), ("smollm3", "tool_tokens")),
    ],
)
def test_it_trains_as_a_full_model_of_the_rounded_weights_does(
    family: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layer by layer: 28 steps make much of sums in another order."""
    monkeypatch.setattr(fused_lora, "TOGETHER", ())
    base = base_folder(tmp_path, family)
    model = load_four_bit(base, dtype="float32")
    plain = rounded(base, model)
    off = max(
        (a - b).abs().max().item()
        for (_, a), b in zip(
            plain.named_parameters(), load_model(base, dtype="float32").parameters(), strict=True
        )
    )
    assert off > 1e-3, "4 bits round"
    wanted = train_on(base, plain, tmp_path / "plain", embeddings=mode)
    found = train_on(base, model, tmp_path / "4bit", embeddings=mode, base_weights="4bit")
    assert wanted.summary["loss_last"] < wanted.summary["loss_first"] - 0.5, "nothing was learned"
    for ours, theirs in zip(found.curve, wanted.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), ours["step"]
    assert found.summary["validation_loss"] == pytest.approx(
        wanted.summary["validation_loss"], abs=1e-4
    )
    assert (found.summary["base_weights"], wanted.summary["base_weights"]) == ("4bit", "full")
    assert found.summary["base_layers_4bit"] == 14


def test_only_the_adapter_learns_and_packed_weights_stay_packed(tmp_path: Path) -> None:
    """bitsandbytes (0.50.2) repacks a layer that a processor with AVX512-BF16 asks without
    gradients, as every validation does, and from then on it gives none.
    """
    base = base_folder(tmp_path)
    model = load_four_bit(base, dtype="float32")
    before = [layer.weight.data.clone() for layer in four_bit_layers(model)]
    logits(model)
    found = train_on(base, model, tmp_path, base_weights="4bit", max_epochs=8)
    assert len(found.summary["validation_losses"]) > 1, "validated while training"
    layers = four_bit_layers(found.model)
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight.data, weight)
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    named = {n: p for n, p in found.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "trainable_tokens" in name for name in named)
    assert all(p.dtype == torch.float32 for p in named.values())
    assert all(p.abs().max() > 0 for p in named.values()), "second factors start as zeros"


def adapted(base: Path, **more: Any) -> Any:
    """peft's own model over 4-bit layers; second factors are no zeros."""
    torch.manual_seed(3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, **more)
    peft = get_peft_model(load_four_bit(base, dtype="float32"), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_pefts(family: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path, family)
    plain, fused = adapted(base), adapted(base)
    assert len(fuse_four_bit(fused)) == 14
    outcomes = []
    for peft in (plain, fused):
        out = peft(input_ids=IDS).logits
        out.square().mean().backward()
        named = {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}
        outcomes.append((out.detach(), named))
    (wanted, gradients), (found, ours) = outcomes
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert ours.keys() == gradients.keys() and len(ours) == 28
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    with torch.no_grad(), fused.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_an_update_below_the_last_place_of_bfloat16_is_not_lost() -> None:
    """As for full weights: peft adds to an output that is already rounded."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        Linear4bit(64, 4096, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    )
    model.bfloat16().to("cpu")  # this is where it packs its weight
    model.is_loaded_in_4bit = True  # as transformers marks a model
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    layer = peft.base_model.model[0]
    torch.nn.init.constant_(layer.lora_B["default"].weight, 2e-5)
    layer.lora_A.bfloat16()
    layer.lora_B.bfloat16()
    inputs = torch.randn(256, 64).bfloat16()
    weight = layer.base_layer.weight
    with torch.no_grad():
        base = inputs.double() @ dequantize_4bit(weight.data, weight.quant_state).double().T
        low = inputs.double() @ layer.lora_A["default"].weight.double().T
        update = layer.scaling["default"] * low @ layer.lora_B["default"].weight.double().T
        wanted = update.mean(dim=1)
        before = layer(inputs).double() - base
        fuse_four_bit(peft)
        after = layer(inputs).double() - base
    slopes = [
        float((each.mean(dim=1) * wanted).sum() / wanted.square().sum()) for each in (before, after)
    ]
    assert slopes[0] < 0.2, "peft no longer loses it: is the fused product still needed?"
    assert slopes[1] == pytest.approx(1.0, abs=0.2)


def test_what_is_no_plain_lora_stays_pefts(tmp_path: Path) -> None:
    assert not fuse_four_bit(adapted(base_folder(tmp_path), use_dora=True))


@pytest.mark.parametrize(
    "more",
    [
        {"dora": True},
        {"rslora": True},
        {"embeddings": "frozen", "modules_to_save": ["lm_head"]},
        {"activation_checkpointing": "on"},
        {"probe_every": 5},
        {"dtype": "bfloat16"},
        {"compile": "on"},
    ],
    ids=lambda value: "-".join(value),
)
def test_other_kinds_of_training_go_beside_a_4_bit_base(
    more: dict[str, Any], tmp_path: Path
) -> None:
    base = base_folder(tmp_path)
    kind = {"base_weights": "4bit", "epochs": 2, **more}
    dtype = more.get("dtype", "float32")
    opened = load_four_bit(base, dtype=dtype, whole=more.get("modules_to_save", ()))
    plain = rounded(base, opened).to(getattr(torch, dtype))
    found = train_on(base, opened, tmp_path / "4bit", **kind)
    more = {key: value for key, value in more.items() if key != "compile"}
    wanted = train_on(base, plain, tmp_path / "plain", epochs=2, **more)
    assert wanted.summary["loss_last"] < wanted.summary["loss_first"]
    near = 1e-4 if dtype == "float32" else 0.05
    for ours, theirs in zip(found.curve, wanted.curve, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=near), ours["step"]


def test_delimiter_rows_are_looked_up_apart_beside_4_bit_layers(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    settings = section(base_weights="4bit")
    peft = attach_adapter(load_four_bit(base, dtype="float32"), settings, [OPEN, CLOSE])
    compute_rows_apart(peft)
    rows = [p for n, p in peft.named_parameters() if "trainable_tokens" in n and p.requires_grad]
    assert rows and all(p.dtype == torch.float32 and len(p) == 2 for p in rows)
    full = load_model(base, dtype="float32").get_input_embeddings().weight
    torch.testing.assert_close(rows[0], full[[OPEN, CLOSE]])


# ── the merge ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_merge_goes_into_the_full_weights_and_says_how_far_that_is(
    mode: str, tied: bool, tmp_path: Path
) -> None:
    base = base_folder(tmp_path, "smollm3", tied=tied)
    four = load_four_bit(base, dtype="float32")
    train_on(base, four, tmp_path, embeddings=mode, base_weights="4bit", epochs=2)
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    assert values["passed"]

    def live(model: Any) -> list[Tensor]:
        """The adapter as peft loads it on a plain model, the head apart where it must be."""
        if mode == "lora" and tied:
            embedding = model.get_input_embeddings().weight.detach()
            model.get_output_embeddings().weight = torch.nn.Parameter(embedding.clone())
            model.config.tie_word_embeddings = False
        return logits(PeftModel.from_pretrained(model, tmp_path / "adapter"))

    on_full = live(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    on_rounded = live(rounded(base, load_four_bit(base, dtype="float32")))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(on_full, logits(merged)) <= 1e-4
    assert difference(on_rounded, logits(merged)) > 1e-2, "the full weights are others"
    ends = [tuple(row[: end + 1]) for row in PROOF for end in range(len(row))]
    once = [place for place, beginning in enumerate(ends) if beginning not in ends[:place]]
    left, right = (torch.cat(each)[once].log_softmax(-1) for each in (on_full, on_rounded))
    found = values["training_base"]
    assert found["base_weights"] == "4bit"
    same = (left.argmax(-1) == right.argmax(-1)).float().mean().item()
    assert found["top1_agreement"] == pytest.approx(same, abs=1e-4)
    apart = torch.nn.functional.kl_div(right, left, reduction="batchmean", log_target=True).item()
    assert found["mean_kl"] == pytest.approx(apart, rel=1e-2)
    assert apart > 1e-4
    if mode == "tool_tokens":
        lean = Lean(OPEN, 2.0, [ids[:4] for ids in PROOF])
        again = apply_merge(plan, PROOF, MergeSection(dtype="float32"), lean=lean)
        assert again["passed"], "with another opening token"
        assert again["training_base"]["mean_kl"] < 2 * apart, "it is changed on both sides"


def test_lengths_that_were_trained_beside_rounded_columns_merge_into_full_ones(
    tmp_path: Path,
) -> None:
    """DoRA's lengths begin as those of the rounded columns."""
    base = base_folder(tmp_path)
    four = load_four_bit(base, dtype="float32")
    train_on(base, four, tmp_path, base_weights="4bit", dora=True, epochs=2)
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert apply_merge(plan, PROOF, MergeSection(dtype="float32"))["passed"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    live = logits(PeftModel.from_pretrained(model, tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(live, logits(merged)) <= 1e-4


def test_a_merge_of_an_adapter_of_full_weights_compares_with_no_other_base(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    train_on(base, load_model(base, dtype="float32"), tmp_path, epochs=1)
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert plan.base_weights == "full"
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    assert "training_base" not in values


def test_a_merge_without_bitsandbytes_says_that_it_did_not_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_folder(tmp_path)
    four = load_four_bit(base, dtype="float32")
    train_on(base, four, tmp_path, epochs=1, base_weights="4bit")
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    assert values["passed"], "the proof needs no 4-bit base"
    assert values["training_base"]["top1_agreement"] is None
    assert "not installed" in values["training_base"]["reason"]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


def test_without_bitsandbytes_the_message_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_four_bit("cpu")
    assert "bitsandbytes" in caught.value.message
    assert "pip install 'smollora[4bit]'" in caught.value.hint


def test_it_is_left_out_where_nothing_has_4_bits_and_found_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That peft then does not import it shows in launched trainings (test_launch)."""
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    is_bnb_available.cache_clear()
    with without_bitsandbytes():
        assert not is_bnb_available()
        assert find_spec("bitsandbytes") is None
    assert "bitsandbytes" not in sys.modules
    assert is_bnb_available()
    assert find_spec("bitsandbytes") is not None


def test_a_device_that_bitsandbytes_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mock of a missing library raises where it is first used."""
    check_four_bit("cpu")

    def raise_as_it_does(*_: Any, **__: Any) -> None:
        raise RuntimeError("Configured CUDA binary not found at libbitsandbytes_cuda999.so")

    functional = sys.modules["bitsandbytes.functional"]
    monkeypatch.setattr(functional, "quantize_4bit", raise_as_it_does)
    with pytest.raises(ConfigError) as caught:
        check_four_bit("cpu")
    assert "libbitsandbytes_cuda999.so" in caught.value.message
    assert "train.base_weights=full" in caught.value.hint


def test_each_process_packs_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (four_bit._place("cpu"), four_bit._place("cuda")) == ("cpu", "cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (four_bit._place("cpu"), four_bit._place("cuda")) == ("cpu", "cuda:3")


@pytest.mark.parametrize("name", ["FSDP", "DeepSpeed"])
def test_a_4_bit_base_that_is_to_be_sharded_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ConfigError, match=name):
        check_four_bit("cpu")


def test_weights_that_are_quantized_already_are_refused(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="gptq"):
        load_four_bit(base, dtype="float32")


def test_a_model_that_was_opened_otherwise_than_the_recipe_says_is_refused(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    with pytest.raises(ConfigError, match="opened with full weights"):
        train_on(base, load_model(base, dtype="float32"), tmp_path, base_weights="4bit")
    with pytest.raises(ConfigError, match="opened with 4bit weights"):
        train_on(base, load_four_bit(base, dtype="float32"), tmp_path)


def test_the_recipe_chooses_how_the_base_is_opened(tmp_path: Path) -> None:
    base = base_folder(tmp_path)
    kinds = {"full": 0, "4bit": 14}
    for name, count in kinds.items():
        model = load_for_training(
            base,
            section(base_weights=name),
            device="cpu",
            dtype="float32",
            trust_remote_code=False,
        )
        assert len(four_bit_layers(model)) == count
        assert bool(describe_saving(base_weights_summary(model, "float32"))) is (name == "4bit")


# ── the command ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of a 4-bit base, and a run of it up to its rows."""
    folder = tmp_path_factory.mktemp("four-bit")
    return mixed_run(
        folder,
        train__base_weights="4bit",
        train__epochs=20,
        train__max_epochs=25,
        train__dropout=0.1,
        train__batch_tokens=512,
        train__checkpoint_every=3,
    )


def test_killed_and_given_again_the_curve_is_that_of_an_unbroken_run(mixed: Path) -> None:
    for name in ("whole", "killed"):
        copy_run(mixed, name)
    command = ("train", mixed / "recipe.yaml", "--runs")
    said = smollora(*command, mixed / "whole")
    assert said.code == 0, said.err
    assert "4-bit base: 14 layers of 0.1 million weights" in said.out
    process = start(*command, mixed / "killed")
    wait_for_checkpoint(process, mixed / "killed" / "tiny", 10)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "kernels" not in err, "advice of a library about inference"
    other = smollora(*command, mixed / "killed", "train.base_weights=full")
    assert other.code == 2
    assert "train.base_weights: 4bit there, full here" in other.err
    said = smollora(*command, mixed / "killed")
    assert said.code == 0, said.err
    whole, killed = curve(mixed / "whole" / "tiny"), curve(mixed / "killed" / "tiny")
    assert [entry["step"] for entry in killed] == [entry["step"] for entry in whole]
    for ours, theirs in zip(killed, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5), ours["step"]
    summary = json.loads((mixed / "killed" / "tiny" / "train" / "summary.json").read_text())
    assert summary["resumed_at"] >= 10
    merged = smollora("merge", mixed / "recipe.yaml", "--runs", mixed / "killed")
    assert merged.code == 0, merged.err
    assert "trained on a 4bit base, from which it stands at top-1" in " ".join(merged.out.split())


def test_two_processes_train_what_one_does(mixed: Path) -> None:
    for name in ("one", "two"):
        copy_run(mixed, name)
    changes = ("packs_per_step=2", "epochs=8", "max_epochs=8", "dropout=0")
    given = [f"train.{change}" for change in changes]
    said = smollora("train", mixed / "recipe.yaml", "--runs", mixed / "one", *given)
    assert said.code == 0, said.err
    command = ("train", mixed / "recipe.yaml", "--runs", mixed / "two", *given)
    process = start(*command, launcher=torchrun(2))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    summary = json.loads((mixed / "two" / "tiny" / "train" / "summary.json").read_text())
    assert (summary["processes"], summary["base_weights"]) == (2, "4bit")
    curves = {name: curve(mixed / name / "tiny") for name in ("one", "two")}
    assert len(curves["one"]) == len(curves["two"]) >= 4
    for ours, theirs in zip(curves["two"], curves["one"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5), ours["step"]


def test_the_dry_run_says_what_is_saved_and_another_base_is_another_training(mixed: Path) -> None:
    recipe = mixed / "recipe.yaml"
    plans = {
        weights: smollora("run", recipe, "--dry-run", f"train.base_weights={weights}")
        for weights in ("4bit", "full")
    }
    assert all(said.code == 0 for said in plans.values())
    assert "GiB less by the 4-bit base)" in " ".join(plans["4bit"].out.split())
    assert "4-bit base" not in plans["full"].out
    keys = [
        stage_keys(load_recipe(str(recipe), [f"train.base_weights={weights}"]))
        for weights in ("4bit", "full")
    ]
    assert keys[0]["mix"] == keys[1]["mix"]
    assert keys[0]["train"] != keys[1]["train"]


def test_without_bitsandbytes_the_command_ends_with_2_before_the_long_stages(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    said = smollora("run", mixed / "recipe.yaml", "--runs", tmp_path)
    assert said.code == 2
    assert "pip install 'smollora[4bit]'" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("summary.json")), "nothing ran"
