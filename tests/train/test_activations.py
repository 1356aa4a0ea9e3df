"""Layers that are computed again give the same training, in less memory; when `auto` does so.

The other side of every number is a training, or a count of what autograd keeps, without it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smollora.config import Recipe
from smollora.data.batch import build_batch, plan_batches
from smollora.errors import ConfigError
from smollora.models import load_model
from smollora.pipeline import stage_keys
from smollora.train import activations, attach_adapter
from smollora.train.adapter import compute_rows_apart, leave_casting_to_autocast
from smollora.train.four_bit import load_four_bit
from smollora.train.loss import TreeLoss
from tiny_models import FAMILIES, save_model, tiny_model
from tiny_training import CLOSE, OPEN, PAD, ROWS, TOKENIZER, section, train

LENGTH = 384


def computed(
    family: str,
    *,
    again: bool,
    layers: int = 2,
    dtype: str = "float32",
    model: Any = None,
    **more: Any,
) -> tuple[Any, Any, int]:
    """(trained model with gradients of one pack, what the pack gave, bytes autograd kept)."""
    settings = section(batch_tokens=LENGTH, **more)
    torch.manual_seed(3)
    model = tiny_model(family, layers=layers) if model is None else model
    peft = attach_adapter(model, settings, [OPEN, CLOSE])
    compute_rows_apart(peft)
    loss_of = TreeLoss(peft, dtype)
    peft.train()
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:  # zero at first: nothing but them would have a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    if dtype != "float32":
        leave_casting_to_autocast(peft)
    if again:
        activations.checkpoint_layers(peft, loss_of.separate)
    if settings.compile == "on":
        for layer in loss_of.decoder.layers:
            layer.compile(dynamic=False)
    batch = build_batch(plan_batches(ROWS, length=LENGTH, seed=1).packs[0], LENGTH, PAD)
    kept: dict[int, Any] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in peft.parameters()}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = loss_of(batch)
    found.total.backward()
    return peft, found, sum(size for _, size in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", FAMILIES)
def test_computed_again_losses_and_gradients_are_the_same(family: str, dropout: float) -> None:
    plain, expected, kept = computed(family, again=False, dropout=dropout)
    again, found, few = computed(family, again=True, dropout=dropout)
    same(plain, expected, again, found)
    assert few < 0.3 * kept, "layers keep what they are given alone"


def test_so_they_are_where_layers_are_compiled() -> None:
    """Compiled kernels draw their own dropout: what came out with the same kernels is compared.

    Every layer is compiled through the same method of a module, and past eight kinds of layers
    torch gives up on it without a word: what earlier tests compiled is forgotten first. Qwen 3's
    layers have rotary embedding and norms of queries and keys; those of SmolLM3 that have neither
    are compared without the compiler only, above: compiling is most of the time.
    """
    family = "qwen3"
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    settings: dict[str, Any] = {"dropout": 0.2, "compile": "on"}
    plain, expected, kept = computed(family, again=False, **settings)
    again, found, few = computed(family, again=True, **settings)
    assert counted["unique_graphs"] >= before + 2, "one graph as it is, one computed again"
    same(plain, expected, again, found)
    assert few < 0.3 * kept


def same(plain: Any, expected: Any, again: Any, found: Any) -> None:
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert torch.allclose(found.by_part, expected.by_part, rtol=1e-5)
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * 7 * 2 + 1
    for name, parameter in again.named_parameters():
        if parameter.requires_grad:
            assert gradients[name].abs().max() > 0, name
            scale = gradients[name].abs().max()
            assert (parameter.grad - gradients[name]).abs().max() <= 1e-5 * scale, name


def test_a_training_gives_the_same_adapter_and_says_what_it_did(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dropout": 0.1, "embeddings": "lora", "probe_every": 3}
    plain = train(tmp_path / "off", activation_checkpointing="off", **settings)
    again = train(tmp_path / "on", activation_checkpointing="on", **settings)
    assert plain.summary["activation_checkpointing"] is False
    assert again.summary["activation_checkpointing"] is True
    assert [e["loss"] for e in again.curve] == pytest.approx(
        [e["loss"] for e in plain.curve], abs=1e-5
    )
    weights = load_file(tmp_path / "on" / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(
        tmp_path / "off" / "adapter" / "adapter_model.safetensors"
    ).items():
        assert (weights[name] - tensor).abs().max() <= 1e-5, name


# ── when auto does so ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_near_what_autograd_keeps(family: str, dropout: float, dtype: str) -> None:
    """Two layers and four: the difference is that of two layers."""
    settings: dict[str, Any] = {"again": False, "dropout": dropout, "dtype": dtype}
    peft, _, two = computed(family, layers=2, **settings)
    _, _, four = computed(family, layers=4, **settings)
    sizes = activations.read_sizes(peft, section(dropout=dropout), dtype)
    kept = (four - two) / 2 / LENGTH
    assert 0.95 * kept <= activations.token_bytes(sizes) <= 1.3 * kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_a_4_bit_base_autograd_keeps_what_it_keeps_beside_a_full_one(
    dtype: str, tmp_path: Path
) -> None:
    base = save_model(tiny_model("llama", layers=4), TOKENIZER, tmp_path)
    settings: dict[str, Any] = {"again": False, "layers": 4, "dtype": dtype}
    packed = load_four_bit(base, dtype=dtype)
    peft, _, kept = computed("llama", model=packed, base_weights="4bit", **settings)
    beside_full, _, full = computed("llama", model=load_model(base, dtype=dtype), **settings)
    turned = 4 * LENGTH * (64 + 32) * (2 if dtype == "bfloat16" else 4)
    gated = activations.read_sizes(beside_full, section(), dtype).gated
    forgotten = 4 * LENGTH * 2 * 128 * 2 if gated else 0  # h and silu(gate), in bfloat16
    assert kept == pytest.approx(full - turned + forgotten, rel=0.02), (
        "queries and keys lie beside the values; no gate of ours beside 4-bit weights"
    )
    sizes = activations.read_sizes(peft, section(), dtype)
    assert sizes.read_back == 64 * 128, "the largest: of the feed-forward part"
    without = activations.pack_bytes(replace(sizes, read_back=0), LENGTH)
    assert activations.pack_bytes(sizes, LENGTH) - without == 2 * sizes.item * 64 * 128


SIZES = activations.Sizes(
    layers=30,
    width=576,
    inner=1536,
    queries=576,
    keys=192,
    heads=9,
    rank=16,
    targets=7,
    vocabulary=49156,
    trained=4_886_784,
    dropout=False,
    item=4,
)
"""SmolLM2-135M, rank 16, float32."""


def test_what_is_needed_grows_with_the_pack_and_decides() -> None:
    """By hand: a token keeps 1163 + 786 float32 of norms and 768 + 768 + 4608 + 3264 + 112 others
    in a layer; see `token_bytes`.
    """
    norms, heads = 2 * 576 + 9 + 2, 576 + 192 + 18
    others = 2 * 576 + 2 * 192 + 3 * 1536 + (2 * 576 + 576 + 1536) + 7 * 16
    assert activations.token_bytes(SIZES) == 4 * (norms + heads + others) == 45_876
    need = activations.pack_bytes(SIZES, 4096)
    assert need - activations.pack_bytes(SIZES, 0) == 4096 * 30 * 45_876
    assert activations.fits(SIZES, 4096, int(need / 0.9) + 1)
    assert not activations.fits(SIZES, 4096, need)


@pytest.mark.parametrize(("free", "expected"), [(2**40, False), (2**10, True)])
def test_auto_asks_what_is_free(
    free: int, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(activations, "free_memory", lambda device: free)
    assert train(tmp_path, epochs=1).summary["activation_checkpointing"] is expected


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=900))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert activations.free_memory("cpu") == 900
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert activations.free_memory("cpu") == 300


def test_on_is_refused_where_the_model_cannot(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"activation_checkpointing=on, which LlamaForCausalLM"):
        train(tmp_path, model=model, activation_checkpointing="on")


def test_it_changes_no_stage() -> None:
    plain, again = Recipe(), Recipe(train=section(activation_checkpointing="on"))
    assert stage_keys(again) == stage_keys(plain.model_copy(update={"train": section()}))
