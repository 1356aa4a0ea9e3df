"""What a path holds that is to be served: a model, an adapter with its base, or a run.

In: what the person typed. Out: a `Target`, or one message that says what is missing. The surprise:
an adapter names its base as it was called where it was trained, which may be a path relative to
another folder; in a run the base lies two folders up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.errors import ModelError
from smollora.models import resolve_model
from smollora.tokenizer_file import read_json_object

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Target:
    """What is served."""

    name: str
    """What clients ask for."""
    model: Path
    """Folder with weights: the model, or the adapter's base."""
    adapter: Path | None
    run: Path | None
    """The run that it belongs to, if it lies in one."""


def find_target(source: str, *, base: str | None = None, name: str | None = None) -> Target:
    """What `source` holds.

    Args:
        source: a model folder, an adapter folder, a run folder, a Hub id or `pypi:NAME==VERSION`.
        base: the adapter's base, where it is not found by what the adapter says.
        name: what clients ask for; None: taken from the folder.

    Raises:
        ModelError: nothing there that can be served.
    """
    path = Path(source).expanduser()
    if path.is_file():
        raise ModelError(f"{source} is a file", "give the folder of a model, an adapter or a run")
    if path.is_dir() and (path / ADAPTER_FILE).is_file():
        return _adapter_target(path.resolve(), base, name)
    if base is not None:
        raise ModelError(
            f"{source} holds no adapter ({ADAPTER_FILE}), so --base means nothing",
            "leave --base out, or give the adapter's folder",
        )
    if path.is_dir() and _is_run(path):
        return _run_target(path.resolve(), name)
    folder = resolve_model(source)
    folder = folder.resolve() if path.is_dir() else folder
    _check_model(folder)
    run = _run_of(folder)
    if run is not None and folder == run / "merge" / "model":
        short = run.name
    else:
        short = folder.name if path.is_dir() else source.rpartition("/")[2].partition("==")[0]
    return Target(name or short.removeprefix("pypi:"), folder, None, run)


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and not (path / "config.json").is_file()


def _run_of(path: Path) -> Path | None:
    """The run folder above a model or an adapter of a run."""
    return next((up for up in list(path.parents)[:2] if _is_run(up)), None)


def _run_target(run: Path, name: str | None) -> Target:
    merged = run / "merge" / "model"
    if not merged.is_dir():
        raise ModelError(
            f"the run {run} has no merged model yet",
            f"{merge_command(run)} makes it",
        )
    _check_model(merged)
    return Target(name or run.name, merged, None, run)


def merge_command(run: Path) -> str:
    """What makes the merged model of a run, as short as the person would type it."""
    recipe, parent = shown(run / "recipe.yaml"), shown(run.parent)
    return f"smollora merge {recipe} --runs {parent} --name {run.name}"


def shown(path: Path) -> str:
    """A path as seen from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _adapter_target(adapter: Path, base: str | None, name: str | None) -> Target:
    said = read_json_object(adapter / ADAPTER_FILE).get("base_model_name_or_path")
    run = _run_of(adapter)
    folder: Path | None = None
    if base is not None:
        folder = resolve_model(base)
    elif run is not None and (run / "base").is_dir():
        folder = run / "base"
    elif isinstance(said, str) and said:
        try:
            folder = resolve_model(said)
        except ModelError as error:
            raise ModelError(
                f"the adapter {adapter} was trained on {said}, which is not here",
                "name its base: --base FOLDER",
            ) from error
    if folder is None:
        raise ModelError(
            f"the adapter {adapter} does not say what it was trained on",
            "name its base: --base FOLDER",
        )
    _check_model(folder)
    return Target(name or (run.name if run else adapter.name), folder.resolve(), adapter, run)


def _check_model(folder: Path) -> None:
    """Config and safetensors weights are there; the tokenizer is read later."""
    if not (folder / "config.json").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise ModelError(
            f"{folder} holds no config.json, so it is no model folder",
            f"did you mean {folder / inside[0]}?" if inside else "give a model, adapter or run",
        )
    if any(folder.glob("*.safetensors")):
        return
    other = next((p.name for end in ("bin", "pt", "gguf") for p in folder.glob(f"*.{end}")), None)
    found = f" (only {other})" if other else ""
    raise ModelError(
        f"{folder} holds no safetensors weights{found}",
        "give a folder with weights; smollora reads and serves safetensors only",
    )


def read_adapter(target: Target) -> dict[str, Any]:
    """adapter_config.json of a target with an adapter."""
    assert target.adapter is not None
    return read_json_object(target.adapter / ADAPTER_FILE)
