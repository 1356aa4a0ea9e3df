"""Renders chat templates as transformers does, with limits and without importing it.

In: a template's source text, messages, tools. Out: text, and where asked for the spans of
`{% generation %}`. The environment follows `transformers.utils.chat_template_utils` (read at
5.23): the same sandbox, whitespace rules, `tojson`, `raise_exception`, `strftime_now` and treatment
of the input, so that what is trained is what a server renders.

Two surprises. The clock is frozen (`DEFAULT_DATE`) unless a date is given: a row that renders
differently tomorrow cannot be hashed. And templates are untrusted programs: every loop turn and
every call looks at the clock, and text that grows past the limit is refused where it is built. No
signal, thread or process is involved, so the limits hold in any thread and disturb nobody's timers;
one long operation inside a single filter is the only thing that can overrun them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from importlib import resources
from time import monotonic
from typing import Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from smollora.errors import TemplateError

DEFAULT_DATE = "2025-07-08"
"""What `strftime_now` says when no date is given: SmolLM3's release day."""
MAX_SECONDS = 10.0
MAX_CHARACTERS = 10_000_000

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class _PastLimit(Exception):
    """The template ran too long or built too much."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendering with the places that the template itself marks as the model's."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Character ranges [start, end) of the `{% generation %}` blocks, in order; may be empty."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that renders as `apply_chat_template(tokenize=False)` does.

    Args:
        source: the Jinja text, compiled once: equal sources share the compiled program.

    Raises:
        TemplateError: the source is not valid Jinja.
    """

    source: str

    def __post_init__(self) -> None:
        _compile(self.source)

    @cached_property
    def sha256(self) -> str:
        """Hash of the source, for manifests."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def has_generation_markers(self) -> bool:
        """True if the template says with `{% generation %}` what the model produces."""
        return _compile(self.source).has_generation_markers

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        date: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: OpenAI form; keys whose value is None are dropped, as transformers does.
            tools: OpenAI form (or bare name/description/parameters), or None.
            add_generation_prompt: end with the header that asks the model to speak.
            date: ISO date (or date and time) that `strftime_now` reads; `DEFAULT_DATE` if None.
            **variables: what else the template may read: `bos_token`, `enable_thinking`, ...

        Raises:
            TemplateError: the template refuses the conversation, fails, or runs past 10 seconds or
                10 million characters.
        """
        return self._render(messages, tools, add_generation_prompt, date, variables, None)

    def render_marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        date: str | None = None,
        **variables: Any,
    ) -> Marked:
        """As `render`, with the spans of the `{% generation %}` blocks.

        Raises:
            TemplateError: as `render`, and for a block inside a macro or a captured `set`, whose
                place in the text is unknown.
        """
        spans: list[tuple[int, str]] = []
        text = self._render(messages, tools, add_generation_prompt, date, variables, spans)
        for start, said in spans:
            if not text.startswith(said, start):
                raise TemplateError(
                    "the chat template has a {% generation %} block whose text is changed or moved "
                    "after it is written",
                    "keep {% generation %} out of macros and of {% set %} ... {% endset %}",
                )
        return Marked(text, tuple((start, start + len(said)) for start, said in spans))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        date: str | None,
        variables: Mapping[str, Any],
        spans: list[tuple[int, str]] | None,
    ) -> str:
        if not messages:
            raise TemplateError("a conversation without messages cannot be rendered")
        program = _compile(self.source)
        context = program.template.new_context(
            {
                "messages": [_message_for_template(message) for message in messages],
                "tools": None if tools is None else [_plain(tool) for tool in tools],
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                "strftime_now": _clock(date or DEFAULT_DATE),
                **{name: _plain(value) for name, value in variables.items()},
            }
        )
        _run.deadline = monotonic() + MAX_SECONDS
        _run.length = 0
        _run.spans = spans
        pieces: list[str] = []
        try:
            for piece in program.template.root_render_func(context):
                pieces.append(piece)
                _run.length += len(piece)
                _check_length(_run.length)
                _check_time()
        except Exception as error:
            raise _explain(error, program.template) from error
        finally:
            _run.spans = None
        return "".join(pieces)


def load_shipped(name: str) -> str:
    """The source of a template that comes with smollora: "chatml_tools", "smollm3".

    Raises:
        TemplateError: there is none of that name.
    """
    folder = resources.files(__package__) / "shipped"
    path = folder / f"{name}.jinja"
    if not path.is_file():
        names = sorted(entry.name.removesuffix(".jinja") for entry in folder.iterdir())
        raise TemplateError(f'no shipped chat template "{name}"', f"use one of: {', '.join(names)}")
    return path.read_text(encoding="utf-8")


# ── what the template is given ────────────────────────────────────────────────────────────────


def _message_for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it over.

    Plain values, no None, and the reasoning under its standard name as well.
    """
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    for key in _REASONING_KEYS:
        if key in plain:
            return {"thinking": plain[key], **plain, "reasoning_content": plain[key]}
    return plain


def _plain(value: Any) -> Any:
    """A copy of JSON types only: objects with methods would let a template leave the sandbox."""
    kind = type(value)
    if value is None or kind in (str, int, float, bool):
        return value
    if kind is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if kind is list:
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{kind.__name__}>"


@lru_cache(maxsize=32)
def _clock(date: str) -> Callable[[str], str]:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise TemplateError(f'"{date}" is not a date', "write it as 2026-11-22") from error
    return lambda format: moment.strftime(format)


# ── limits ────────────────────────────────────────────────────────────────────────────────────


class _Run(threading.local):
    """The rendering that this thread is busy with."""

    deadline: float = float("inf")
    length: int = 0
    spans: list[tuple[int, str]] | None = None


_run = _Run()


def _check_time() -> None:
    if monotonic() > _run.deadline:
        raise _PastLimit(f"rendering took longer than {MAX_SECONDS:g} seconds")


def _check_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise _PastLimit(f"the template built more than {MAX_CHARACTERS:,} characters")


def _bounded_concat(pieces: Iterable[str]) -> str:
    """How captured blocks and macros are joined: measured first, so that nothing huge is made."""
    parts = list(pieces)
    _check_length(sum(map(len, parts)))
    return "".join(parts)


@jinja2.pass_context
def _tick(context: Context, value: object) -> str:
    """Runs at the start of every loop turn; asks for the context so as not to be folded away."""
    _check_time()
    return ""


def _tilde(values: Sequence[object]) -> str:
    """The `~` operator."""
    return _bounded_concat(map(str, values))


class _Watched(NodeTransformer):
    """Puts a look at the clock into every loop body, and bounds the `~` operator."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        look = nodes.Filter(nodes.Const(None), "_tick", [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(look).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        joined = nodes.Filter(nodes.List(node.nodes), "_tilde", [], [], None, None)
        return joined.set_lineno(node.lineno)


# ── the environment ───────────────────────────────────────────────────────────────────────────


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: around what the model produces."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        said = caller()
        if _run.spans is not None:
            _run.spans.append((_run.length, said))
        return said


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without underscore names, a way to Python's internals."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **attributes)
        for name in values:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace cannot hold {name!r}: names that start with an underscore are refused"
        )


class _DictMaker:
    """`dict(...)` and `dict.fromkeys(...)`, without the class behind them."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, which also watches the clock and the size of what is built."""

    intercepted_binops = frozenset({"+", "*", "**"})
    concat = staticmethod(_bounded_concat)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_time()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_length(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """About how many characters, items or digits the operation makes; 0 when it cannot grow."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {
            "+": 0,
            "*": left.bit_length() + right.bit_length(),
            "**": left.bit_length() * max(right, 0),
        }
        return bits[operator] // 3
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        return len(left) + len(right)
    if operator == "*":
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(times, int) and hasattr(sequence, "__len__"):
            return len(sequence) * max(times, 0)
    return 0


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> str:
    raise jinja2.exceptions.TemplateError(message)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters |= {"tojson": _tojson, "_tick": _tick, "_tilde": _tilde}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "dict": _DictMaker(),
        "namespace": _Namespace,
    }
    return environment


@dataclass(frozen=True, slots=True)
class _Program:
    template: jinja2.Template
    has_generation_markers: bool


@lru_cache(maxsize=64)
def _compile(source: str) -> _Program:
    environment = _environment()
    try:
        tree = environment.parse(source)
        marked = any(
            isinstance(block.call.node, nodes.ExtensionAttribute)
            for block in tree.find_all(nodes.CallBlock)
            if isinstance(block.call, nodes.Call)
        )
        watched = cast(nodes.Template, _Watched().visit(tree))
        watched.set_environment(environment)
        return _Program(environment.from_string(watched), marked)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"line {error.lineno} of the chat template is not valid Jinja: {error.message}"
        ) from error
    except (jinja2.TemplateError, RecursionError, _PastLimit) as error:
        raise TemplateError(f"the chat template cannot be compiled: {error}") from error


def _explain(error: Exception, template: jinja2.Template) -> TemplateError:
    """What went wrong, in the template's own words, and on which of its lines."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    where = f"the chat template (line {line})" if line else "the chat template"
    if isinstance(error, _PastLimit):
        return TemplateError(f"{where} was stopped: {error}", "use a template that ends")
    if isinstance(error, jinja2.exceptions.SecurityError):
        return TemplateError(f"{where} does what the sandbox forbids: {error}")
    if type(error) is jinja2.exceptions.TemplateError:
        return TemplateError(f"{where} refuses the conversation: {error}")
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return TemplateError(f"{where} failed: {kind}{error}")
