"""How a model is asked to answer: what `/set` changes, between two messages, for the next answer.

In: a name and a value as typed. Out: `Settings`. The surprise: which of them were set by hand is
known (`model_fields_set`), for a server keeps its own values for all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from smollora.config import ChatSettings
from smollora.errors import ConfigError

SAMPLING = ("temperature", "top_p", "seed")
"""Settings that do nothing while `do_sample` is false."""
Settings = ChatSettings
"""Settings of a conversation; frozen, `changed` makes another."""


def changed(settings: Settings, key: str, value: str) -> Settings:
    """`settings` with `key` as typed: `0.7`, `true`, `none`.

    Raises:
        ConfigError: no such setting, or a value that it cannot have.
    """
    if key not in Settings.model_fields:
        raise ConfigError(
            f'there is no setting "{key}"', f"settings: {', '.join(Settings.model_fields)}"
        )
    return _made({**settings.model_dump(exclude_unset=True), key: _read(value)})


def read_settings(record: Mapping[str, Any]) -> Settings:
    """Settings from a saved conversation.

    Raises:
        ConfigError: a key or a value that no setting has.
    """
    return _made(dict(record))


def from_generation_config(values: Mapping[str, Any]) -> Settings:
    """What the model's own generation_config.json asks for, where it says something usable."""
    names = ("do_sample", "temperature", "top_p", "repetition_penalty")
    said = {name: values[name] for name in names if values.get(name) is not None}
    try:
        return _made(said)
    except ConfigError:
        return Settings()


def _read(value: str) -> Any:
    if value.lower() in ("none", "null"):
        return None
    try:
        return json.loads(value.lower())
    except ValueError:
        return value


def _made(values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(
            f"{where}: {first['msg']}, found {str(first['input'])[:80]}",
            "see /set for the settings and their values",
        ) from error
