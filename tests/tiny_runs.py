"""Local models, data files and recipes for whole runs, and the command run in this process.

A run over these takes about two seconds and downloads nothing. The model learns nothing worth
having, but every stage treats it as it treats a real one.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from smollora import cli
from tiny_models import save_model, tiny_model, tiny_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as most small models carry it: tools and calls are lost."""

DELIMITERS = ("<tool_call>", "</tool_call>")

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
CITIES = ("Oslo", "Lima", "Rome", "Cairo", "Quito", "Bern", "Riga", "Accra")

Row = dict[str, Any]


# ── the command ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def smollora(*arguments: object) -> Ended:
    """What `smollora ARGUMENTS` does, in this process; a traceback fails the test that asked."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    argv = ["smollora", *(str(argument) for argument in arguments)]
    started = mock.patch.object(sys.modules["__main__"], "__package__", None)  # as a script
    with mock.patch.object(sys, "argv", argv), started, redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Ended(code, out.getvalue(), err.getvalue())


# ── models ────────────────────────────────────────────────────────────────────────────────────


def write_model(
    folder: Path,
    *,
    template: str | None = CHATML,
    tags: Sequence[str] = (),
    tied: bool = True,
    without: Iterable[str] = (),
) -> Path:
    """A tiny Llama in Hugging Face form.

    Args:
        folder: where it goes.
        template: its chat template; None for none.
        tags: texts that are single tokens.
        tied: whether input and output embeddings are one tensor.
        without: glob patterns of files that are deleted from it again.
    """
    tokenizer = tiny_tokenizer(tags=tuple(tags), template=template)
    save_model(tiny_model("llama", tied=tied), tokenizer, folder)
    for pattern in without:
        for path in folder.glob(pattern):
            path.unlink()
    return folder


# ── rows, cases, recipes ──────────────────────────────────────────────────────────────────────


def call_row(city: str) -> Row:
    """A request that needs the tool, in messages form."""
    return {
        "id": f"call-{city}",
        "messages": [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": city}}}],
            },
        ],
        "tools": [WEATHER],
    }


def no_call_row(city: str) -> Row:
    """A request that the offered tool cannot serve."""
    return {
        "id": f"no-call-{city}",
        "messages": [
            {"role": "user", "content": f"Who is the mayor of {city}?"},
            {"role": "assistant", "content": "I cannot look that up here."},
        ],
        "tools": [WEATHER],
    }


def general_row(city: str) -> Row:
    """Plain chat."""
    return {
        "id": f"general-{city}",
        "messages": [
            {"role": "user", "content": f"Say hello to {city}."},
            {"role": "assistant", "content": f"Hello, {city}!"},
        ],
    }


def tool_rows() -> list[Row]:
    """Eight rows that call and eight that do not."""
    return [row for city in CITIES for row in (call_row(city), no_call_row(city))]


def general_rows() -> list[Row]:
    """Eight rows of plain chat."""
    return [general_row(city) for city in CITIES]


def probe_case(name: str, category: str, request: str, *, tools: bool, calls: bool) -> Row:
    """One line of a file of cases."""
    return {
        "id": name,
        "category": category,
        "messages": [{"role": "user", "content": request}],
        "tools": [WEATHER] if tools else [],
        "expected": [{"name": "get_weather", "arguments": {"city": "Oslo"}}] if calls else [],
    }


CASES = (
    probe_case("c1", "single", "What is the weather in Oslo?", tools=True, calls=True),
    probe_case("c2", "near_miss", "Who is the mayor of Oslo?", tools=True, calls=False),
    probe_case("c3", "no_tools", "Say hello.", tools=False, calls=False),
)


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_recipe(folder: Path, model: Path) -> dict[str, Any]:
    """A recipe over files in `folder` (written here) that gates nothing and trains for a moment."""
    tools = write_rows(folder / "tools.jsonl", tool_rows())
    general = write_rows(folder / "general.jsonl", general_rows())
    cases = write_rows(folder / "cases.jsonl", CASES)
    return {
        "name": "tiny",
        "model": {"source": str(model)},
        "prepare": {
            "sources": [
                {"name": "tools", "path": str(tools), "kind": "tool"},
                {"name": "general", "path": str(general), "kind": "general"},
            ],
            "max_length": 1024,
            "validation_share": 0.1,
        },
        "train": {
            "rank": 2,
            "alpha": 4,
            "epochs": 1,
            "batch_tokens": 1024,
            "dtype": "float32",
            "compile": "off",
        },
        "merge": {"dtype": "float32", "positions": 200},
        "probe": {
            "cases": str(cases),
            "max_new_tokens": 4,
            "base_max_new_tokens": 4,
            "stock_prompt_cases": 1,
            "gate": {},
        },
    }


def write_recipe(path: Path, values: Mapping[str, Any]) -> Path:
    """The recipe as YAML."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    return path


def changed(values: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """A recipe with `section__key=value` settings changed."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for place, value in settings.items():
        section, _, key = place.partition("__")
        copy.setdefault(section, {})[key] = value
    return copy


THREE_PACKS: dict[str, Any] = {
    "train__epochs": 4,
    "train__max_epochs": 6,
    "train__batch_tokens": 384,
    "train__packs_per_step": 3,
    "train__lr": 2e-3,
    "train__weights": {"open": 4.0, "text": 0.5},
}
"""Settings of a training whose steps have packs for several processes."""


def mixed_run(folder: Path, **settings: Any) -> Path:
    """`folder` with a tiny recipe of these settings, and a run of it up to its rows in `runs`."""
    recipe = changed(tiny_recipe(folder, write_model(folder / "model")), **settings)
    write_recipe(folder / "recipe.yaml", recipe)
    said = smollora("mix", folder / "recipe.yaml", "--runs", folder / "runs")
    assert said.code == 0, said.err
    return folder


def copy_run(folder: Path, name: str, run: Path | None = None) -> Path:
    """The run of a `mixed_run`, or `run`, once more under `name`: a training may go on in it."""
    copied = folder / name / "tiny"
    shutil.copytree(run or folder / "runs" / "tiny", copied, symlinks=True)
    return copied
