"""A repaired template passes the audit and is as near to the stock one as can be."""

from __future__ import annotations

from typing import Any

import pytest

from letter_tokenizer import LetterTokenizer
from smollora.errors import TemplateError
from smollora.templates.audit import audit
from smollora.templates.engine import ChatTemplate, load_shipped
from smollora.templates.repair import nearest_shipped, repair, show_diff

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


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}",
        PLAIN + "{% if enable_thinking %}{% endif %}",
    ],
    ids=["another family", "a ChatML template that switches thinking"],
)
def test_a_template_that_no_shipped_one_is_near_to_is_refused(source: str) -> None:
    assert nearest_shipped(source) is None
    with pytest.raises(TemplateError, match=r"(?s)fails \d+ checks.*calls_rendered: no call"):
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
