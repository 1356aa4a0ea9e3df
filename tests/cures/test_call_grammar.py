"""Grammars of calls: whatever a model would say, a call is valid; and to call is its own choice."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import pytest
import torch

from smollora.errors import ConfigError, ModelError
from smollora.formats import FORMATS, get_format
from smollora.formats.schema import BODIES, call_schema
from smollora.generate import LocalGenerator, Sampling, local_generator
from smollora.generate.call_grammar import CallGrammar
from smollora.generate.slot_run import Row
from smollora.tokens import read_token_facts
from smollora.types import ToolSpec
from tiny_models import TAGS, tiny_model, tiny_tokenizer

LIGHT = ToolSpec(
    "set_light",
    "",
    {
        "type": "object",
        "properties": {
            "room": {"enum": ["hall", "attic"]},
            "level": {"type": "integer", "minimum": 0, "maximum": 9},
            "fades": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["room", "level"],
    },
)
STATE = ToolSpec(
    "set_state",
    "",
    {
        "$defs": {
            "state": {
                "type": "object",
                "properties": {"on": {"type": "boolean"}},
                "required": ["on"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {"state": {"$ref": "#/$defs/state"}},
        "required": ["state"],
    },
)
PROMPTS = [[5, 9, 17, 40, 3], [5, 9, 17, 41], [8, 200, 14, 3, 9, 77], [5, 9, 17, 40, 44]]


def parts(name: str = "hermes", tags: tuple[str, ...] = TAGS) -> tuple[Any, Any, Any]:
    """(tokenizer, facts, format)."""
    fmt = get_format(name)
    tokenizer = tiny_tokenizer(
        tags=(*tags, *(t for t in (fmt.open, fmt.close) if t and t not in tags))
    )
    return tokenizer, read_token_facts(tokenizer, fmt, ""), fmt


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["hermes", "mistral", "granite"])
def test_what_a_model_of_random_weights_draws_is_a_valid_call(
    name: str, seed: int, one_thread: None
) -> None:
    tokenizer, facts, fmt = parts(name)
    tools = [(LIGHT, STATE)] * len(PROMPTS)
    grammar = CallGrammar(tokenizer, facts, fmt, tools, required=True)
    generator = local_generator(
        tiny_model("llama"),
        facts,
        4096,
        sampling=Sampling(temperature=50.0, seed=seed),
        constraint=grammar,
    )
    finished = 0
    for answer in generator.generate(PROMPTS, max_new_tokens=700):
        assert answer.token_ids[0] == facts.open.id
        first = fmt.parse(answer.token_ids, tokenizer)[0]
        if first.status == "unclosed":
            continue  # a list that went on to the last token
        finished += 1
        assert first.status == "ok" and first.call is not None, first.raw
        tool = {"set_light": LIGHT, "set_state": STATE}[first.call.name]
        jsonschema.validate(dict(first.call.arguments), dict(tool.parameters))
    assert finished >= 2


def test_slots_and_batches_give_the_same_constrained_answers(one_thread: None) -> None:
    tokenizer, facts, fmt = parts()
    model = tiny_model("llama")
    found = []
    for slots in (True, False):
        grammar = CallGrammar(tokenizer, facts, fmt, [(LIGHT,)] * 4, required=True)
        generator = local_generator(model, facts, 4096, constraint=grammar)
        assert isinstance(generator, LocalGenerator)
        generator._in_slots = slots
        found.append([a.token_ids for a in generator.generate(PROMPTS, max_new_tokens=60)])
    assert found[0] == found[1]


def test_without_a_call_nothing_is_forbidden() -> None:
    tokenizer, facts, fmt = parts()
    grammar = CallGrammar(tokenizer, facts, fmt, [(LIGHT,), ()])
    logits = torch.randn(2, 512)
    rows = [Row(0, produced=[40, 41, 7]), Row(1, produced=[int(facts.open.id)])]
    assert torch.equal(grammar.restrict(logits.clone(), rows), logits)


def test_a_required_call_is_required_only_where_there_is_a_tool() -> None:
    tokenizer, facts, fmt = parts()
    grammar = CallGrammar(tokenizer, facts, fmt, [(LIGHT,), ()], required=True)
    logits = grammar.restrict(torch.zeros(2, 512), [Row(0), Row(1)])
    assert logits[0].isfinite().nonzero().flatten().tolist() == [facts.open.id]
    assert bool(logits[1].isfinite().all())


def test_a_delimiter_cannot_stand_inside_a_string_of_a_call() -> None:
    tokenizer, facts, fmt = parts()
    tool = ToolSpec("say", "", {"type": "object", "properties": {"text": {"type": "string"}}})
    said = tokenizer.encode('\n{"name": "say", "arguments": {"text": "a', add_special_tokens=False)
    row = Row(0, produced=[facts.open.id, *said])
    grammar = CallGrammar(tokenizer, facts, fmt, [(tool,)])
    allowed = set(
        grammar.restrict(torch.zeros(1, 512), [row])[0].isfinite().nonzero()[:, 0].tolist()
    )
    assert not allowed & {facts.open.id, facts.close.id, *facts.stop_ids}
    assert len(allowed) > 100
    row.produced += tokenizer.encode('"}}', add_special_tokens=False)
    allowed = set(
        grammar.restrict(torch.zeros(1, 512), [row])[0].isfinite().nonzero()[:, 0].tolist()
    )
    assert facts.close.id in allowed and facts.stop_ids[0] not in allowed
    row.produced += [facts.close.id]
    assert bool(grammar.restrict(torch.zeros(1, 512), [row]).isfinite().all())


def test_the_schema_of_a_call_takes_what_the_format_writes() -> None:
    from smollora.types import ToolCall

    for name, body in BODIES.items():
        fmt = FORMATS[name]
        text = fmt.show([ToolCall("set_state", {"state": {"on": True}})])
        start, end = (
            text.index("[{" if body == "list" else "{"),
            text.rindex("]" if body == "list" else "}"),
        )
        schema = call_schema(fmt, (LIGHT, STATE))
        jsonschema.validate(json.loads(text[start : end + 1]), schema)
        broken = json.loads(text[start : end + 1].replace("true", '"yes"'))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_a_form_without_a_grammar_is_refused() -> None:
    tokenizer, facts, _ = parts()
    with pytest.raises(ConfigError, match="qwen3_coder"):
        CallGrammar(tokenizer, facts, get_format("qwen3_coder"), [(LIGHT,)])


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tokenizer, facts, fmt = parts()
    with pytest.raises(ConfigError) as refused:
        CallGrammar(tokenizer, facts, fmt, [(LIGHT,)])
    assert "pip install 'smollora[grammar]'" in refused.value.hint


def test_a_schema_that_no_grammar_takes_is_named() -> None:
    tokenizer, facts, fmt = parts()
    tool = ToolSpec("odd", "", {"type": "object", "properties": {"a": {"type": "colour"}}})
    grammar = CallGrammar(tokenizer, facts, fmt, [(tool,)])
    with pytest.raises(ModelError, match="odd"):
        grammar.restrict(torch.zeros(1, 512), [Row(0, produced=[facts.open.id])])
