"""The slash commands of a chat, one function each.

In: what was typed after the command, and the `Talk`, which it may change. Out: lines to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.text import Text

from smollora.chat.answerer import Answer, Answerer
from smollora.chat.session import Session, emptied, load, save, undone
from smollora.chat.settings import SAMPLING, Settings, changed
from smollora.chat.terminal import STYLES
from smollora.chat.tools import Toolbox
from smollora.chat.visible import visible
from smollora.errors import ConfigError
from smollora.types import Message


@dataclass
class Talk:
    """A conversation at the command line."""

    session: Session
    answerer: Answerer
    box: Toolbox = field(default_factory=Toolbox)
    last: list[Answer] = field(default_factory=list)
    """The answers to the last message."""
    colours: bool = False
    done: bool = False


def run_command(talk: Talk, line: str) -> list[Text]:
    """Do what a line that begins with / says.

    Raises:
        SmolloraError: no such command, or it cannot be done.
    """
    name, _, rest = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command /{name}", "/help lists them; //text sends text that begins with /"
        )
    return [Text(line) if isinstance(line, str) else line for line in COMMANDS[name](talk, rest)]


def _set(talk: Talk, rest: str) -> list[str | Text]:
    """KEY VALUE  change a setting for the next answer; alone: show all"""
    settings = talk.session.settings
    if not rest.strip():
        shown = settings.model_dump()
        return [
            f"{name} {json.dumps(shown[name])}  {about.description}"
            for name, about in Settings.model_fields.items()
        ]
    key, _, value = rest.strip().partition(" ")
    if not value.strip():
        raise ConfigError(f"no value for {key}", "write /set KEY VALUE, for instance /set seed 7")
    settings = changed(settings, key, value.strip())
    talk.session = replace(talk.session, settings=settings)
    said: list[str | Text] = [f"{key} {json.dumps(getattr(settings, key))}"]
    if talk.answerer.samples_here and key in SAMPLING and not settings.do_sample:
        said.append("(has no effect while do_sample is false: /set do_sample true)")
    return said


def _think(talk: Talk, rest: str) -> list[str | Text]:
    """switch thinking on or off, where the chat template reads enable_thinking"""
    if not talk.answerer.reads_thinking:
        return ["this model's chat template does not read enable_thinking: nothing to switch"]
    thinking = not talk.session.thinking
    talk.session = replace(talk.session, thinking=thinking)
    return [f"enable_thinking {json.dumps(thinking)}"]


def _raw(talk: Talk, rest: str) -> list[str | Text]:
    """ids and delimiters of the last answers"""
    if not talk.last:
        return ["nothing was answered yet"]
    lines: list[str | Text] = []
    for number, answer in enumerate(talk.last, 1):
        if len(talk.last) > 1:
            lines.append(f"answer {number} of {len(talk.last)}")
        if answer.token_ids is None:
            lines.append("the server sends no token ids")
            continue
        lines += _tokens(talk, answer.token_ids)
        prompt = len(answer.prompt_ids or ())
        first = "" if answer.seconds_to_first is None else f"first {answer.seconds_to_first:.2f} s,"
        lines.append(
            f"{len(answer.token_ids)} tokens after a prompt of {prompt:,}; {answer.finish};"
            f" {first} all {answer.seconds:.2f} s"
        )
    return lines


def _tokens(talk: Talk, ids: tuple[int, ...]) -> list[str | Text]:
    known = talk.answerer.tokens(ids)
    if not known:
        return [" ".join(map(str, ids))]
    if not talk.colours:
        return [
            f"{token}\t{kind or '-'}\t{visible(json.dumps(text, ensure_ascii=False))}"
            for token, text, kind in known
        ]
    row = Text()
    for token, text, kind in known:
        shown = visible(text).replace("\n", "↵\n").replace("\t", "⇥\t")
        body = shown.rstrip("\n")
        row.append(body, style=STYLES.get(kind, ""))
        row.append(f"{token} {shown[len(body) :]}", style="dim")
    return [row]


def _prompt(talk: Talk, rest: str) -> list[str | Text]:
    """the formatted prompt of the last answer, as the model gets it"""
    if not talk.session.messages:
        return ["nothing was said yet"]
    session = talk.session
    while session.messages and session.messages[-1].role == "assistant":
        session = replace(session, messages=session.messages[:-1])
    return [visible(talk.answerer.prompt_text(session))]


def _save(talk: Talk, rest: str) -> list[str | Text]:
    """FILE  write the conversation as JSON"""
    path = _path(rest)
    save(talk.session, path)
    return [f"{len(talk.session.messages)} messages written to {visible(str(path))}"]


def _load(talk: Talk, rest: str) -> list[str | Text]:
    """FILE  go on with a saved conversation"""
    path = _path(rest)
    talk.session = load(talk.session, path)
    talk.last = []
    return [f"{len(talk.session.messages)} messages read", *_retold(talk.session.messages)]


def _path(rest: str) -> Path:
    if not rest.strip():
        raise ConfigError("no file is named", "write it after the command: /save talk.json")
    return Path(rest.strip()).expanduser()


def _retold(messages: tuple[Message, ...]) -> list[str]:
    """The last exchange, so that one knows where one is."""
    lines = []
    for message in messages[-2:]:
        mark = "> " if message.role == "user" else ""
        calls = "".join(f"(calls {call.name})" for call in message.calls)
        lines.append(visible(f"{mark}{message.content}{calls}"))
    return lines


def _reset(talk: Talk, rest: str) -> list[str | Text]:
    """forget what was said; system prompt, tools and settings stay"""
    talk.session, talk.last = emptied(talk.session), []
    return ["a new conversation"]


def _undo(talk: Talk, rest: str) -> list[str | Text]:
    """take back the last message and what followed from it"""
    if not talk.session.messages:
        return ["nothing to take back"]
    talk.session, talk.last = undone(talk.session), []
    return [f"taken back; {len(talk.session.messages)} messages are left"]


def _tools(talk: Talk, rest: str) -> list[str | Text]:
    """the tools on offer"""
    if not talk.box.specs:
        return ["no tools: start with --tools FILE.py or FILE.json"]
    how = "run after your yes" if talk.box.runs_code else "you type their results"
    listed = [
        visible(
            f"{spec.name}({', '.join(spec.parameters.get('properties', {}))})  {spec.description}"
        )
        for spec in talk.box.specs
    ]
    return [f"{len(listed)} tools of {talk.box.path} ({how})", *listed]


def _help(talk: Talk, rest: str) -> list[str | Text]:
    """this list"""
    lines: list[str | Text] = []
    for name, command in COMMANDS.items():
        usage, _, about = (command.__doc__ or "").rpartition("  ")
        lines.append(f"/{name} {usage}".ljust(18) + about)
    return [*lines, "//TEXT            send text that begins with /", "Ctrl-C stops an answer"]


def _quit(talk: Talk, rest: str) -> list[str | Text]:
    """leave (Ctrl-D does too)"""
    talk.done = True
    return []


Command = Callable[[Talk, str], list[str | Text]]
COMMANDS: dict[str, Command] = {
    "help": _help,
    "set": _set,
    "think": _think,
    "tools": _tools,
    "raw": _raw,
    "prompt": _prompt,
    "undo": _undo,
    "reset": _reset,
    "save": _save,
    "load": _load,
    "quit": _quit,
}
