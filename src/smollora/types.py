"""The values that flow between stages: frozen, comparable, standard library only.

One representation per thing: content is `str`, arguments are a decoded mapping (never a JSON
string), token ids are tuples of `int`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
CallStatus = Literal["ok", "bad_syntax", "unclosed", "no_name", "spelled_out"]
Part = Literal["open", "name", "arguments", "close", "text"]
PARTS: tuple[Part, ...] = ("open", "name", "arguments", "close", "text")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that is offered to the model."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments object."""

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates and OpenAI-compatible servers take."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the assistant makes."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    """For role "tool": which call this answers."""
    name: str | None = None
    """For role "tool": the tool that answered."""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of a data set after conversion."""

    id: str
    source: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()

    @property
    def has_calls(self) -> bool:
        return any(message.calls for message in self.messages)

    @property
    def kind(self) -> Literal["call", "no_call", "no_tools"]:
        """What the row teaches: to call, not to call although tools are offered, or plain chat."""
        if self.has_calls:
            return "call"
        return "no_call" if self.tools else "no_tools"


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not used, and why."""

    source: str
    row: int
    """Counted from 1 within its source."""
    reason: str
    """A slug that is counted: "unknown_tool"."""
    detail: str


@dataclass(frozen=True, slots=True)
class Change:
    """What was changed in, or noticed about, a row that is used."""

    source: str
    row: int
    """Counted from 1 within its source."""
    reason: str
    """A slug that is counted: "arguments_decoded"."""
    detail: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model sees it: three columns of equal length."""

    conversation_id: str
    token_ids: tuple[int, ...]
    owner: tuple[int, ...]
    """Index of the message each token belongs to; -1 = the template's own tokens."""
    trained: tuple[bool, ...]
    """True where the model must produce the token: from the end of the generation prompt to the
    stop token.
    """


@dataclass(frozen=True, slots=True)
class Check:
    """One named claim about a template, row or model, with evidence."""

    name: str
    ok: bool
    detail: str = ""
    at: int | None = None
    """Token position of the evidence, where there is one."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One ATTEMPT of the model to call a tool, good or bad."""

    raw: str
    status: CallStatus
    call: ToolCall | None = None
    span: tuple[int, int] | None = None
    """Token positions [start, end) in what was parsed; None for spelled-out attempts found in
    text.
    """


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model produced for one prompt."""

    token_ids: tuple[int, ...]
    finish: Literal["stop", "length", "error"]
    opener_logprob: float | None = None
    """Natural-log probability of the opening delimiter at the first position; None where it cannot
    be had.
    """


@dataclass(frozen=True, slots=True)
class EvalCase:
    """One question to a model, with its right answer."""

    id: str
    category: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    expected: tuple[ToolCall, ...] = ()
    """Empty: the right answer is to call nothing."""
    language: str = ""
    """Code of the language that the user speaks ("en"); empty where nobody said."""


@dataclass(frozen=True, slots=True)
class CaseScore:
    """How one answer did."""

    case_id: str
    verdict: str
    detail: str = ""
    flags: Mapping[str, bool] = field(default_factory=dict)
    """The single claims that rates are made of: emitted, valid_json, schema_valid, right_tool,
    ...
    """
