"""A repaired template passes the audit and is as near to the stock one as can be."""

from __future__ import annotations

from typing import Any

import pytest

from letter_tokenizer import CHATML, LetterTokenizer
from smollm3_template import stock_smollm3_template
from smollm3_tokenizer import smollm3_tokenizer
from smollora.errors import TemplateError
from smollora.templates.audit import audit
from smollora.templates.engine import ChatTemplate, load_shipped
from smollora.templates.repair import NotRepairable, nearest_shipped, repair, show_diff

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

PLAIN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a \"stock\" parrot: {polly} – 🦜<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as most small models have it: no tools, no calls."""

WITH_TOOLS = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else 'You are a crane.' -%}
{{- '<|im_start|>system\n' ~ system -}}
{%- if tools -%}
  {{- '\n\n# Cranes have tools\n<tools>' -}}
  {%- for tool in tools -%}{{- '\n' ~ (tool | tojson) -}}{%- endfor -%}
  {{- '\n</tools>\nCall them "so": {"name": ...}' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
  {%- if message.role == 'user' or message.role == 'system' and not loop.first -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant' + ('\n' + message.content if message.content else '') -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
      {{- (call.function.arguments | tojson) ~ '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
"""ChatML with tools of its own wording, which loses lists, reasoning and string arguments."""

TOOLS = [
    {
        "type": "function",
        "function": {"name": "fly", "description": "Fly", "parameters": {"type": "object"}},
    }
]
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Fly!"},
    {
        "role": "assistant",
        "content": "Up.",
        "tool_calls": [{"type": "function", "function": {"name": "fly", "arguments": {"m": 3}}}],
    },
    {"role": "tool", "content": "done"},
    {"role": "assistant", "content": "I flew."},
    {"role": "user", "content": "Good."},
]


def passes(source: str) -> bool:
    return all(check.ok for check in audit(source, LetterTokenizer()))


@pytest.mark.parametrize("source", [PLAIN, WITH_TOOLS], ids=["plain", "with tools"])
def test_what_is_repaired_passes_and_is_not_repaired_again(source: str) -> None:
    first = repair(source, LetterTokenizer())
    assert passes(first.source)
    assert all(check.ok for check in first.checks)
    faults = {check.name for check in audit(source, LetterTokenizer()) if not check.ok}
    assert {change.check for change in first.changes} == faults
    second = repair(first.source, LetterTokenizer())
    assert (second.source, second.changes, second.shipped) == (first.source, (), "")


@pytest.mark.parametrize("name", ["chatml_tools", "smollm3"])
def test_a_template_that_passes_is_left_alone(name: str) -> None:
    source = load_shipped(name)
    assert repair(source, LetterTokenizer()).source == source


def test_the_default_system_message_is_kept() -> None:
    repaired = ChatTemplate(repair(PLAIN, LetterTokenizer()).source)
    assert repaired.render(CHAT[:1]) == (
        '<|im_start|>system\nYou are a "stock" parrot: {polly} – 🦜<|im_end|>\n'
        "<|im_start|>user\nFly!<|im_end|>\n"
    )


def test_no_system_turn_appears_where_there_was_none() -> None:
    source = PLAIN.replace("messages[0]['role'] != 'system'", "false")
    repaired = ChatTemplate(repair(source, LetterTokenizer()).source)
    assert repaired.render(CHAT[:1]) == "<|im_start|>user\nFly!<|im_end|>\n"
    assert repaired.render(CHAT[:1], TOOLS).startswith(
        "<|im_start|>system\n# Tools\n\nYou may call"
    )


def test_its_own_wording_of_tools_and_results_is_kept() -> None:
    result = repair(WITH_TOOLS, LetterTokenizer())
    assert {change.check for change in result.changes} == {
        "arguments_as_string",
        "list_content",
        "reasoning_kept",
    }
    stock, repaired = ChatTemplate(WITH_TOOLS), ChatTemplate(result.source)
    system = [{"role": "system", "content": "Be tall."}]
    for chat in (CHAT, system + CHAT, CHAT[:3], CHAT[:1]):
        for tools in (None, TOOLS):
            for prompt in (False, True):
                wanted = stock.render(chat, tools, add_generation_prompt=prompt)
                assert repaired.render(chat, tools, add_generation_prompt=prompt) == wanted


def test_a_template_of_smollm3_gets_smollm3s() -> None:
    source = (
        "{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: /think\n\n' }}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    result = repair(source, LetterTokenizer())
    assert result.source == load_shipped("smollm3")
    assert "system_closed_without_tools" in {change.check for change in result.changes}


def test_what_no_edit_mends_is_named_and_nothing_is_given_back() -> None:
    source = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    assert nearest_shipped(source) is None
    with pytest.raises(NotRepairable, match=r"(?s)fails \d+ checks.*2 of them cannot") as refused:
        repair(source, LetterTokenizer())
    assert {check.name for check in refused.value.checks} == {
        "generation_prompt_matches",
        "stop_token_trained",
    }


def test_a_template_that_writes_calls_in_another_format_is_not_given_ours() -> None:
    source = WITH_TOOLS.replace("<tool_call>\\n{", "<call>\\n{").replace("</tool_call>", "</call>")
    with pytest.raises(NotRepairable, match=r"calls_in_format.*\n.*model\.format"):
        repair(source, LetterTokenizer())


@pytest.mark.parametrize("source", ["{% if %}", "{{ raise_exception('never') }}", ENDLESS])
def test_a_template_that_does_not_render_is_refused_at_once(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollora.templates.engine.MAX_SECONDS", 1.0, raising=False)
    with pytest.raises(NotRepairable):
        repair(source, LetterTokenizer())


def test_a_tokenizer_that_stops_elsewhere_is_refused() -> None:
    tokenizer = LetterTokenizer(("<|im_start|>", "<|im_end|>", "</s>"), eos="</s>")
    with pytest.raises(TemplateError, match=r"(?s)stop_token_trained.*eos_token"):
        repair(PLAIN, tokenizer)


def test_a_default_system_message_with_the_day_is_refused() -> None:
    source = PLAIN.replace("parrot: ", "parrot of ' + strftime_now('%Y') + '")
    with pytest.raises(TemplateError, match="says the day"):
        repair(source, LetterTokenizer())


def test_no_template_at_all_is_refused() -> None:
    with pytest.raises(TemplateError, match="no chat template to repair"):
        repair(None, LetterTokenizer())


def test_the_diff_shows_what_changed() -> None:
    assert show_diff("a\nb\n", "a\nc\n", "t.jinja") == (
        "--- a/t.jinja\n+++ b/t.jinja\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    )
    assert show_diff("a", "a") == ""


# ── edits of the template's own text ──────────────────────────────────────────────────────────

GEMMA_LIKE = r"""
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- raise_exception('No system role') -}}{%- endif -%}
{%- for message in messages -%}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate') -}}
  {%- endif -%}
  {%- set role = 'model' if message.role == 'assistant' else message.role -%}
  {{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
"""No system role, no tools, strictly alternating turns: nothing of a tool conversation fits in."""
GEMMA = LetterTokenizer(
    ("<bos>", "<start_of_turn>", "<end_of_turn>", "<tool_call>", "</tool_call>"),
    eos="<end_of_turn>",
    bos="<bos>",
)


def test_a_template_that_knows_only_two_roles_is_handed_all_the_rest_in_their_turns() -> None:
    result = repair(GEMMA_LIKE, GEMMA)
    assert all(check.ok for check in result.checks)
    assert result.source.endswith(GEMMA_LIKE), "the stock text is kept"
    assert all(change.reason and change.mended_by for change in result.changes)
    system = {"role": "system", "content": "Be tall."}
    said = ChatTemplate(result.source).render([system, *CHAT], TOOLS, bos_token="<bos>")
    assert said == (
        "<bos><start_of_turn>user\nBe tall.\n\n# Tools\n\nYou may call one or more functions to"
        " assist with the user. Call only a function that fits the request; otherwise answer"
        " in plain"
        " text.\n\n<tools>\n"
        '{"name": "fly", "description": "Fly", "parameters": {"type": "object"}}\n'
        "</tools>\n\nFor each function call, write:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n\n'
        "Fly!<end_of_turn>\n"
        "<start_of_turn>model\nUp.\n<tool_call>\n"
        '{"name": "fly", "arguments": {"m": 3}}\n</tool_call>'
        "<end_of_turn>\n"
        "<start_of_turn>user\n<tool_response>\ndone\n</tool_response><end_of_turn>\n"
        "<start_of_turn>model\nI flew.<end_of_turn>\n"
        "<start_of_turn>user\nGood.<end_of_turn>\n"
    )


def test_plain_conversations_render_as_before_the_edits() -> None:
    stock, repaired = ChatTemplate(GEMMA_LIKE), ChatTemplate(repair(GEMMA_LIKE, GEMMA).source)
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}] * 2
    for length in range(1, 5):
        for prompt in (False, True):
            wanted = stock.render(plain[:length], add_generation_prompt=prompt, bos_token="<bos>")
            assert wanted == repaired.render(
                plain[:length], add_generation_prompt=prompt, bos_token="<bos>"
            )


def test_the_edited_template_is_not_edited_again() -> None:
    once = repair(GEMMA_LIKE, GEMMA)
    assert repair(once.source, GEMMA).changes == ()
    assert repair(once.source, GEMMA).source == once.source


SMALL_FAULTS = {
    "tools printed by Python": ("(tool | tojson)", "(tool | string)"),
    "markers around the header": (
        "'<|im_start|>assistant' + ('\\n' + message.content if message.content else '') -}}",
        "'<|im_start|>' -}}{%- generation -%}{{- 'assistant' + ('\\n' + message.content"
        " if message.content else '') -}}{%- endgeneration -%}",
    ),
    "the clock": ("'You are a crane.'", "'It is ' ~ strftime_now('%d %B %Y')"),
}


@pytest.mark.parametrize("fault", SMALL_FAULTS)
def test_a_small_fault_is_mended_in_its_place(fault: str) -> None:
    whole, broken = SMALL_FAULTS[fault]
    base = repair(WITH_TOOLS, LetterTokenizer()).source
    assert whole in base, "the fault is not planted"
    result = repair(base.replace(whole, broken, 1), LetterTokenizer())
    assert result.shipped == ""
    changed = show_diff(base.replace(whole, broken, 1), result.source).splitlines()[2:]
    assert sum(line.startswith("+") for line in changed) <= 2
    assert result.changes


def test_a_template_that_wants_lists_of_parts_gets_them() -> None:
    source = (
        "{%- for message in messages -%}{{- '<|im_start|>' ~ message.role ~ '\\n' -}}"
        "{%- for part in message.content -%}"
        "{{- part.text if part.type == 'text' else '<image>' -}}{%- endfor -%}"
        "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    result = repair(source, LetterTokenizer((*CHATML[:4],)))
    assert result.source.endswith(source)
    picture = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    said = ChatTemplate(result.source).render([{"role": "user", "content": picture}])
    assert said == "<|im_start|>user\n<image>What is it?<|im_end|>\n"


def test_the_published_smollm3_template_is_repaired_with_everything_that_it_could() -> None:
    """On the real file and the real tokenizer, where both are at hand."""
    stock, tokenizer = stock_smollm3_template(), smollm3_tokenizer()
    result = repair(stock, tokenizer)
    assert result.shipped == "smollm3"
    assert [check.name for check in audit(result.source, tokenizer) if not check.ok] == []
    assert repair(result.source, tokenizer).changes == ()
    old, new = ChatTemplate(stock), ChatTemplate(result.source)
    for chat in (CHAT[:1], [{"role": "system", "content": "Be tall. /no_think"}, *CHAT[:1]]):
        for kind in ("xml_tools", "python_tools"):
            described = ["a", "b"]  # strings, for the stock one prints objects as Python does
            options = {kind: described, "add_generation_prompt": True}
            assert new.render(chat, **options) == old.render(chat, **options)
