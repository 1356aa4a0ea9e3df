"""Our labels from a model's own template against those of trl's copy, which is marked by hand.

The expected side is transformers' own rendering and mask, trimmed by the rules that stand in
`expected_turn`. `python tests/test_trl_pairs.py` prints the table of docs/templates.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from smollora.formats.hermes import HERMES
from smollora.render import Renderer
from smollora.tokens import read_token_facts
from smollora.types import Conversation, Message, Reject, Rendered, ToolCall, ToolSpec
from trl_pairs import Pair, byte_tokenizer, pairs

pytestmark = pytest.mark.network

Turns = list[dict[str, Any]]

RAIN = {
    "type": "function",
    "function": {
        "name": "rain",
        "description": "Does it rain in a city?",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello?"}
ASKED = {"role": "user", "content": "Does it rain in Łódź?"}
THANKS = {"role": "user", "content": "Thanks. And in Porto?"}
ODD = {"role": "user", "content": "What does <tool_call>\n\"a\" 'b' {c}</tool_call> mean?"}
SHORT = {"role": "user", "content": "user"}
POURING = {"role": "tool", "content": "pouring", "name": "rain", "tool_call_id": "call00001"}
DRY = {"role": "tool", "content": '{"rain": false}', "name": "rain", "tool_call_id": "call00002"}


def said(content: str, *cities: str, thought: str = "") -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    if cities:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": f"call0000{number}",
                "function": {"name": "rain", "arguments": {"city": city}},
            }
            for number, city in enumerate(cities, 1)
        ]
    if thought:
        turn["reasoning_content"] = thought
    return turn


GREETED, YES, NO = said("Good day."), said("Yes, it pours."), said("No, it is dry there.")
CALL, BOTH = said("", "Łódź"), said("", "Łódź", "Porto")

CONVERSATIONS: dict[str, tuple[Turns, bool]] = {
    "one turn": ([HELLO, GREETED], False),
    "one turn, system": ([SYSTEM, HELLO, GREETED], False),
    "one turn, tools": ([HELLO, GREETED], True),
    "one turn, system, tools": ([SYSTEM, HELLO, GREETED], True),
    "three turns": ([HELLO, GREETED, ASKED, YES, THANKS, NO], False),
    "three turns, system": ([SYSTEM, HELLO, GREETED, ASKED, YES, THANKS, NO], False),
    "ends with the user": ([HELLO, GREETED, ASKED, YES, THANKS], False),
    "short words": ([SHORT, said("assistant"), SHORT, said("user")], False),
    "delimiters typed": ([ODD, GREETED], False),
    "thought": ([ASKED, said("Yes.", thought="Clouds.\n\nMany.")], False),
    "two thoughts": (
        [ASKED, said("Yes.", thought="Clouds."), THANKS, said("No.", thought="Sun.")],
        False,
    ),
    "a thought, then none": ([SYSTEM, ASKED, said("Yes.", thought="Clouds."), THANKS, NO], False),
    "a call": ([ASKED, CALL], True),
    "a call, system": ([SYSTEM, ASKED, CALL], True),
    "a call and content": ([ASKED, said("I look.", "Łódź")], True),
    "two calls": ([ASKED, BOTH], True),
    "a result": ([ASKED, CALL, POURING, YES], True),
    "two results": ([SYSTEM, ASKED, BOTH, POURING, DRY, said("Only in Łódź.")], True),
    "call after result": ([ASKED, CALL, POURING, said("", "Porto"), DRY, YES], True),
    "a result, content": ([ASKED, said("I look.", "Łódź"), POURING, YES], True),
    "a result, next turn": ([ASKED, CALL, POURING, YES, THANKS, said("", "Porto")], True),
    "thought, call, result": (
        [ASKED, said("", "Łódź", thought="I look."), POURING, said("Yes.", thought="Wet.")],
        True,
    ),
    "thought, content, call": (
        [SYSTEM, ASKED, said("I look.", "Łódź", thought="Hm."), POURING, YES, THANKS, NO],
        True,
    ),
}


# ── the expected side: transformers and trl's marks ───────────────────────────────────────────


@dataclass(frozen=True)
class Oracle:
    """transformers, one pair, one set of template variables."""

    pair: Pair
    tokenizer: PreTrainedTokenizerFast
    variables: dict[str, Any]

    def form(self, messages: Turns) -> Turns:
        if not self.pair.family.parts:
            return messages
        return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]

    def text(self, messages: Turns, tools: Any, *, marked: bool, prompt: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            self.form(messages),
            tools=tools,
            chat_template=self.pair.marked if marked else self.pair.stock,
            add_generation_prompt=prompt,
            tokenize=False,
            **self.variables,
        )
        assert isinstance(text, str)
        return text

    def mask(self, messages: Turns, tools: Any) -> tuple[list[int], list[int]]:
        out = self.tokenizer.apply_chat_template(
            self.form(messages),
            tools=tools,
            chat_template=self.pair.marked,
            return_assistant_tokens_mask=True,
            return_dict=True,
            **self.variables,
        )
        return out["input_ids"], out["assistant_masks"]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def expected_turn(oracle: Oracle, messages: Turns, tools: Any, index: int) -> list[int] | None:
    """What turn `index` trains: trl's mask of the conversation up to it, trimmed by our rules.

    1. From the end of the generation prompt: what trl marks before it is header.
    2. To the first stop token, inclusive: there the model stops, so it never writes what follows.
    3. A turn that trl marks without a stop token gets the one that stands right after it: without
       it the model would learn to go on.

    None: trl's own prompt is not how its own turn starts, or its marks have a hole.
    """
    prompt = oracle.text(messages[:index], tools, marked=True, prompt=True)
    text = oracle.text(messages[: index + 1], tools, marked=True)
    if not text.startswith(prompt):
        return None
    ids, mask = oracle.mask(messages[: index + 1], tools)
    stops = set(oracle.tokenizer.convert_tokens_to_ids(list(oracle.pair.family.stops)))
    begin = len(oracle.ids(prompt))
    end = next((at for at in range(begin, len(ids)) if ids[at] in stops), None)
    if end is None or not all(mask[begin:end]):
        return None
    return ids[begin : end + 1]


def reason_to_refuse(oracle: Oracle, messages: Turns, tools: Any) -> str | None:
    """Why the model's own template cannot teach this conversation, from transformers alone: it
    raises, or a prompt that a server sends is not how the turn starts, or lacks its header.
    """
    asked = oracle.text([HELLO], None, marked=False)
    header = oracle.text([HELLO], None, marked=False, prompt=True).removeprefix(asked)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt = oracle.text(messages[:index], tools, marked=False, prompt=True)
            text = oracle.text(messages[: index + 1], tools, marked=False)
            oracle.text(messages, tools, marked=False)
        except Exception:
            return "template_error"
        if not text.startswith(prompt) or (header and text.startswith(prompt + header)):
            return "prompt_mismatch"
    return None


# ── ours ──────────────────────────────────────────────────────────────────────────────────────


def as_conversation(name: str, messages: Turns, tools: bool) -> Conversation:
    return Conversation(
        name,
        "made-up",
        tuple(
            Message(
                message["role"],
                message["content"],
                tuple(
                    ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
                    for call in message.get("tool_calls", ())
                ),
                message.get("tool_call_id"),
                message.get("name"),
                message.get("reasoning_content", ""),
            )
            for message in messages
        ),
        (ToolSpec(**RAIN["function"]),) if tools else (),
    )


def turns_of(rows: Sequence[Rendered]) -> dict[int, tuple[list[int], list[int]]]:
    """(what stands before, what is trained) of each trained turn, by its message."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for row in rows:
        owners = dict.fromkeys(o for o, t in zip(row.owner, row.trained, strict=True) if t)
        for owner in owners:
            places = [
                at
                for at, (o, t) in enumerate(zip(row.owner, row.trained, strict=True))
                if t and o == owner
            ]
            assert places == list(range(places[0], places[-1] + 1)), "a hole in the label"
            assert owner not in found, "a turn that is trained twice"
            ids = list(row.token_ids)
            found[owner] = (ids[: places[0]], ids[places[0] : places[-1] + 1])
    return found


# ── the comparison ────────────────────────────────────────────────────────────────────────────

OUTCOMES = ("equal", "equal by turn", "prompt_mismatch", "template_error", "different")
"""equal: ids and labels are those of trl's single rendering. by turn: the model's own template
rewrites earlier turns, or trl's does not render them as it does; each turn is trained on the prompt
that a server sends, and what is trained is what trl trains. The next two are refusals."""


@dataclass(frozen=True)
class Outcome:
    conversation: str
    variables: str
    kind: str
    detail: str = ""
    drops_call: bool = False
    """The template leaves out a call: nothing that a label could mend; `verify` refuses it."""


def compare(oracle: Oracle, renderer: Renderer, name: str) -> tuple[str, str, bool]:
    """(kind, detail, whether a call is dropped) of one conversation."""
    messages, with_tools = CONVERSATIONS[name]
    tools = [RAIN] if with_tools else None
    result = renderer.row(as_conversation(name, messages, with_tools))
    why = reason_to_refuse(oracle, messages, tools)
    if isinstance(result, Reject) or why:
        if isinstance(result, Reject) and result.reason == why:
            return why, result.detail, False
        return "different", f"we say {result}, the template says {why}", False
    turns = turns_of(result)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if sorted(turns) != answers:
        return "different", f"turns {sorted(turns)} of {answers}", False
    dropped = False
    for index in answers:
        before, trained = turns[index]
        prompt = oracle.text(messages[:index], tools, marked=False, prompt=True)
        if before != oracle.ids(prompt):
            return "different", f"message {index} does not stand after its prompt", False
        if trained != expected_turn(oracle, messages, tools, index):
            return "different", f"message {index}: {oracle.tokenizer.decode(trained)!r}", False
        text = oracle.tokenizer.decode(trained)
        for call in messages[index].get("tool_calls", ()):
            dropped |= call["function"]["arguments"]["city"] not in text
    ids, mask = oracle.mask(messages, tools)
    trimmed = [0] * len(ids)
    for before, trained in turns.values():
        trimmed[len(before) : len(before) + len(trained)] = [1] * len(trained)
    same = len(result) == 1 and list(result[0].token_ids) == ids
    same = same and [int(label) for label in result[0].trained] == trimmed
    inside = all(theirs or not ours for ours, theirs in zip(trimmed, mask, strict=True))
    return ("equal" if same and inside else "equal by turn"), "", dropped


@lru_cache(maxsize=64)
def outcomes(pair: Pair) -> tuple[Outcome, ...]:
    """Every conversation under every setting that the template reads."""
    tokenizer = byte_tokenizer(pair.family)
    stops = tuple(tokenizer.convert_tokens_to_ids(list(pair.family.stops)))
    facts = read_token_facts(tokenizer, HERMES, pair.stock, stops)
    settings: list[dict[str, Any]] = [{}]
    if "enable_thinking" in pair.stock:
        settings += [{"enable_thinking": True}, {"enable_thinking": False}]
    found = []
    for variables in settings:
        oracle = Oracle(pair, tokenizer, variables)
        today = datetime.now().isoformat()
        renderer = Renderer(pair.stock, tokenizer, facts, date=today, variables=variables)
        label = "".join(f"{key}={value}" for key, value in variables.items())
        found += [Outcome(n, label, *compare(oracle, renderer, n)) for n in CONVERSATIONS]
    return tuple(found)


def table() -> str:
    """The table of docs/templates.md."""
    lines = [
        "| template | cases | " + " | ".join(OUTCOMES) + " | of the equal ones, a call left out |",
        "|---|" + "---|" * (len(OUTCOMES) + 2),
    ]
    total: Counter[str] = Counter()
    for pair in pairs():
        found = outcomes(pair)
        counts = Counter(outcome.kind for outcome in found)
        counts["cases"] = len(found)
        counts["dropped"] = sum(outcome.drops_call for outcome in found)
        total += counts
        columns = [counts[kind] for kind in ("cases", *OUTCOMES, "dropped")]
        lines.append(f"| {pair.name} | " + " | ".join(map(str, columns)) + " |")
    columns = [total[kind] for kind in ("cases", *OUTCOMES, "dropped")]
    lines.append("| **all** | " + " | ".join(f"**{count}**" for count in columns) + " |")
    return "\n".join(lines)


def taught() -> str:
    """How many pairs of template and conversation some setting teaches."""
    found = {
        (pair.name, outcome.conversation)
        for pair in pairs()
        for outcome in outcomes(pair)
        if outcome.kind in OUTCOMES[:2]
    }
    return f"{len(found)} of {len(pairs()) * len(CONVERSATIONS)}"


@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: pair.name)
def test_labels_are_those_that_trl_marks_by_hand(pair: Pair) -> None:
    wrong = [outcome for outcome in outcomes(pair) if outcome.kind == "different"]
    assert wrong == []


def test_the_table_in_the_documentation_is_what_comes_out() -> None:
    page = Path(__file__).parent.parent / "docs" / "templates.md"
    text = page.read_text(encoding="utf-8")
    assert table() in text
    assert f"taught under some setting: {taught()}" in text


if __name__ == "__main__":
    print(table())
    print(f"\ntaught under some setting: {taught()}")
    for pair in pairs():
        for outcome in outcomes(pair):
            if outcome.kind == "different":
                print(pair.name, outcome)
