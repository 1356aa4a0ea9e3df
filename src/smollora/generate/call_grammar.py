"""Calls that cannot be malformed: what may follow an opening delimiter is the JSON of a tool on
offer, then the closing delimiter.

In: the logits of each next token, and what each row has produced. Out: the same logits, minus
infinity where the grammar forbids a token. The decision stays the model's: outside a call nothing
is forbidden, unless `required`, where the answer must begin with a call. The masks come from
llguidance (MIT, no dependencies; the extra `grammar`). The surprise: a delimiter is ordinary text
to a JSON string, so the format's own tokens are forbidden inside a call one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from smollora.errors import ConfigError, ModelError
from smollora.formats import ToolFormat
from smollora.formats.schema import call_schema, can_be_constrained
from smollora.generate.slot_run import Row
from smollora.tokens import TokenFacts
from smollora.types import ToolSpec

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As json.dumps writes, which is what templates show models."""
LENIENT = {"lenient": True, "coerce_one_of": True}
"""A keyword that no grammar can hold to (`format`, `not`) is passed over; the probe's strict check
of the schema counts what comes of it.
"""


class Constraint(Protocol):
    """Anything that forbids tokens."""

    def restrict(self, logits: Any, rows: Sequence[Row]) -> Any:
        """Logits [rows, vocabulary] float32 with minus infinity where a row may not go."""
        ...


def body_grammar(fmt: ToolFormat, tools: Sequence[ToolSpec]) -> str:
    """The grammar between the delimiters, in llguidance's dialect of Lark."""
    schema = {**call_schema(fmt, tools), "x-guidance": {**SPACING, **LENIENT}}
    return f"start: SPACE body SPACE\nSPACE: /[ \\n]{{0,2}}/\nbody: %json {json.dumps(schema)}\n"


def require_llguidance() -> None:
    """Raises ConfigError where the extra is not installed."""
    if find_spec("llguidance") is None:
        raise ConfigError(
            "calls under a grammar need llguidance, which is not installed",
            "pip install 'smollora[grammar]', or name the other cures: --cure repaired ...",
        )


class _Row:
    """Where one answer stands."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.read = 0
        self.inside: Any = None
        """The matcher of the call that is being written; None outside."""


class CallGrammar:
    """A `Constraint` for prompts whose tools are known, in the order of the prompts."""

    def __init__(
        self,
        tokenizer: Any,
        facts: TokenFacts,
        fmt: ToolFormat,
        tools: Sequence[Sequence[ToolSpec]],
        *,
        required: bool = False,
    ) -> None:
        """Args: fast tokenizer; its facts; the format; the tools of each prompt (a prompt without
        tools is left alone); whether an answer must begin with a call.

        Raises:
            ConfigError: llguidance is not installed, or the format's calls are more than JSON.
        """
        require_llguidance()
        if not can_be_constrained(fmt) or facts.open.id is None:
            raise ConfigError(
                f"no grammar of calls in the form {fmt.name} is known",
                "ask for the other cures: --cure stock --cure repaired --cure examples",
            )
        self.fmt = fmt
        self.tools = tools
        self.required = required
        self.open_id = facts.open.id
        self.after = (facts.close.id,) if facts.close.id is not None else facts.stop_ids
        """What may follow a whole body: the closing delimiter, or the end of the turn."""
        self.own = (*facts.ids, *facts.stop_ids)
        self._backend = tokenizer.backend_tokenizer
        self._stop = facts.stop_ids[0]
        self._rows: dict[int, _Row] = {}
        self._matchers: dict[int, Any] = {}
        self._vocabulary: Any = None

    def restrict(self, logits: Any, rows: Sequence[Row]) -> Any:
        """See `Constraint`."""
        import torch

        width = logits.shape[1]
        for place, row in enumerate(rows):
            if row.ended:
                continue
            allowed = self._allowed(self._follow(row, width), width)
            if allowed is not None:
                shut = torch.ones(width, dtype=torch.bool)
                shut[allowed] = False
                logits[place, shut.to(logits.device)] = float("-inf")
        return logits

    def _follow(self, row: Row, width: int) -> _Row:
        """The state of a row after all that it has produced."""
        state = self._rows.get(row.index)
        if state is None or state.row is not row:
            state = self._rows[row.index] = _Row(row)
        for token in row.produced[state.read :]:
            state.read += 1
            if state.inside is None:
                if token == self.open_id and self.tools[row.index]:
                    state.inside = self._matcher(row.index, width)
            elif token in self.after:
                state.inside = None
            elif not state.inside.consume_token(token):
                raise ModelError(
                    f"the grammar of a call broke: {state.inside.get_error()[:200]}",
                    "please report this with the tools of the case",
                )
        return state

    def _allowed(self, state: _Row, width: int) -> Any:
        """Ids that may come next; None: any."""
        import torch

        if state.inside is None:
            first = self.required and not state.row.produced and self.tools[state.row.index]
            return torch.tensor([self.open_id]) if first else None
        bits = torch.frombuffer(bytearray(state.inside.compute_bitmask()), dtype=torch.uint8)
        mask = ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:width].bool()
        mask[list(self.own)] = False
        if state.inside.is_accepting():
            mask[list(self.after)] = True
        return mask.nonzero()[:, 0]

    def _matcher(self, index: int, width: int) -> Any:
        from llguidance import LLMatcher, LLTokenizer

        if self._vocabulary is None:
            backend = type(self._backend).from_str(self._backend.to_str())
            backend.no_padding()
            backend.no_truncation()
            self._vocabulary = LLTokenizer(backend.to_str(), n_vocab=width, eos_token=self._stop)
        if index not in self._matchers:
            grammar = LLMatcher.grammar_from_lark(body_grammar(self.fmt, self.tools[index]))
            found = LLMatcher(self._vocabulary, grammar, log_level=0)
            if found.is_error():
                names = ", ".join(tool.name for tool in self.tools[index])
                raise ModelError(
                    f"no grammar can be made of the tools {names}: {found.get_error()[:200]}",
                    "mend their schemas, or ask for the other cures",
                )
            self._matchers[index] = found
        return self._matchers[index].deep_copy()
