"""What an evaluation asks: a finished run's models, an adapter on its base, any model, a server.

In: what a person typed. Out: a `Target` (names and folders, checked before anything is loaded), and
then one `Column` at a time, so that only one model is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollora.config import ProbeSection, load_recipe, names_a_recipe
from smollora.errors import ConfigError, DataError
from smollora.evaluate.asking import Column
from smollora.formats import get_format
from smollora.models import (
    base_of_adapter,
    on_gpu,
    open_renderer,
    resolve_model,
)

RUN_MODELS = ("base", "adapter", "merged")


@dataclass(frozen=True, slots=True)
class Source:
    """One model that is to be asked."""

    name: str
    folder: Path
    """Weights, tokenizer and chat template; of a server's model the latter two."""
    adapter: Path | None = None
    endpoint: str | None = None
    served_name: str | None = None
    timeout: float = 120.0
    """Seconds for one request to the server."""
    untrained: bool = False
    """A run's base: it rambles, and its answers may be cut sooner (probe.base_max_new_tokens)."""


@dataclass(frozen=True, slots=True)
class Target:
    """All models of an evaluation, and where its files go."""

    sources: tuple[Source, ...]
    out: Path
    section: ProbeSection
    format: str | None
    """None: as each model's chat template writes calls."""


def plan_target(
    model: str,
    overrides: Sequence[str] = (),
    *,
    runs: Path = Path("runs"),
    name: str | None = None,
    models: Sequence[str] = (),
    base: str | None = None,
    endpoint: str | None = None,
    served_name: str | None = None,
    timeout: float = 120.0,
    out: Path | None = None,
) -> Target:
    """Find what is to be asked.

    Args:
        model: a recipe, a run folder, an adapter folder, a model folder, a Hub id, a wheel.
        overrides: `probe.max_new_tokens=64` and the like.
        runs: where run folders are.
        name: of the run.
        models: which of a run's: base, adapter, merged; default base and merged.
        base: a model that is asked first, for a "before"; for an adapter, the model it goes on.
        endpoint: a server that answers in the place of the model's weights.
        served_name: the model's name there.
        timeout: seconds for one request to the server.
        out: folder of the evaluation's files.

    Raises:
        ConfigError, DataError, ModelError: no such thing, or not asked for in this way.
    """
    folder = Path(model).expanduser()
    a_recipe = names_a_recipe(model)
    if a_recipe or (folder / "recipe.yaml").is_file():
        recipe = load_recipe(model if a_recipe else folder / "recipe.yaml", overrides)
        run = runs / (name or recipe.name) if a_recipe else folder
        wanted = list(models) or (["merged"] if endpoint else ["base", "merged"])
        if base is not None:
            raise ConfigError("a run has a base of its own", "leave --base out")
        sources = tuple(_of_run(run, each) for each in wanted)
        fmt, section = recipe.model.format, recipe.probe
        where = run / "eval"
    else:
        section, fmt = load_recipe("starter", overrides).probe, None
        sources, label = _of_model(model, base, models)
        where = runs / (name or label) / "eval"
    if endpoint is not None:
        last = sources[-1]
        sources = (Source("served", last.folder, None, endpoint, served_name, timeout),)
    return Target(sources, out or where, section, fmt)


def _of_run(run: Path, name: str) -> Source:
    if name not in RUN_MODELS:
        raise ConfigError(f'"{name}" is no model of a run', f"use {', '.join(RUN_MODELS)}")
    folder = run / "merge" / "model" if name == "merged" else run / "base"
    adapter = run / "train" / "adapter" if name == "adapter" else None
    for path in (folder, adapter):
        if path is not None and not path.is_dir():
            raise DataError(f"{path} is not there", "run `smollora run` first")
    return Source(name, folder, adapter, untrained=name == "base")


def _of_model(
    model: str, base: str | None, models: Sequence[str]
) -> tuple[tuple[Source, ...], str]:
    """(the sources, a name for their folder) of what is no run."""
    folder = Path(model).expanduser()
    named = model.split("==")[0].removeprefix("pypi:").rpartition("/")[2]
    label = (folder.resolve().name if folder.is_dir() else named) or "model"
    if (folder / "adapter_config.json").is_file():
        under = base_of_adapter(folder, base)
        offered: tuple[Source, ...] = (Source("base", under), Source("adapter", under, folder))
    else:
        own = (Source("model", resolve_model(model)),)
        offered = own if base is None else (Source("base", resolve_model(base)), *own)
    chosen = tuple(source for source in offered if source.name in (models or (source.name,)))
    unknown = [each for each in models if each not in {source.name for source in offered}]
    if unknown:
        raise ConfigError(
            f'"{unknown[0]}" is no model here', f"use {', '.join(s.name for s in offered)}"
        )
    return chosen, label


@contextmanager
def open_column(source: Source, target: Target) -> Iterator[tuple[Column, Any]]:
    """(the column, its loaded model or None), in memory for as long as the block lasts."""
    renderer = open_renderer(source.folder, target.format)
    facts, fmt = renderer.facts, get_format(renderer.facts.format)
    section = target.section
    words = section.max_new_tokens
    tokens = section.base_max_new_tokens if source.untrained else words
    if source.endpoint is not None:
        from smollora.endpoint import Endpoint, ServedGenerator

        with Endpoint(source.endpoint, source.served_name, timeout=source.timeout) as endpoint:
            endpoint.connect()
            served = ServedGenerator(endpoint, stop_ids=facts.stop_ids, opener_id=facts.open.id)
            yield Column(source.name, renderer, fmt, served, tokens, words), None
        return
    from smollora.generate import local_generator

    model = load_weights(source)
    generator = local_generator(model, facts, section.batch_tokens)
    yield Column(source.name, renderer, fmt, generator, tokens, words), model


def load_weights(source: Source) -> Any:
    """The source's model, with its adapter if it has one, on the GPU if there is one."""
    from smollora.merge import load_with_adapter

    return on_gpu(load_with_adapter(source.folder, source.adapter))
