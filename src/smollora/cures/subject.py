"""Whose cures are measured: a model with its stock template, its repaired one, and what was trained
from it.

In: a model folder, a Hub id, a wheel or a run folder; an adapter or a merged model. Out: a
`Subject`. Everything that can be wrong with them is found here, before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smollora.config import Recipe, load_recipe
from smollora.errors import ConfigError, GateFailed, ModelError, TemplateError
from smollora.formats import ToolFormat, get_format
from smollora.merge import plan_merge
from smollora.models import open_renderer, resolve_model
from smollora.render import Renderer
from smollora.templates.repair import repair


@dataclass(frozen=True, slots=True)
class Trained:
    """The model after training."""

    name: str
    folder: Path | None
    """Where its weights are; of an adapter: its base's. None: on the server, under `name`."""
    adapter: Path | None
    renderer: Renderer


@dataclass(frozen=True, slots=True)
class Subject:
    """What the cures are tried on."""

    name: str
    folder: Path
    fmt: ToolFormat
    stock: Renderer
    repaired: Renderer | None
    not_repaired: str = ""
    """Why there is no repaired template."""
    faults: tuple[str, ...] = ()
    """Checks that the stock template fails."""
    trained: Trained | None = None
    run: Path | None = None
    recipe: Recipe | None = None
    """Of a run: its gate and limits hold."""


def find_subject(
    model: str, *, format_name: str | None, adapter: str | None, served: bool
) -> Subject:
    """Read what `model` is.

    Args:
        adapter: folder of a LoRA adapter or of a merged model; where a server is asked, the name
            under which it serves the trained model.
        served: whether a server is asked.

    Raises:
        ModelError: no such model, tokenizer, template or adapter, or an adapter of another base.
        GateFailed: the model has no delimiters to call with.
    """
    path = Path(model).expanduser()
    if (path / "adapter_config.json").is_file():
        raise ConfigError(
            f"{model} is an adapter", f"name its base first: BASE --cures --adapter {model}"
        )
    run = path if (path / "recipe.yaml").is_file() and (path / "base").is_dir() else None
    folder = path / "base" if run else resolve_model(model)
    own = open_renderer(folder, format_name)
    fmt = get_format(own.facts.format)
    _require_delimiters(own, model)
    published = run / "inspect" / "stock_template.jinja" if run else None
    text = published.read_text(encoding="utf-8") if published and published.is_file() else ""
    stock = Renderer(text, own.tokenizer, own.facts) if text else own
    repaired, why, faults = _repaired(own, fmt)
    if text:
        faults = _repaired(stock, fmt)[2]
    trained: Trained | None = None
    if adapter is None and run and not served:
        merged, beside = run / "merge" / "model", run / "train" / "adapter"
        found = next((each for each in (merged, beside) if each.is_dir()), None)
        adapter = str(found) if found else None
    if adapter is not None:
        trained = _trained(adapter, folder, repaired or own, format_name, served)
    return Subject(
        name=str(model),
        folder=folder,
        fmt=fmt,
        stock=stock,
        repaired=repaired,
        not_repaired=why,
        faults=faults,
        trained=trained,
        run=run,
        recipe=load_recipe(run / "recipe.yaml") if run else None,
    )


def _require_delimiters(renderer: Renderer, model: str) -> None:
    lacking = renderer.facts.lacking
    if lacking:
        raise GateFailed(
            f"{model} cannot call: {lacking[0].text} is {len(lacking[0].ids)} tokens in its"
            " tokenizer, so no cure that leaves its weights alone can be told from text",
            "`smollora run` adds the delimiters and teaches them",
        )
    if not renderer.facts.open.text:
        raise ConfigError(
            f"calls in the form {renderer.facts.format} have no delimiter, so they cannot be told"
            " by their ids",
            "name the form that the model calls in: --format hermes",
        )


def _repaired(own: Renderer, fmt: ToolFormat) -> tuple[Renderer | None, str, tuple[str, ...]]:
    """(the renderer of the repaired template or None, why not, the faults of the stock one)."""
    try:
        result = repair(own.template.source, own.tokenizer, fmt=fmt)
    except TemplateError as error:
        checks = getattr(error, "checks", ())
        return None, error.message, tuple(check.name for check in checks)
    faults = tuple(change.check for change in result.changes)
    return Renderer(result.source, own.tokenizer, own.facts), "", faults


def _trained(
    adapter: str, base: Path, repaired: Renderer, format_name: str | None, served: bool
) -> Trained:
    if served:
        return Trained(adapter, None, None, repaired)
    path = Path(adapter).expanduser()
    if (path / "adapter_config.json").is_file():
        plan_merge(base, path, path, "bfloat16")  # refuses an adapter of another base
        has_own = (path / "tokenizer.json").is_file()
        renderer = open_renderer(path, format_name) if has_own else repaired
        return Trained(adapter, base, path, renderer)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{adapter} is neither an adapter nor a model",
            "--adapter takes a folder with adapter_config.json, or a merged model's",
        )
    renderer = open_renderer(path, format_name)
    _require_delimiters(renderer, adapter)
    return Trained(adapter, path, None, renderer)
