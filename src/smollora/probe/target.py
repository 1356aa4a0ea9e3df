"""What a probe is pointed at, and the models that it can ask there, column by column.

In: a model folder, a Hub id, a wheel, an adapter folder, a run folder, a server's address. Out: a
`Target`: whose tokenizer renders the prompts, and its columns. Nothing is loaded before it is
asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smollora.config import ProbeSection, Recipe, load_recipe
from smollora.endpoint import Endpoint, ServedGenerator
from smollora.errors import ConfigError
from smollora.models import base_of_adapter, on_gpu, resolve_model
from smollora.tokens import TokenFacts

if TYPE_CHECKING:
    from smollora.generate import Generator, Sampling

COLUMNS = ("base", "adapter", "merged", "model", "served")
"""What can be asked, in the order of tables."""


@dataclass(frozen=True, slots=True)
class Column:
    """One model to ask."""

    name: str
    folder: Path | None = None
    """Where its weights are; of an adapter: its base's. None: on a server."""
    adapter: Path | None = None
    most: int = 256
    """New tokens of an answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """What `smollora probe` was pointed at."""

    name: str
    tokenizer: Path
    """Folder whose tokenizer and template render the prompts."""
    columns: tuple[Column, ...]
    run: Path | None = None
    recipe: Recipe | None = None
    """Of a run: its cases, limits and gate hold."""


def find_target(
    target: str | None,
    *,
    columns: Sequence[str] = (),
    endpoint: Endpoint | None = None,
    base: str | None = None,
    most: int | None = None,
) -> Target:
    """Read what `target` is and which columns it has.

    Raises:
        ModelError: no such model, or an adapter whose base is not there.
        ConfigError: a column that it does not have.
        EndpointError: nobody answers, or there is no such model.
    """
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"no column is called {unknown[0]}", f"columns: {', '.join(COLUMNS)}")
    served = endpoint.connect() if endpoint is not None else None
    if target is None:
        if served is None or not Path(served).is_dir():
            raise ConfigError(
                "prompts are rendered, and answers read, with the model's own tokenizer",
                "name the model as well: smollora probe MODEL --endpoint URL",
            )
        target = served
    found = _find(target, base, most)
    own = list(found.columns)
    if endpoint is not None:
        longest = max(column.most for column in own)
        own.append(Column("served", most=longest))
        if found.run is None and not columns:
            columns = ("served",)
    elif "served" in columns:
        raise ConfigError("the served model has no address", "add --endpoint URL")
    if not columns:
        return replace(found, columns=tuple(own))
    by_name = {column.name: column for column in own}
    lacking = [name for name in columns if name not in by_name]
    if lacking:
        raise ConfigError(f"{target} has no column {lacking[0]}", f"it has: {', '.join(by_name)}")
    chosen = [by_name[name] for name in COLUMNS if name in columns]
    return replace(found, columns=tuple(chosen))


def _find(target: str, base: str | None, most: int | None) -> Target:
    path = Path(target).expanduser()
    if (path / "recipe.yaml").is_file() and (path / "base").is_dir():
        return _run(path, most)
    limit = most or ProbeSection().max_new_tokens
    if (path / "adapter_config.json").is_file():
        under = base_of_adapter(path, base)
        tokenizer = path if (path / "tokenizer.json").is_file() else under
        columns = (Column("base", under, most=limit), Column("adapter", under, path, limit))
        return Target(target, tokenizer, columns)
    folder = resolve_model(target)
    return Target(target, folder, (Column("model", folder, most=limit),))


def _run(path: Path, most: int | None) -> Target:
    recipe = load_recipe(path / "recipe.yaml")
    section = recipe.probe
    base, adapter, merged = path / "base", path / "train" / "adapter", path / "merge" / "model"
    columns = [Column("base", base, most=most or section.base_max_new_tokens)]
    if (adapter / "adapter_config.json").is_file():
        columns.append(Column("adapter", base, adapter, most or section.max_new_tokens))
    if merged.is_dir():
        columns.append(Column("merged", merged, most=most or section.max_new_tokens))
    return Target(str(path), merged if merged.is_dir() else base, tuple(columns), path, recipe)


# ── loading ──────────────────────────────────────────────────────────────────────────────────────

Make = Callable[["Sampling | None"], "Generator"]
"""How to draw (None: greedily) -> the generator; the model is loaded once for both."""


def load_column(
    column: Column, facts: TokenFacts, batch_tokens: int, endpoint: Endpoint | None
) -> Make:
    """Load a column's model, or turn to its server.

    Raises:
        ModelError: no weights there, or an adapter that does not fit its base.
    """
    if column.name == "served":
        server = endpoint
        assert server is not None, "find_target gives no served column without an address"
        return lambda sampling: ServedGenerator(
            server,
            stop_ids=facts.stop_ids,
            opener_id=facts.open.id,
            temperature=None if sampling else 0.0,
        )
    from smollora.generate import local_generator
    from smollora.merge import load_with_adapter

    assert column.folder is not None
    model = on_gpu(load_with_adapter(column.folder, column.adapter))
    return lambda sampling: local_generator(model, facts, batch_tokens, sampling=sampling)
