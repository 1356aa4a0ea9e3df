"""`smollora template MODEL CONVERSATION.json`: the formatted chat, and its tokens with their owners
and labels.

In: a model, of which the tokenizer's files suffice, and a conversation. Out: a `TemplateView`: the
text that `apply_chat_template(tokenize=False)` gives, its ids, whose token each is, and which ones
training would label. The surprise: labels belong to training rows, and a template that rewrites
history makes several of one conversation; then the token view shows those rows, one by one.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text

from smollora.columns import TokenColumns
from smollora.data.sources import read_conversation
from smollora.errors import ConfigError, DataError, TemplateError
from smollora.models import open_tokenizer, read_stop_ids
from smollora.render import Renderer
from smollora.templates.audit import choose_format, choose_template
from smollora.templates.engine import DEFAULT_DATE, ChatTemplate
from smollora.templates.given import plain_message
from smollora.templates.owners import Refusal, Turns, find_owners
from smollora.templates.turns import RenderedText, Span
from smollora.tokens import read_token_facts
from smollora.types import Reject, Rendered

Messages = Sequence[Mapping[str, Any]]

RESERVED = {
    *("messages", "tools", "add_generation_prompt", "date", "format_name", "source"),
    *("documents", "strftime_now", "raise_exception"),
}
KEYS = {"messages", "tools", "id", "settings"}
MESSAGE_KEYS = {
    *("role", "content", "name", "tool_calls", "tool_call_id"),
    *("reasoning_content", "reasoning", "thinking"),
}
COLOURS = {
    "system": "magenta",
    "user": "blue",
    "assistant": "green",
    "tool": "yellow",
    "template": "bright_black",
}
BACKGROUNDS = {
    "system": "#ece4f7",
    "user": "#dfeafa",
    "assistant": "#ddf1e1",
    "tool": "#faecd0",
    "template": "#ecebe6",
}
DELIMITER = "background:#8a2b12;color:#ffffff"
PANEL = "white-space:pre-wrap;background:#fbfaf6;padding:.6em .8em;font-size:.85em;line-height:1.6"
"""Light in a dark notebook too: the colours of the owners are made for it."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Tokens with what is known of each; four columns of equal length."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    owners: tuple[int, ...]
    """Index of the message each token belongs to; -1 = the template's own."""
    labels: tuple[bool, ...]
    """True where the model would have to produce the token in training."""


@dataclass(frozen=True, slots=True, repr=False)
class TemplateView:
    """A conversation as a model gets it."""

    text: str
    """What `apply_chat_template(tokenize=False)` gives."""
    token_ids: tuple[int, ...]
    """Of `text`."""
    rows: tuple[TokenRow, ...]
    """`text` with labels; several training rows where the template rewrites history."""
    roles: tuple[str, ...]
    """Of the messages, by index."""
    notes: tuple[str, ...]
    """What a reader should know: a frozen date, why nothing is labelled, rewritten history."""
    delimiters: tuple[int, ...] = ()
    """Ids that open and close a call; empty where they are no single tokens."""

    def role_of(self, owner: int) -> str:
        """ "assistant", or "template" for its own tokens."""
        return self.roles[owner] if 0 <= owner < len(self.roles) else "template"

    def _repr_html_(self) -> str:
        """For notebooks: tokens coloured by owner, labelled ones bold and underlined, delimiters of
        calls light on dark.
        """
        pieces = [f"<p>{html.escape(note)}</p>" for note in self.notes]
        for row in self.rows:
            spans = []
            columns = zip(row.token_ids, row.tokens, row.owners, row.labels, strict=True)
            for token_id, token, owner, labelled in columns:
                role = self.role_of(owner)
                style = f"background:{BACKGROUNDS.get(role, '#ecebe6')};color:#1f1f1c"
                title = f"id {token_id}, {role}{', labelled' if labelled else ''}"
                if token_id in self.delimiters:
                    style, title = DELIMITER, f"{title}, delimiter"
                style += ";font-weight:700;text-decoration:underline" if labelled else ""
                shown = html.escape(token)
                spans.append(f'<span style="{style}" title="{html.escape(title)}">{shown}</span>')
            pieces.append(f'<pre style="{PANEL}">{"".join(spans)}</pre>')
        return "".join(pieces)

    def __repr__(self) -> str:
        return self.text


def show_template(
    source: str,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
    date: str | None = None,
    format_name: str | None = None,
    **variables: Any,
) -> TemplateView:
    """A conversation as a model's chat template renders it, with ids, owners and labels.

    Args:
        source: a folder, a Hub id or `pypi:NAME==VERSION`.
        messages: OpenAI form.
        tools: OpenAI form, or bare name, description and parameters.
        add_generation_prompt: end with the header that asks the model to speak.
        date: ISO date that the template's clock reads; None: 2025-07-08, so that it stands still.
        format_name: how the model writes calls; None: as its template does.
        **variables: what else the template may read: `enable_thinking`, `xml_tools`, ...

    Raises:
        ModelError: no such model, or no tokenizer in it.
        TemplateError: no template, or it refuses the conversation.
    """
    folder, tokenizer = open_tokenizer(source)
    template = choose_template(tokenizer.chat_template)
    if not template:
        raise TemplateError(
            f"{source} has no chat template",
            "put a chat_template.jinja into its folder, for instance that of its instruct version",
        )
    fmt = choose_format(tokenizer, format_name)
    facts = read_token_facts(tokenizer, fmt, template, read_stop_ids(folder))
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if text}
    program = ChatTemplate(template)
    given = list(messages)
    known = {**special, **variables}

    def render(turns: Messages) -> str:
        return program.render(
            turns, tools, add_generation_prompt=add_generation_prompt, date=date, **known
        )

    text = render(given)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    rows: tuple[TokenRow, ...] = ()
    notes = _date_note(program, given, tools, text, date, known)
    notes += _losses(program, given, tools, text, add_generation_prompt, date, known)
    if add_generation_prompt:
        notes.append("a prompt: nothing in it is labelled")
    else:
        renderer = Renderer(template, tokenizer, facts, date=date, variables=variables)
        rows, said = _training_rows(renderer, tokenizer, given, tools, ids)
        notes += said
    if not rows:
        owners = _owners(render, tokenizer, text, given)
        rows = (_row(tokenizer, ids, owners, (False,) * len(ids)),)
    roles = tuple(str(message.get("role")) for message in given)
    return TemplateView(text, ids, rows, roles, tuple(notes), facts.ids)


def _date_note(
    program: ChatTemplate,
    messages: Messages,
    tools: Any,
    text: str,
    date: str | None,
    variables: Mapping[str, Any],
) -> list[str]:
    if date is not None or "strftime_now" not in program.source:
        return []
    other = program.render(messages, tools, date="2031-12-30", **variables)
    if other == program.render(messages, tools, **variables):
        return []
    return [f"the template says the day, here {DEFAULT_DATE}; a server says today's"]


def _losses(
    program: ChatTemplate,
    messages: Messages,
    tools: Any,
    text: str,
    prompt: bool,
    date: str | None,
    variables: Mapping[str, Any],
) -> list[str]:
    """What could be left out of the conversation and nobody would see it in the text."""
    said = []
    without: list[tuple[str, list[Mapping[str, Any]], Any]] = []
    if tools:
        without.append(("the tools are", list(messages), None))
    for key, words in (("tool_calls", "calls are"), ("reasoning_content", "reasoning is")):
        for number, message in enumerate(messages):
            if message.get(key):
                less = {name: value for name, value in message.items() if name != key}
                rest = [*messages[:number], less, *messages[number + 1 :]]
                without.append((f"message {number + 1}: its {words}", rest, tools))
    for words, rest, offered in without:
        try:
            other = program.render(
                rest, offered, add_generation_prompt=prompt, date=date, **variables
            )
        except TemplateError:
            continue
        if other == text:
            said.append(f"{words} lost: the text is the same without")
    return said


def _training_rows(
    renderer: Renderer, tokenizer: Any, messages: Messages, tools: Any, ids: tuple[int, ...]
) -> tuple[tuple[TokenRow, ...], list[str]]:
    """The rows that training would make of the conversation, and what is to be said of them."""
    record = {"messages": [dict(message) for message in messages], "tools": tools or []}
    conversation = read_conversation(record, "conversation", 1)
    if isinstance(conversation, Reject):
        return (), [f"not a training row ({conversation.reason}): {conversation.detail}"]
    rendered = renderer.row(conversation)
    if isinstance(rendered, Reject):
        return (), [f"not a training row ({rendered.reason}): {rendered.detail}"]
    rows = tuple(_row(tokenizer, r.token_ids, r.owner, r.trained) for r in rendered)
    if len(rows) > 1:
        said = f"the template rewrites history: {len(rows)} training rows, one for each turn"
        return rows, [said]
    if rows[0].token_ids != ids:
        return rows, ["the tokens are those of the training row, where arguments are objects"]
    return rows, []


def _row(
    tokenizer: Any, ids: Sequence[int], owners: Sequence[int], labels: Sequence[bool]
) -> TokenRow:
    tokens = tuple(tokenizer.decode([token_id]) for token_id in ids)
    return TokenRow(tuple(ids), tokens, tuple(owners), tuple(labels))


def _owners(
    render: Callable[[Turns], str], tokenizer: Any, text: str, messages: Messages
) -> tuple[int, ...]:
    """Whose text each token begins in; the template's own where that cannot be told."""
    turns = [plain_message(message) for message in messages]
    spoken = [index for index, turn in enumerate(turns) if isinstance(turn.get("content"), str)]
    places = find_owners(render, turns, text, spoken, ())
    spans = () if isinstance(places, Refusal) else tuple(Span(*place, False) for place in places)
    columns = TokenColumns(tokenizer.backend_tokenizer)
    made = columns.columns("", RenderedText(text, spans), columns.encode([text])[0])
    assert isinstance(made, Rendered)  # only a trained span can be refused
    return made.owner


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def read_chat(path: Path, tools_path: Path | None = None) -> tuple[list[Any], list[Any] | None]:
    """(messages, tools) of a conversation's file: a list of messages, or `messages` and `tools`.

    Raises:
        DataError: not there, not JSON, or with keys that nothing here reads.
    """
    value = _read_json(path)
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise DataError(
            f"{path} holds no conversation",
            'write a list of messages, or {"messages": [...], "tools": [...]}',
        )
    _refuse_unknown(path, "the conversation", value, KEYS)
    for number, message in enumerate(value["messages"], 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f"message {number} of {path} is no object with a role",
                'write {"role": "user", "content": "..."}',
            )
        _refuse_unknown(path, f"message {number}", message, MESSAGE_KEYS)
    tools = _read_json(tools_path) if tools_path else value.get("tools")
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    ):
        raise DataError(
            f"the tools in {tools_path or path} are no list of objects",
            'write [{"type": "function", "function": {"name": ...}}]',
        )
    return value["messages"], tools


def read_variables(settings: Sequence[str]) -> dict[str, Any]:
    """`enable_thinking=false` as a template variable; values are JSON, or else text.

    Raises:
        ConfigError: no `=`, or a name that the rendering itself sets.
    """
    variables: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier() or name in RESERVED:
            raise ConfigError(
                f"{setting!r} is no template variable",
                "write --set NAME=VALUE, for instance --set enable_thinking=false",
            )
        try:
            variables[name] = json.loads(value)
        except ValueError:
            variables[name] = value
    return variables


def _refuse_unknown(path: Path, what: str, value: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise DataError(
            f"unknown key {', '.join(map(repr, unknown))} in {what} of {path}",
            f"known keys: {', '.join(sorted(known))}",
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", "give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}", "check it with a JSON tool"
        ) from error


# ── the terminal ──────────────────────────────────────────────────────────────────────────────


def as_rich(view: TemplateView, *, colour: bool) -> list[Text]:
    """The token view: in colour by owner with labelled tokens underlined; without colour a line for
    each token, with the same in words.
    """
    lines = [Text(f"note: {note}") for note in view.notes]
    for number, row in enumerate(view.rows, 1):
        if len(view.rows) > 1:
            lines.append(Text(f"training row {number} of {len(view.rows)}"))
        lines += _coloured(view, row) if colour else _plain(view, row)
    return lines


def _coloured(view: TemplateView, row: TokenRow) -> list[Text]:
    legend = Text("owners: ")
    for role in dict.fromkeys(view.role_of(owner) for owner in row.owners):
        legend.append(f"{role} ", style=COLOURS.get(role, "default"))
    legend.append("labelled", style="bold underline")
    text = Text()
    columns = zip(row.token_ids, row.tokens, row.owners, row.labels, strict=True)
    for token_id, token, owner, labelled in columns:
        style = COLOURS.get(view.role_of(owner), "default")
        shown = visible(token)
        ends = shown[len(shown.rstrip("\n")) :]
        text.append(shown.rstrip("\n"), style=f"{style} bold underline" if labelled else style)
        text.append(f"{token_id} {ends}", style="dim")
    return [legend, text, Text(f"{len(row.token_ids)} tokens, {sum(row.labels)} labelled")]


def _plain(view: TemplateView, row: TokenRow) -> list[Text]:
    lines = []
    columns = zip(row.token_ids, row.tokens, row.owners, row.labels, strict=True)
    for place, (token_id, token, owner, labelled) in enumerate(columns):
        said = f"{place}\t{token_id}\t{view.role_of(owner)}\t{'labelled' if labelled else '-'}"
        lines.append(Text(f"{said}\t{json.dumps(token, ensure_ascii=False)}"))
    runs = [labelled for labelled, _ in groupby(row.labels)]
    lines.append(
        Text(f"{len(row.token_ids)} tokens, {sum(row.labels)} labelled in {sum(runs)} places")
    )
    return lines


def visible(token: str) -> str:
    """A token for a terminal: line ends marked, control characters never passed on."""
    shown = token.replace("\n", "↵\n").replace("\t", "⇥\t")
    return "".join(c if c.isprintable() or c in "\n\t" else f"⟨{ord(c):04X}⟩" for c in shown)


def as_dict(view: TemplateView) -> dict[str, Any]:
    """For `--json`."""
    return {
        "text": view.text,
        "token_ids": list(view.token_ids),
        "roles": list(view.roles),
        "notes": list(view.notes),
        "rows": [
            {
                "token_ids": list(row.token_ids),
                "tokens": list(row.tokens),
                "owners": list(row.owners),
                "labels": list(row.labels),
            }
            for row in view.rows
        ],
    }
