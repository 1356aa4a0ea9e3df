"""What a chat template loses: one small check per thing that can get lost, with evidence.

In: a template's source and the tokenizer it belongs to. Out: a `Check` per question, named by its
function. Each check renders small made-up conversations and looks at what came out; nothing is
read off the source. A template that raises fails the check that made it raise, in its own words.

The surprise: some checks pass with a remark ("for information: ..."), where the template behaves as
its model was built, or where no template can do better, and the person should still know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from smollora.errors import TemplateError
from smollora.formats import ToolFormat
from smollora.formats.hermes import HERMES
from smollora.templates.engine import ChatTemplate
from smollora.types import Check, ParsedCall, ToolSpec

TemplateSource = str | Mapping[str, str] | Sequence[Mapping[str, str]] | None
"""As tokenizers hold it: one template, or several by name."""
Chat = list[dict[str, Any]]


class Tokenizer(Protocol):
    """What the audit needs of a tokenizer (any transformers fast tokenizer has it)."""

    @property
    def eos_token(self) -> str | None: ...
    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def get_added_vocab(self) -> Mapping[str, int]: ...


class Finding(NamedTuple):
    """What a check answers."""

    ok: bool
    detail: str = ""
    at: int | None = None
    """Token position of the evidence in the rendering that shows it."""


def audit(source: TemplateSource, tokenizer: Tokenizer, *, fmt: ToolFormat = HERMES) -> list[Check]:
    """Every check on a template, in reading order.

    Args:
        source: the template, or named templates ("tool_use" is taken, else "default"), or None.
        tokenizer: the model's own.
        fmt: how the model is to write calls.
    """
    chosen = choose_template(source)
    if not chosen:
        return [Check("has_template", False, "the tokenizer has no chat template")]
    try:
        template = ChatTemplate(chosen)
    except TemplateError as error:
        return [Check("has_template", False, error.message)]
    subject = Subject(template, tokenizer, fmt)
    return [run_check(check.__name__, check, subject) for check in CHECKS]


def choose_template(source: TemplateSource) -> str | None:
    """The template that tool use goes through; None if there is none."""
    if source is None or isinstance(source, str):
        return source
    named = source if isinstance(source, Mapping) else {e["name"]: e["template"] for e in source}
    return named.get("tool_use") or named.get("default")


# ── the conversations that are rendered ───────────────────────────────────────────────────────

WEATHER = ToolSpec(
    "get_weather",
    "Weather of one city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": 'The city\'s "full" name'},
            "daily": {"type": "boolean", "default": True},
            "station": {"type": ["string", "null"], "default": None},
        },
        "required": ["city"],
    },
)
CLOCK = ToolSpec("get_time", "Time at one place", {"type": "object", "properties": {}})
TOOLS = [WEATHER.as_openai(), CLOCK.as_openai()]
ARGUMENTS: dict[str, Any] = {"city": "Lisbon", "daily": True, "station": None}

NASTY = (
    "naïve 東京 🙂 \"double\" 'single' \\n back\\slash {one} {{two}} {% raw %} <b> & a\nnew line"
)
RESULT = '{"sky": "clear", "celsius": 21.5}'
LATER_RESULT = '{"time": "14:05"}'
THOUGHT = "The person wants to know what the sky does."


def system(content: Any = "Answer as a lighthouse keeper would.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any = "Tell me about Lisbon.") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Lisbon lies on seven hills.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calling(*calls: tuple[str, Any], content: str = "", **more: Any) -> dict[str, Any]:
    """An assistant message that calls tools, in OpenAI form."""
    made = [
        {
            "id": f"call0000{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    return assistant(content, tool_calls=made, **more)


def result(content: Any = RESULT, number: int = 0, name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": content}


ONE_CALL = calling(("get_weather", ARGUMENTS))
TWO_CALLS = calling(("get_weather", ARGUMENTS), ("get_time", {}))


# ── what is under the lens ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Subject:
    """A template with its tokenizer and the format its model should write."""

    template: ChatTemplate
    tokenizer: Tokenizer
    fmt: ToolFormat = HERMES

    def render(self, messages: Chat, tools: Any = None, **options: Any) -> str:
        """The text of a conversation, with the tokenizer's special tokens at hand."""
        return self.template.render(messages, tools, **{**self.special_tokens, **options})

    @property
    def special_tokens(self) -> dict[str, Any]:
        """`bos_token` and its kind, as transformers hands them to a template."""
        return {name: token for name, token in self.tokenizer.special_tokens_map.items() if token}

    def said(self, messages: Chat, tools: Any = None, **options: Any) -> str:
        """What the last message adds to the prompt before it."""
        prompt = self.render(messages[:-1], tools, add_generation_prompt=True, **options)
        whole = self.render(messages, tools, **options)
        return whole[self.turn_start(prompt, whole) :]

    def turn_start(self, prompt: str, whole: str) -> int:
        """Where a turn leaves its generation prompt; before a token that only begins alike."""
        place = shared_length(prompt, whole)
        if place < len(prompt):
            for found in self.token_pattern.finditer(whole):
                if found.start() < place < found.end():
                    return found.start()
        return place

    def calls_in(self, text: str) -> tuple[ParsedCall, ...]:
        """Every attempt to call in a text, whatever the tokenizer makes of the delimiters."""
        letters = _Letters(*self.fmt_tokens)
        if self.fmt.delimited != "token":  # the answer alone is read, without what ends the turn
            text = text.strip().removesuffix(self.tokenizer.eos_token or "")
        return self.fmt.parse(letters.encode(text), letters, (WEATHER, CLOCK))

    @property
    def fmt_tokens(self) -> tuple[str, ...]:
        """The delimiters that the format has, and the tokens between them."""
        return tuple(text for text in (self.fmt.open, self.fmt.close, *self.fmt.inner) if text)

    def token_at(self, text: str, character: int) -> int:
        """How many tokens stand before a character."""
        return len(self.tokenizer.encode(text[:character], add_special_tokens=False))

    def added_tokens_in(self, text: str) -> list[str]:
        """The added tokens that occur in a text, in order."""
        added = self.tokenizer.get_added_vocab()
        return [token for token in self.token_pattern.findall(text) if token in added]

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """Finds added tokens and delimiters, the longest first."""
        names = {*self.tokenizer.get_added_vocab(), *self.fmt_tokens}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    @property
    def modes(self) -> tuple[dict[str, bool], ...]:
        """The ways to ask for an answer: as it comes, and without thinking if that is a switch."""
        can_switch = "enable_thinking" in self.template.source
        return ({}, {"enable_thinking": False}) if can_switch else ({},)

    @property
    def reasons(self) -> bool:
        """True if the model thinks aloud: it has a token for it, or its template speaks of it."""
        return "<think>" in self.template.source or "<think>" in self.tokenizer.get_added_vocab()


class _Letters:
    """A tokenizer whose tokens are letters and delimiters: reads calls off plain text."""

    def __init__(self, *delimiters: str) -> None:
        self.delimiters = {text: -1 - place for place, text in enumerate(delimiters)}

    def encode(self, text: str) -> list[int]:
        if not self.delimiters:
            return [*map(ord, text)]
        pieces = re.split(f"({'|'.join(map(re.escape, self.delimiters))})", text)
        spelled = [[self.delimiters[p]] if p in self.delimiters else map(ord, p) for p in pieces]
        return [token for piece in spelled for token in piece]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        names = {token: name for name, token in self.delimiters.items()}
        return "".join(names.get(token) or chr(token) for token in token_ids)

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        return self.delimiters.get(tokens)


def run_check(name: str, check: Any, subject: Subject) -> Check:
    """One check; the template's own refusal is a failure with its words."""
    try:
        return Check(name, *check(subject))
    except TemplateError as error:
        return Check(name, False, error.message)


def excerpt(text: str, around: int = 0, width: int = 90) -> str:
    """A piece of evidence on one line."""
    start = max(0, min(around - width // 3, len(text) - width))
    piece = text[start : start + width]
    dots = ("..." if start else "", "..." if start + width < len(text) else "")
    return dots[0] + piece.replace("\n", "\\n") + dots[1]


def shared_length(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def lost_from(text: str, wanted: Iterable[str]) -> list[str]:
    """Which of the wanted pieces are not in a text, in the order of a reading."""
    position, lost = 0, []
    for piece in wanted:
        found = text.find(piece, position)
        if found < 0:
            lost.append(piece)
        else:
            position = found + len(piece)
    return lost


# ── tools ─────────────────────────────────────────────────────────────────────────────────────


def tools_reach_prompt(subject: Subject) -> Finding:
    """Names, descriptions and parameters of every tool are in the prompt."""
    prompt = subject.render([system(), user()], TOOLS, add_generation_prompt=True)
    wanted = ["get_weather", "Weather of one city", "station", "get_time", "Time at one place"]
    if lost := [word for word in wanted if word not in prompt]:
        return Finding(False, f"not in the prompt: {', '.join(lost)}; it reads {excerpt(prompt)}")
    position = prompt.find("get_weather")
    return Finding(True, excerpt(prompt, position), subject.token_at(prompt, position))


def tools_as_json(subject: Subject) -> Finding:
    """Every tool is written as JSON, not as Python prints it."""
    prompt = subject.render([user()], TOOLS, add_generation_prompt=True)
    shown = [value.get("function", value) for value in _json_objects(prompt)]
    for tool in (WEATHER, CLOCK):
        if not any(
            isinstance(value, Mapping)
            and value.get("name") == tool.name
            and value.get("parameters") == tool.parameters
            for value in shown
        ):
            position = prompt.find(tool.name)
            if position < 0:
                return Finding(False, f"{tool.name} is not in the prompt")
            at = subject.token_at(prompt, position)
            return Finding(False, f"not JSON: {excerpt(prompt, position)}", at)
    return Finding(True)


def _json_objects(text: str) -> list[dict[str, Any]]:
    decoder, found, position = json.JSONDecoder(), [], text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            found.append(value)
        except ValueError:
            end = position + 1
        position = text.find("{", end)
    return found


# ── calls ─────────────────────────────────────────────────────────────────────────────────────


def calls_rendered(subject: Subject) -> Finding:
    """A call of the assistant is there, between the delimiters."""
    said = subject.said([user(), ONE_CALL], TOOLS)
    for attempt in subject.calls_in(said):
        if attempt.raw.startswith(subject.fmt.open) and not lost_from(attempt.raw, ["get_weather"]):
            lost = [word for word in ("city", "Lisbon") if word not in attempt.raw]
            detail = f"lost from the call: {', '.join(lost)}; " if lost else ""
            return Finding(not lost, detail + excerpt(attempt.raw))
    return Finding(False, f"no call in the assistant's turn, which reads {excerpt(said)}")


def arguments_as_object(subject: Subject) -> Finding:
    """Arguments given as an object are written as that object."""
    return _first_call_equals(subject, ("get_weather", ARGUMENTS), ARGUMENTS)


def arguments_as_string(subject: Subject) -> Finding:
    """Arguments given as a JSON string are written as an object, not encoded twice."""
    return _first_call_equals(subject, ("get_weather", json.dumps(ARGUMENTS)), ARGUMENTS)


def call_without_arguments(subject: Subject) -> Finding:
    """A call that takes no arguments has an empty object."""
    return _first_call_equals(subject, ("get_time", {}), {})


def _first_call_equals(subject: Subject, call: tuple[str, Any], wanted: Any) -> Finding:
    said = subject.said([user(), calling(call)], TOOLS)
    attempts = subject.calls_in(said)
    if len(attempts) != 1:
        return Finding(False, f"{len(attempts)} calls instead of one in {excerpt(said)}")
    read = attempts[0]
    if read.call is None:
        return Finding(False, f"the call cannot be read ({read.status}): {excerpt(read.raw)}")
    ok = read.call.name == call[0] and dict(read.call.arguments) == wanted
    return Finding(ok, excerpt(read.raw))


def several_calls(subject: Subject) -> Finding:
    """Several calls of one turn are all there, in order, each in a block of its own."""
    said = subject.said([user(), TWO_CALLS], TOOLS)
    names = [attempt.call.name if attempt.call else "?" for attempt in subject.calls_in(said)]
    if names == ["get_weather", "get_time"]:
        return Finding(True)
    return Finding(False, f"instead of two calls: {names} in {excerpt(said)}")


def content_beside_call(subject: Subject) -> Finding:
    """Text that stands beside a call is there, before it."""
    words = "I will look that up."
    said = subject.said([user(), calling(("get_time", {}), content=words)], TOOLS)
    lost = lost_from(said, [words, subject.fmt.open])
    return Finding(not lost, f"lost or out of order: {lost[0]} in {excerpt(said)}" if lost else "")


def reasoning_kept(subject: Subject) -> Finding:
    """`reasoning_content` is there, in an answer and beside a call."""
    thinking = {"reasoning_content": THOUGHT}
    turns = [assistant(**thinking), calling(("get_time", {}), **thinking)]
    for turn in turns:
        said = subject.said([user(), turn], TOOLS)
        if THOUGHT not in said:
            if not subject.reasons:
                return Finding(True, "for information: dropped, and the model has no <think> token")
            return Finding(False, f"no reasoning in the turn, which reads {excerpt(said)}")
    if THOUGHT not in subject.render([user(), turns[0], user("And Porto?"), assistant("Also.")]):
        return Finding(True, "for information: dropped from earlier turns; train turn by turn")
    return Finding(True)


# ── results ───────────────────────────────────────────────────────────────────────────────────


def results_rendered(subject: Subject) -> Finding:
    """What a tool answered is in the prompt of the next turn."""
    prompt = subject.render([user(), ONE_CALL, result()], TOOLS, add_generation_prompt=True)
    position = prompt.find(RESULT)
    if position < 0:
        return Finding(False, f"the result is not in the prompt, which ends {_end(prompt)}")
    return Finding(True, excerpt(prompt, position), subject.token_at(prompt, position))


def results_unlike_user(subject: Subject) -> Finding:
    """A tool's answer does not look as if the user had typed it."""
    as_result = subject.render([user(), ONE_CALL, result()], TOOLS)
    as_user = subject.render([user(), ONE_CALL, user(RESULT)], TOOLS)
    if as_result != as_user:
        return Finding(True)
    position = as_result.rfind(RESULT)
    detail = f"the same text as a user turn: {_end(as_result)}"
    return Finding(False, detail, subject.token_at(as_result, position))


def several_results(subject: Subject) -> Finding:
    """The answers to several calls are all there, in order and apart."""
    results = [result(), result(LATER_RESULT, 1, "get_time")]
    prompt = subject.render([user(), TWO_CALLS, *results], TOOLS, add_generation_prompt=True)
    if lost := lost_from(prompt, [RESULT, LATER_RESULT]):
        return Finding(False, f"lost or out of order: {lost[0]}; the prompt ends {_end(prompt)}")
    between = prompt[prompt.find(RESULT) + len(RESULT) : prompt.find(LATER_RESULT)]
    if between.strip():
        return Finding(True)
    return Finding(False, f"nothing between the two results: {_end(prompt)}")


def _end(text: str) -> str:
    return excerpt(text, len(text))


# ── system turns ──────────────────────────────────────────────────────────────────────────────


def system_closed_with_tools(subject: Subject) -> Finding:
    """With tools, the system turn ends before the user's begins."""
    return _system_closed(subject, TOOLS)


def system_closed_without_tools(subject: Subject) -> Finding:
    """Without tools, the system turn ends before the user's begins."""
    return _system_closed(subject, None)


def _system_closed(subject: Subject, tools: Any) -> Finding:
    """Compares what stands before the first user turn with how this template closes a turn."""
    question = user("Which way is north?")
    words = question["content"]
    after = subject.render([question]).partition(words)[2]
    closing = next(iter(subject.added_tokens_in(after)), None)
    if closing is None:
        return Finding(True, "for information: this template closes no turn but the assistant's")
    history = [user(), assistant(), question]
    header = subject.render(history).partition(words)[0].rpartition(closing)[2].strip()
    for messages in ([system(), question], [question]):
        text = subject.render(messages, tools).partition(words)[0]
        before = text.rstrip()
        if not before.endswith(header):
            return Finding(True, "for information: system text is part of the first user turn")
        before = before.removesuffix(header).rstrip()
        bos = str(subject.special_tokens.get("bos_token", ""))
        if before.removeprefix(bos).strip() and not before.endswith(closing):
            evidence = excerpt(text, len(before))
            return Finding(
                False, f"no {closing} in {evidence}", subject.token_at(text, len(before))
            )
    return Finding(True)


def second_system_message(subject: Subject) -> Finding:
    """A system message further on is there, in its place."""
    later = system("From here on, answer in verse.")
    text = subject.render([system(), user(), assistant(), later, user("And Porto?")])
    lost = lost_from(text, [assistant()["content"], later["content"], "And Porto?"])
    return Finding(not lost, f"lost or out of place: {lost[0]}" if lost else "")


# ── text ──────────────────────────────────────────────────────────────────────────────────────


def list_content(subject: Subject) -> Finding:
    """Content given as a list of text parts reads as its text."""
    parts = [{"type": "text", "text": "North "}, {"type": "text", "text": "or south?"}]
    for messages in ([user(parts)], [user(), assistant(parts)], [system(parts), user()]):
        text = subject.render(messages)
        role = next(m["role"] for m in messages if m["content"] is parts)
        if lost := lost_from(text, ["North ", "or south?"]):
            return Finding(False, f"lost from the {role} message: {lost[0]!r}")
        between = text[text.find("North ") : text.find("or south?")]
        if "text" in between:
            return Finding(False, f"the {role} message shows its parts: {excerpt(between)}")
    return Finding(True)


def text_survives(subject: Subject) -> Finding:
    """Quotes, braces, newlines and letters of all alphabets come through unchanged."""
    chat = [user(NASTY), assistant(NASTY), user(NASTY), ONE_CALL, result(NASTY)]
    text = subject.render([system(NASTY), *chat], TOOLS)
    seen = text.count(NASTY)
    if seen < 5:
        position = max(text.find("naïve"), 0)
        return Finding(False, f"whole in {seen} of 5 places; {excerpt(text, position)}")
    arguments = {"city": NASTY}
    called = [user(), calling(("get_weather", arguments))]
    if not subject.calls_in(subject.said(called, TOOLS)):
        return Finding(True, "for information: seen in text only, for calls are not rendered")
    return _first_call_equals(subject, ("get_weather", arguments), arguments)


# ── time and order ────────────────────────────────────────────────────────────────────────────


def date_stable(subject: Subject) -> Finding:
    """The text does not depend on the day, or a `date_string` says which day it is."""
    days = ("2025-01-02", "2031-12-30")
    first, second = (subject.render([user()], TOOLS, date=day) for day in days)
    if first == second:
        return Finding(True)
    position = shared_length(first, second)
    set_by_hand = {subject.render([user()], TOOLS, date=d, date_string="1 May 2026") for d in days}
    if len(set_by_hand) == 1:
        return Finding(True, "for information: says the day; pass date_string to say which")
    detail = f"the clock decides, and no date_string does: {excerpt(first, position)}"
    return Finding(False, detail, subject.token_at(first, position))


def history_stable(subject: Subject) -> Finding:
    """Turns stay as they were when later ones are added."""
    chat = [system(), user(), calling(("get_weather", ARGUMENTS), content="One moment."), result()]
    chat += [assistant(), user("What time is it there?"), calling(("get_time", {}))]
    chat += [result(LATER_RESULT, 0, "get_time"), assistant("Five past two."), user("Thanks!")]
    whole = subject.render(chat, TOOLS)
    for length in range(2, len(chat)):
        earlier = subject.render(chat[:length], TOOLS)
        if not whole.startswith(earlier):
            position = shared_length(earlier, whole)
            detail = (
                f"after {length} of {len(chat)} messages it read {excerpt(earlier, position)}, "
                f"at the end {excerpt(whole, position)}"
            )
            return Finding(False, detail, subject.token_at(whole, position))
    return Finding(True)


# ── what is trained ───────────────────────────────────────────────────────────────────────────


def generation_prompt_matches(subject: Subject) -> Finding:
    """The generation prompt is how the trained turn begins, with and without thinking."""
    for mode in subject.modes:
        prompt = subject.render([user()], TOOLS, add_generation_prompt=True, **mode)
        if prompt == subject.render([user()], TOOLS, **mode):
            return Finding(False, "there is no generation prompt")
        for turn in (assistant(), ONE_CALL):
            whole = subject.render([user(), turn], TOOLS, **mode)
            if not whole.startswith(prompt):
                position = shared_length(prompt, whole)
                detail = f"the prompt ends {_end(prompt)}, the turn begins "
                detail += excerpt(whole[position:])
                return Finding(False, detail, subject.token_at(whole, position))
    return Finding(True)


def stop_token_trained(subject: Subject) -> Finding:
    """The turn ends with the token that stops generation, inside the markers if there are any."""
    stop = subject.tokenizer.eos_token
    if not stop:
        return Finding(False, "the tokenizer has no eos_token")
    for turn in (assistant(), ONE_CALL):
        text, start, end = _turn(subject, [user(), turn], stop)
        if end < 0:
            return Finding(False, f"no {stop} at the end of the turn: {excerpt(text[start:])}")
        spans = _spans(subject, [user(), turn])
        if spans and not any(left < end <= right for left, right in spans):
            detail = f"{stop} is outside of {{% generation %}}: {_end(text[:end])}"
            return Finding(False, detail, subject.token_at(text, end) - 1)
    return Finding(True)


def generation_markers_exact(subject: Subject) -> Finding:
    """`{% generation %}` covers what the model must produce: no header, no newline after."""
    if not subject.template.has_generation_markers:
        return Finding(True, "for information: no {% generation %}; turns are found by the prompt")
    stop = subject.tokenizer.eos_token or ""
    for mode in subject.modes:
        for turn in (assistant(), ONE_CALL):
            messages = [user(), assistant("Gladly."), user(), turn]
            text, start, end = _turn(subject, messages, stop, **mode)
            spans = _spans(subject, messages, **mode)
            if len(spans) != 2:
                return Finding(False, f"{len(spans)} marked places for 2 assistant turns")
            left, right = spans[-1]
            if (left, right) != (start, end):
                wrong = _misplaced(text, (start, end), (left, right))
                return Finding(False, wrong, subject.token_at(text, left))
    return Finding(True)


def _misplaced(text: str, wanted: tuple[int, int], marked: tuple[int, int]) -> str:
    """In words, by what the marked place differs from the wanted one."""
    found = []
    for name, right_place, place in zip(("begins", "ends"), wanted, marked, strict=True):
        if place != right_place:
            piece = excerpt(text[min(place, right_place) : max(place, right_place)])
            early = "early" if place < right_place else "late"
            found.append(f"{name} too {early}, by {piece}")
    return "{% generation %} " + " and ".join(found)


def _turn(subject: Subject, messages: Chat, stop: str, **mode: Any) -> tuple[str, int, int]:
    """(text, start, end): the last turn from the end of its prompt to its stop token, or -1."""
    text = subject.render(messages, TOOLS, **mode)
    prompt = subject.render(messages[:-1], TOOLS, add_generation_prompt=True, **mode)
    start = subject.turn_start(prompt, text)
    found = text.find(stop, start)
    return text, start, found + len(stop) if found >= 0 else -1


def _spans(subject: Subject, messages: Chat, **mode: Any) -> tuple[tuple[int, int], ...]:
    options = {**subject.special_tokens, **mode}
    return subject.template.render_marked(messages, TOOLS, **options).spans


def delimiter_injection(subject: Subject) -> Finding:
    """For information: whether a typed delimiter becomes the real token; no template can help."""
    opening = subject.fmt.open
    if not opening:
        return Finding(True, f"{subject.fmt.name} has no delimiter that could be typed")
    prompt = subject.render([user(f"What does {opening} mean?")], add_generation_prompt=True)
    token, *more = subject.tokenizer.encode(opening, add_special_tokens=False)
    ids = subject.tokenizer.encode(prompt, add_special_tokens=False)
    if more or token not in ids:
        return Finding(True, f"{opening} typed by a user stays ordinary text")
    detail = f"for information: {opening} typed by a user or returned by a tool becomes token"
    return Finding(True, f"{detail} {token}, as it does on servers", ids.index(token))


CHECKS = (
    tools_reach_prompt,
    tools_as_json,
    calls_rendered,
    arguments_as_object,
    arguments_as_string,
    several_calls,
    call_without_arguments,
    content_beside_call,
    reasoning_kept,
    results_rendered,
    results_unlike_user,
    several_results,
    system_closed_with_tools,
    system_closed_without_tools,
    second_system_message,
    list_content,
    text_survives,
    date_stable,
    history_stable,
    generation_prompt_matches,
    stop_token_trained,
    generation_markers_exact,
    delimiter_injection,
)
"""Every check, in reading order; a check's name is its function's."""
