"""What a model's folder says about talking to it: template, parser, stop tokens, sampling.

In: a target and its tokenizer. Out: what the server is given, and notes on what a person should
know. The surprise: vLLM stops at the tokenizer's eos token and at those of generation_config.json,
whatever the template ends a turn with, and no flag adds one; so a missing one can only be said.
"""

from __future__ import annotations

from pathlib import Path

from smollora.architecture import read_config
from smollora.errors import ConfigError, ModelError, TemplateError
from smollora.formats import FORMATS, ToolFormat, get_format
from smollora.formats.detect import UNKNOWN, detect_format
from smollora.models import read_stop_ids
from smollora.serve.target import Target
from smollora.templates.audit import choose_template, find_format, run_check
from smollora.templates.audit.calls import calls_in_format, calls_rendered
from smollora.templates.audit.results import results_rendered
from smollora.templates.audit.subject import Subject
from smollora.templates.audit.tools import tools_reach_prompt
from smollora.templates.engine import ChatTemplate
from smollora.tokenizer_file import FileTokenizer, load_tokenizer_files, read_json_object

GREETED = "Gladly."


def template_of(target: Target, tokenizer: FileTokenizer) -> tuple[Path | None, str]:
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


def read_subject(target: Target, source: str, tokenizer: FileTokenizer) -> Subject:
    """The template with its tokenizer and the form in which it writes calls.

    Raises:
        ModelError: it cannot be compiled.
    """
    try:
        return Subject(ChatTemplate(source), tokenizer, find_format(source, tokenizer))
    except TemplateError as error:
        raise ModelError(f"{target.model}: {error.message}", "smollora repair mends it") from error


def choose_parser(subject: Subject, wanted: str | None) -> tuple[str, ToolFormat, list[str]]:
    """(vLLM's parser, the format, what to know).

    Args:
        subject: the template with its tokenizer and the form that it writes.
        wanted: vLLM's name of a parser, or one of our formats; None: the form's own.

    Raises:
        ConfigError: the template writes calls in a form that smollora does not know.
    """
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


def read_stops(
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


def sampling_notes(folder: Path) -> list[str]:
    """What the model's own settings do to requests that say nothing about sampling."""
    values = read_json_object(folder / "generation_config.json")
    keys = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    said = [f"{key} {values[key]}" for key in keys if values.get(key) is not None]
    if not said:
        return []
    return [f"requests that do not say otherwise are sampled as the model says: {', '.join(said)}"]
