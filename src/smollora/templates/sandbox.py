"""Compiles chat templates to programs that run in a sandbox, against the clock and a size limit.

In: a template's source. Out: a `Program`, or a `TemplateError` that says what is wrong on which
line. Templates are untrusted programs: every loop turn and every call looks at the clock, and text
that grows past the limit is refused where it is built, before it is made. No signal, thread or
process is involved, so the limits hold in any thread and disturb nobody's timers. The environment
follows `transformers.utils.chat_template_utils` (read at 5.23).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic, thread_time
from types import BuiltinMethodType
from typing import Any, cast

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from smollora.errors import TemplateError
from smollora.templates import growth
from smollora.templates.growth import MAX_CHARACTERS, PastLimit, check_length

MOST_KEPT = 50_000
"""Texts in a memo of JSON."""

MemoKey = tuple[Hashable, bool, int | str | None, tuple[str, ...] | None, bool]


class RunState(threading.local):
    """The rendering that this thread is busy with."""

    deadline: float = float("inf")
    """When to look how long it took, on the wall clock, which is cheap to read."""
    started: float = 0.0
    """On this thread's own clock, which stands still while a busy machine does other work."""
    seconds: float = 0.0
    """How long it may take on that clock."""
    length: int = 0
    """Characters written so far."""
    spans: list[tuple[int, str]] | None = None
    """Where `{% generation %}` blocks go; None where nobody asks."""
    kept: set[int] | frozenset[int] = frozenset()
    """`id`s of objects that live as long as `json`, so that their JSON may be kept there."""
    json: dict[MemoKey, str] | None = None
    """JSON of the kept objects."""
    offered: list[Any] | None = None
    """The tools of this conversation, all in one list."""
    offered_json: dict[MemoKey, str] | None = None
    """JSON of that list."""


run = RunState()


def check_time() -> None:
    """Raises PastLimit where the rendering has had its time; a row must not be refused because
    the machine was busy.
    """
    if monotonic() > run.deadline:
        left = run.seconds - (thread_time() - run.started)
        if left <= 0:
            raise PastLimit(f"rendering took longer than {run.seconds:g} seconds")
        run.deadline = monotonic() + left


def _bounded_concat(pieces: Iterable[str]) -> str:
    """How captured blocks and macros are joined: measured first, so that nothing huge is made."""
    parts = list(pieces)
    length = sum(map(len, parts))
    if length > MAX_CHARACTERS:
        check_length(length)
    return "".join(parts)


@jinja2.pass_context
def _tick(context: Context, value: object) -> str:
    """Runs at the start of every loop turn; asks for the context so as not to be folded away."""
    check_time()
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


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: around what the model produces."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        said = caller()
        if run.spans is not None:
            run.spans.append((run.length, said))
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


_OF_DICT = frozenset(dir(dict))
_VERDICTS = 4096


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, which also watches the clock and the size of what is built."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_bounded_concat)
    verdicts: dict[tuple[type, str], bool] = {}  # noqa: RUF012 (one environment)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # `message.role`: Jinja asks the dict's class first, whose refusal takes longer than the key
        if type(obj) is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Jinja's verdict, a dozen isinstance checks, follows from the object's type and the name
        key = (type(obj), attr)
        verdict = self.verdicts.get(key)
        if verdict is None:
            verdict = super().is_safe_attribute(obj, attr, value)
            if len(self.verdicts) < _VERDICTS:
                self.verdicts[key] = verdict
        return verdict

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        check_time()
        kind = type(obj)
        if kind is Macro:  # safe, and it takes the evaluation context: no need to ask
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj(context.eval_ctx, *args, **kwargs)
        growth.check_call(obj, args, kwargs)
        if kind is BuiltinMethodType and type(obj.__self__) is str:  # safe, and takes nothing
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_length(growth.size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML characters.

    The prompt of each turn repeats the tools, and most of a rendering is their JSON: it is kept.
    """
    pair = tuple(separators) if separators else None  # a template may write a list
    growth.check_indent(indent)
    how: _How = (ensure_ascii, indent, pair, sort_keys)
    if run.json is not None and run.offered_json is not None:
        if id(value) in run.kept:
            return _kept_json(value, how, run.json)
        if value is run.offered:
            return _kept_json(value, how, run.offered_json)
        if type(value) is dict and indent is None and not sort_keys:
            said = _made_of_kept(value, how, run.json)
            if said is not None:
                return said
    return _encoder(*how).encode(value)


_How = tuple[bool, int | str | None, tuple[str, ...] | None, bool]


def _kept_json(value: Any, how: _How, memo: dict[MemoKey, str]) -> str:
    key = (id(value), *how)
    said = memo.get(key)
    if said is None:
        said = memo[key] = _encoder(*how).encode(value)
    return said


def _made_of_kept(value: dict[Any, Any], how: _How, memo: dict[MemoKey, str]) -> str | None:
    """JSON of what a template makes of a tool ({"name": tool.name, ...}); None if it is not that.

    Parts of one tool are what is kept together, so that the memo is as long as there are tools.
    """
    parts = tuple(map(id, value.values()))
    key = ((*value, *parts), *how)
    said = memo.get(key)
    if said is None and run.kept.issuperset(parts) and all(type(name) is str for name in value):
        said = _encoder(*how).encode(value)
        if len(memo) < MOST_KEPT:
            memo[key] = said
    return said


@lru_cache(maxsize=64)
def _encoder(
    ensure_ascii: bool,
    indent: int | str | None,
    separators: Any,
    sort_keys: bool,
) -> json.JSONEncoder:
    return json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> str:
    raise jinja2.exceptions.TemplateError(message)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters |= growth.bounded_filters(environment.filters)
    environment.filters |= {"tojson": _tojson, "_tick": _tick, "_tilde": _tilde}
    del environment.globals["lipsum"]  # random text, as much as is asked for
    environment.globals |= {
        "raise_exception": _raise_exception,
        "dict": _DictMaker(),
        "namespace": _Namespace,
    }
    return environment


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled template."""

    template: jinja2.Template
    has_generation_markers: bool


@lru_cache(maxsize=64)
def compile_template(source: str) -> Program:
    """The program of a template's source, compiled once.

    Raises:
        TemplateError: not valid Jinja, with the line.
    """
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
        return Program(environment.from_string(watched), marked)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"line {error.lineno} of the chat template is not valid Jinja: {error.message}"
        ) from error
    except (jinja2.TemplateError, RecursionError, PastLimit) as error:
        raise TemplateError(f"the chat template cannot be compiled: {error}") from error


def explain(error: Exception, template: jinja2.Template) -> TemplateError:
    """What went wrong, in the template's own words, and on which of its lines."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    where = f"the chat template (line {line})" if line else "the chat template"
    if isinstance(error, PastLimit):
        return TemplateError(f"{where} was stopped: {error}", "use a template that ends")
    if isinstance(error, jinja2.exceptions.SecurityError):
        return TemplateError(f"{where} does what the sandbox forbids: {error}")
    if type(error) is jinja2.exceptions.TemplateError:
        return TemplateError(f"{where} refuses the conversation: {error}")
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return TemplateError(f"{where} failed: {kind}{error}")
