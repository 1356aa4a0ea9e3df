"""Whatever is trained, over whatever model: merged and loaded afresh, it is the live adapter.

The other side is peft's own loading of the adapter, base and head put together by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from smollora.config import MergeSection
from smollora.errors import ConfigError, ModelError
from smollora.generate import LocalGenerator
from smollora.merge import apply_merge, plan_merge
from smollora.models import load_model
from smollora.train import train_adapter
from tiny_models import FAMILIES, save_model, tiny_model
from tiny_training import CLOSE, ENDS, OPEN, PAD, ROWS, STOP, TOKENIZER, section, train

PROOF = [row.token_ids for row in ROWS[:3]]
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rslora-embedding": {"rslora": True, "embeddings": "lora"},
    "dora-embedding": {"dora": True, "embeddings": "lora"},
    "whole-embedding": {"embeddings": "frozen", "modules_to_save": ["embed_tokens"]},
    "whole-head": {"embeddings": "frozen", "modules_to_save": ["lm_head"]},
    "whole-both": {"embeddings": "frozen", "modules_to_save": ["embed_tokens", "lm_head"]},
    "whole-norms": {"modules_to_save": ["norm"]},
}


def logits(model: Any) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in PROOF]


def difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


def train_saved(folder: Path, model: Any, **more: Any) -> tuple[Path, Any]:
    """(base folder, what training made) of a model that lies on the disk."""
    base = save_model(model, TOKENIZER, folder / "base")
    made = train_adapter(
        load_model(base, dtype="float32"),
        ROWS,
        ROWS[:4],
        section(**{"lr": 1e-2, "epochs": 4, **more}),
        token_ids=[OPEN, CLOSE],
        pad_id=PAD,
        out=folder / "adapter",
        base=base,
        ends=ENDS,
    )
    return base, made


def as_trained(base: Path, adapter: Path) -> list[torch.Tensor]:
    """Logits of what peft loads, with a head of its own where an end of a tied model changes."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = json.loads((adapter / "adapter_config.json").read_text())
    changes = {*(config["target_modules"] or []), *(config["modules_to_save"] or [])}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if changes & {"embed_tokens", "lm_head"} and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return logits(PeftModel.from_pretrained(model, adapter))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_loaded_again_it_is_the_live_adapter(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    base, made = train_saved(tmp_path, tiny_model("smollm3", tied=tied), **KINDS[kind])
    assert made.summary["loss_last"] < made.summary["loss_first"] - 0.5, "nothing was learned"
    live = as_trained(base, tmp_path / "adapter")
    made.model.get_base_model().set_attn_implementation("sdpa")  # training left tree attention
    assert difference(live, logits(made.model)) <= 1e-4, "saved is what was trained"
    untrained = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert difference(live, logits(untrained)) > 0.5
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(live, logits(again)) <= 1e-4
    assert values["passed"]
    ends = {"embed_tokens", "lm_head"} & {*KINDS[kind].get("modules_to_save", [])}
    changes_an_end = bool(ends) or KINDS[kind].get("embeddings") == "lora"
    assert values["tied_before"] is tied
    assert values["tied_after"] is (tied and not changes_an_end)


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    """Kalajdzievski 2023: alpha / sqrt(r); here 8 / 2 instead of 8 / 4."""
    for rslora, scale in ((True, 4.0), (False, 2.0)):
        made = train(tmp_path / str(rslora), rslora=rslora, epochs=1)
        scales = {
            layer.scaling["default"] for layer in made.model.modules() if hasattr(layer, "lora_A")
        }
        assert scales == {scale}


def test_dora_trains_the_lengths_of_the_columns(tmp_path: Path) -> None:
    made = train(tmp_path, dora=True, epochs=1)
    names = [name for name, p in made.model.named_parameters() if p.requires_grad]
    assert sum("lora_magnitude_vector" in name for name in names) == 2 * 7


@pytest.mark.parametrize("kind", ["dora", "rslora", "whole-embedding"])
def test_bfloat16_trains_and_merges(kind: str, tmp_path: Path) -> None:
    base, made = train_saved(tmp_path, tiny_model("llama"), **{**KINDS[kind], "dtype": "bfloat16"})
    assert made.summary["loss_last"] < made.summary["loss_first"]
    trained = [p for p in made.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}, "masters stay in float32"
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    values = apply_merge(plan, PROOF, MergeSection())
    assert values["max_logit_difference_reloaded"] <= 1e-4
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_merges_and_is_asked(family: str, tmp_path: Path) -> None:
    """Six weather questions want a call and six others none: learned by heart, merged, asked."""
    base, made = train_saved(
        tmp_path,
        tiny_model(family),
        **{"lr": 5e-3, "epochs": 40, "rank": 16, "alpha": 32, "warmup": 0.1},
        batch_tokens=192,
        embeddings="lora",
        probe_every=1000,
    )
    plan = plan_merge(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert apply_merge(plan, PROOF, MergeSection(dtype="float32"), stop_ids=(STOP,))["passed"]
    merged = load_model(tmp_path / "merged", dtype="float32")
    generator = LocalGenerator(merged, stop_ids=(STOP,), opener_id=OPEN, pad_id=PAD)
    prompts = [row.token_ids[: row.first_trained] for row in ROWS]
    answers = generator.generate(prompts, max_new_tokens=8)
    opened = [OPEN in answer.token_ids for answer in answers]
    wanted = [OPEN in row.token_ids for row in ROWS]
    assert opened == wanted
    assert made.curve[-1]["emission"] == {"k": 2, "n": 2}
    assert made.curve[-1]["false_call"] == {"k": 0, "n": 2}


def test_training_goes_on_from_a_merged_model(tmp_path: Path) -> None:
    base, first = train_saved(tmp_path / "one", tiny_model("llama"), embeddings="lora")
    plan = plan_merge(base, tmp_path / "one" / "adapter", tmp_path / "merged", "float32")
    apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    merged = load_model(tmp_path / "merged", dtype="float32")
    base, second = train_saved(tmp_path / "two", merged, embeddings="tool_tokens")
    assert second.summary["loss_first"] == pytest.approx(
        first.summary["loss_last"], abs=0.5 * first.summary["loss_first"]
    )
    plan = plan_merge(base, tmp_path / "two" / "adapter", tmp_path / "twice", "float32")
    values = apply_merge(plan, PROOF, MergeSection(dtype="float32"))
    assert values["passed"]
    assert (values["tied_before"], values["tied_after"]) == (False, False)


# ── what lies beside ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("there", "stop_ids", "expected"),
    [
        ({"eos_token_id": 7}, (7,), 7),
        ({"eos_token_id": 7}, (7, 9), [7, 9]),
        ({"eos_token_id": [7, 8]}, (9,), [7, 8, 9]),
        ({"temperature": 0.6}, (9,), 9),
        (None, (9,), 9),
    ],
)
def test_the_merged_model_stops_where_turns_end(
    there: dict[str, Any] | None, stop_ids: tuple[int, ...], expected: Any, tmp_path: Path
) -> None:
    from smollora.merge import carry

    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    if there is not None:
        (base / "generation_config.json").write_text(json.dumps(there))
    carry(base, out, stop_ids)
    found = json.loads((out / "generation_config.json").read_text())
    assert found["eos_token_id"] == expected
    assert found.get("temperature") == (there or {}).get("temperature")


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_of_other_weights_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    train_saved(tmp_path, tiny_model("llama"), epochs=1)
    other = save_model(tiny_model("llama", seed=1), TOKENIZER, tmp_path / "other")
    with pytest.raises(ModelError, match="trained on other weights"):
        plan_merge(other, tmp_path / "adapter", tmp_path / "merged", "float32")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"targets": ["c_attn"]}, "q_proj"),
        ({"modules_to_save": ["wte"], "embeddings": "frozen"}, "embed_tokens"),
        ({"modules_to_save": ["q_proj"], "embeddings": "frozen"}, "one of them"),
        ({"modules_to_save": ["lm_head"]}, "embeddings=frozen"),
        ({"batch_tokens": 32}, "train.batch_tokens="),
        ({"packs_per_step": 1, "report_to": ["trackio"]}, "pip install trackio"),
        ({"device": "cuda"}, "train.device=auto"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_met_is_refused_with_what_to_do(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if more.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, **more)
    assert said in caught.value.hint


def test_bfloat16_on_a_gpu_that_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from smollora.train import compute_dtype

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: emulated)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ConfigError, match="Tesla T4 does not compute"):
        compute_dtype("bfloat16", "cuda")
    assert compute_dtype("auto", "cuda") == "float32"
