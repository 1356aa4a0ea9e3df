"""Curves to TensorBoard, trackio and wandb, by transformers' own callbacks.

What each step logs there: loss, learning rate, gradient norm, loss and accuracy by part, tokens a
second, MFU; after a validation or a probe its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from smollora.errors import ConfigError

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Any of these modules serves a tracker."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise where a tracker is not installed.

    Raises:
        ConfigError: names it and what installs it.
    """
    for name in names:
        if not any(find_spec(module) for module in PACKAGES[name]):
            raise ConfigError(
                f"train.report_to names {name}, which is not installed",
                f"pip install {PACKAGES[name][0]}, or leave it out: curve.jsonl and the report"
                " hold the same curve",
            )


def flat_logs(entry: dict[str, Any]) -> dict[str, float]:
    """A line of the curve as transformers logs: numbers alone, parts as name/part."""
    logs: dict[str, float] = {}
    for key, value in entry.items():
        if key in ("loss", "lr", "step", "seconds"):  # transformers logs these itself
            continue
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            logs[key] = value
        elif isinstance(value, dict) and "k" in value:
            if value["n"]:
                logs[key] = value["k"] / value["n"]
        elif isinstance(value, dict):
            logs.update({f"{key}/{part}": v for part, v in value.items() if v is not None})
    return logs
