"""Each planted fault is found by the check that is named after it, and by no other than it must."""

from __future__ import annotations

import pytest

from letter_tokenizer import CHATML, LetterTokenizer
from smollm3_template import stock_smollm3_template
from smollm3_tokenizer import smollm3_tokenizer
from smollora.templates import audit as audit_package
from smollora.templates.audit import (
    CHECKS,
    TemplateSource,
    audit,
    choose_template,
    find_format,
)
from smollora.templates.audit.letters import likely_tokens
from smollora.templates.engine import load_shipped
from smollora.types import Check

GOOD = r"""
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}{%- else -%}
  {%- for part in content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- text(messages[0].content) -}}{%- endif -%}
{%- if tools -%}
  {%- for tool in tools -%}{{- '\n' ~ (tool | tojson) -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- generation -%}
    {%- if message.reasoning_content -%}
      {{- '<think>' ~ message.reasoning_content ~ '</think>' -}}
    {%- endif -%}
    {{- text(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set call = call.function -%}
      {{- '<tool_call>{"name": "' ~ call.name ~ '", "arguments": ' -}}
      {%- if call.arguments is string -%}
        {{- call.arguments -}}
      {%- else -%}
        {{- call.arguments | tojson -}}
      {%- endif -%}
      {{- '}</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>' -}}
    {%- endgeneration -%}
    {{- '\n' -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|im_start|>tool\n' ~ message.content ~ '<|im_end|>\n' -}}
  {%- elif message.role == 'user' or not loop.first -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' ~ text(message.content) ~ '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

CONTENT = "{{- text(message.content) -}}"
CALLS = GOOD.partition(CONTENT)[2].partition("{{- '<|im_end|>' -}}")[0]

READS_NO_CALL = {
    "calls_rendered",
    "calls_in_format",
    "arguments_as_object",
    "arguments_as_string",
    "several_calls",
    "call_without_arguments",
    "content_beside_call",
}

FAULTS: dict[str, tuple[str, str, set[str]]] = {
    "the tools are left out": (
        "{%- if tools -%}",
        "{%- if false -%}",
        {"tools_reach_prompt", "tools_as_json"},
    ),
    "only the first tool is shown": (
        "{%- for tool in tools -%}",
        "{%- for tool in tools[:1] -%}",
        {"tools_reach_prompt", "tools_as_json"},
    ),
    "a word in the system message takes the tools away": (
        "{%- if tools -%}",
        "{%- if tools and not '/tools_off' in messages[0].content -%}",
        {"tools_despite_control_words"},
    ),
    "a result says which tool answered": (
        "<|im_start|>tool\\n' ~",
        "<|im_start|>tool\\n' ~ message.name ~ ': ' ~",
        {"serving_prompt_same"},
    ),
    "tools are printed by Python": ("(tool | tojson)", "(tool | string)", {"tools_as_json"}),
    "calls are dropped": (
        "{%- for call in message.tool_calls or [] -%}",
        "{%- for call in [] -%}",
        READS_NO_CALL,
    ),
    "an object of arguments is printed by Python": (
        "call.arguments | tojson",
        "call.arguments | string",
        {"calls_in_format", "arguments_as_object", "several_calls", "text_survives"},
    ),
    "calls are written in another grammar": (
        '{{- \'<tool_call>{"name": "\' ~ call.name ~ \'", "arguments": \' -}}',
        "{{- '<tool_call><call=' ~ call.name ~ '>' -}}",
        {"calls_in_format"},
    ),
    "a string of arguments is encoded twice": (
        "{%- if call.arguments is string -%}",
        "{%- if false -%}",
        {"arguments_as_string"},
    ),
    "only the first call is rendered": (
        "{%- for call in message.tool_calls or [] -%}",
        "{%- for call in (message.tool_calls or [])[:1] -%}",
        {"several_calls"},
    ),
    "empty arguments are left out": (
        "call.arguments | tojson",
        "call.arguments | tojson if call.arguments",
        {"call_without_arguments", "several_calls"},
    ),
    "content beside a call is dropped": (
        CONTENT,
        "{{- text(message.content) if not message.tool_calls -}}",
        {"content_beside_call"},
    ),
    "content comes after the call": (
        CONTENT + CALLS,
        CALLS + CONTENT,
        {"content_beside_call"},
    ),
    "reasoning is dropped": (
        "{%- if message.reasoning_content -%}",
        "{%- if false -%}",
        {"reasoning_kept"},
    ),
    "reasoning is dropped beside a call": (
        "{%- if message.reasoning_content -%}",
        "{%- if message.reasoning_content and not message.tool_calls -%}",
        {"reasoning_kept"},
    ),
    "results are dropped": (
        "message.role == 'tool'",
        "message.role == 'tool' and false",
        set(),  # stays as another turn: the control of this table
    ),
    "results are left empty": (
        "~ message.content ~",
        "~ '' ~",
        {"results_rendered", "several_results", "text_survives"},
    ),
    "results look like the user": ("<|im_start|>tool", "<|im_start|>user", {"results_unlike_user"}),
    "only the last of several results is shown": (
        "~ message.content ~",
        "~ (message.content if loop.last or loop.nextitem.role != 'tool' else '') ~",
        {"several_results"},
    ),
    "several results run together": (
        "{{- '<|im_start|>tool\\n' ~ message.content ~ '<|im_end|>\\n' -}}",
        "{{- '<|im_start|>tool\\n' if loop.previtem.role != 'tool' -}}{{- message.content -}}"
        "{{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' -}}",
        {"several_results"},
    ),
    "the system turn stays open with tools": (
        "{{- '<|im_end|>\\n' -}}",
        "{{- '<|im_end|>\\n' if not tools else '\\n' -}}",
        {"system_closed_with_tools"},
    ),
    "the system turn stays open without tools": (
        "{{- '<|im_end|>\\n' -}}",
        "{{- '<|im_end|>\\n' if tools else '\\n' -}}",
        {"system_closed_without_tools"},
    ),
    "the default system turn stays open without tools": (
        "{{- '<|im_end|>\\n' -}}",
        "{{- '<|im_end|>\\n' if tools or messages[0].role == 'system' else '\\n' -}}",
        {"system_closed_without_tools"},
    ),
    "later system messages are dropped": (
        "message.role == 'user' or not loop.first",
        "message.role == 'user'",
        {"second_system_message"},
    ),
    "later system messages are refused": (
        "{%- elif message.role == 'user'",
        "{%- elif message.role == 'system' and not loop.first -%}"
        "{{- raise_exception('One system message only') -}}{%- elif message.role == 'user'",
        {"second_system_message"},
    ),
    "list content is dropped": (
        "{%- for part in content -%}",
        "{%- for part in [] -%}",
        {"list_content"},
    ),
    "list content is printed by Python": (
        "{%- for part in content -%}{{- part.text -}}{%- endfor -%}",
        "{{- content | string -}}",
        {"list_content"},
    ),
    "text is escaped for HTML": (
        "{%- if content is string -%}{{- content -}}",
        "{%- if content is string -%}{{- content | e -}}",
        {"text_survives"},
    ),
    "the day is in the text": (
        "'<|im_start|>system\\n'",
        "'<|im_start|>system\\n' ~ strftime_now('%d %B %Y')",
        {"date_stable"},
    ),
    "earlier turns lose their content": (
        CONTENT,
        "{{- text(message.content) if loop.last else '...' -}}",
        {"history_stable", "second_system_message", "text_survives"},
    ),
    "the generation prompt begins another way": (
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n'",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n'",
        {"generation_prompt_matches"},
    ),
    "there is no generation prompt": (
        "{%- if add_generation_prompt -%}",
        "{%- if false -%}",
        {"generation_prompt_matches", "generation_markers_exact"},
    ),
    "the stop token is left out": (
        "{{- '<|im_end|>' -}}\n    {%- endgeneration -%}",
        "{%- endgeneration -%}",
        {"stop_token_trained", "generation_markers_exact"},
    ),
    "the stop token is outside of the markers": (
        "{{- '<|im_end|>' -}}\n    {%- endgeneration -%}",
        "{%- endgeneration -%}{{- '<|im_end|>' -}}",
        {"stop_token_trained", "generation_markers_exact"},
    ),
    "the markers cover the header": (
        "{{- '<|im_start|>assistant\\n' -}}\n    {%- generation -%}",
        "{%- generation -%}{{- '<|im_start|>assistant\\n' -}}",
        {"generation_markers_exact"},
    ),
    "the markers cover the newline after the turn": (
        "{%- endgeneration -%}\n    {{- '\\n' -}}",
        "{{- '\\n' -}}{%- endgeneration -%}",
        {"generation_markers_exact"},
    ),
    "only the last turn is marked": (
        "{%- generation -%}",
        "{%- if not loop.last %}{{ text(message.content) ~ '<|im_end|>\\n' }}"
        "{% continue %}{% endif %}{%- generation -%}",
        {"generation_markers_exact", "history_stable"},
    ),
}


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.ok}


def test_a_good_template_passes_every_check() -> None:
    checks = audit(GOOD, LetterTokenizer())
    assert failed(checks) == {}
    assert [check.name for check in checks] == [check.__name__ for check in CHECKS]
    assert len(checks) == 26
    assert all(check.detail for check in checks)
    without_place = {check.name for check in checks if check.at is None}
    assert without_place == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_own_check(fault: str) -> None:
    whole, broken, wanted = FAULTS[fault]
    assert whole in GOOD, "the fault is not planted"
    found = failed(audit(GOOD.replace(whole, broken, 1), LetterTokenizer()))
    assert set(found) == wanted
    assert all(found.values()), "a fault without evidence"


def test_every_check_but_the_informational_one_finds_a_fault() -> None:
    found = set().union(*(wanted for _, _, wanted in FAULTS.values()))
    assert found == {check.__name__ for check in CHECKS} - {"delimiter_injection"}


STOCK_LIKE = r"""
{%- set mode = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' -%}
{%- set first = messages[0].content if messages[0].role == 'system' else '' -%}
{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' ~ strftime_now('%d %B %Y') -}}
{{- '\nReasoning Mode: ' ~ mode ~ '\n\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content ~ '\n\n' -}}{%- endif -%}
{%- if tools and not '/system_override' in first -%}
  {{- '### Tools\n\n' -}}
  {%- for tool in tools -%}{{- (tool | string) ~ '\n' -}}{%- endfor -%}
  {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- set empty = '' if mode == '/think' else '<think>\n\n</think>\n' -%}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else '' -%}
  {%- if message.role == 'assistant' -%}
    {% generation %}
    {{- '<|im_start|>assistant\n' ~ empty ~ content ~ '<|im_end|>\n' }}
    {%- endgeneration %}
  {%- elif message.role in ('user', 'tool') -%}
    {{ '<|im_start|>user\n' ~ content ~ '<|im_end|>\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' ~ empty -}}{%- endif -%}
"""


def test_the_faults_of_the_stock_smollm3_template_are_found() -> None:
    """The template that SmolLM3 was published with loses these; here they are, rewritten small."""
    found = failed(audit(STOCK_LIKE, LetterTokenizer()))
    assert set(found) == READS_NO_CALL | {
        "tools_as_json",
        "tools_despite_control_words",
        "reasoning_kept",
        "results_unlike_user",
        "system_closed_without_tools",
        "second_system_message",
        "list_content",
        "date_stable",
        "generation_markers_exact",
    }
    assert found["calls_rendered"].endswith(r"which reads: <|im_end|>\n")
    assert "'function': {'name': 'get_weather'" in found["tools_as_json"]
    assert "begins too early, by <|im_start|>assistant" in found["generation_markers_exact"]
    assert r"ends too late, by \n" in found["generation_markers_exact"]


def test_the_published_smollm3_template_has_these_faults_and_no_others() -> None:
    """On the real file and the real tokenizer, where both are at hand."""
    checks = audit(stock_smollm3_template(), smollm3_tokenizer())
    assert set(failed(checks)) == set(failed(audit(STOCK_LIKE, LetterTokenizer())))
    assert all(check.detail for check in checks if not check.ok)
    assert all(check.at is not None for check in checks if not check.ok)


@pytest.mark.parametrize(
    ("arguments", "ok"),
    [
        ('{"city": "string", "daily"?: boolean, "station"?: any}', True),
        ('{"city": "string"}', False),
    ],
)
def test_a_tool_as_the_call_to_be_made_shows_every_argument(arguments: str, ok: bool) -> None:
    """Words beside it tell of all of them, so that only the call itself can be at fault."""
    tool = (
        "('station ' ~ tool.function.description ~ '\\n{\"name\": \"' ~ tool.function.name ~ '\", '"
        f" ~ '\"arguments\": ' ~ ('{arguments}' if loop.first else '{{}}') ~ '}}')"
    )
    source = GOOD.replace("(tool | tojson)", tool)
    (check,) = [c for c in audit(source, LetterTokenizer()) if c.name == "tools_as_json"]
    assert check.ok is ok, check.detail


def test_evidence_says_at_which_token_it_is() -> None:
    source = GOOD.replace("(tool | tojson)", "(tool | string)")
    (check,) = [c for c in audit(source, LetterTokenizer()) if c.name == "tools_as_json"]
    # <|im_start|> is one token; "system", the newline, and the dict up to the name are letters
    assert check.at == 1 + len("system\n\n{'type': 'function', 'function': {'name': '")


def test_a_template_that_raises_fails_the_check_in_its_own_words() -> None:
    source = "{{ raise_exception('Not today') if tools }}" + GOOD
    found = failed(audit(source, LetterTokenizer()))
    assert "Not today" in found["tools_reach_prompt"]
    assert "system_closed_without_tools" not in found


def test_no_template_is_one_failed_check() -> None:
    absent: list[TemplateSource] = [None, "", {}, [], {"rag": GOOD}]
    for nothing in absent:
        (check,) = audit(nothing, LetterTokenizer())
        assert (check.name, check.ok) == ("has_template", False)
    (check,) = audit("{% if %}", LetterTokenizer())
    assert check.name == "has_template"
    assert "not valid Jinja" in check.detail


def test_of_named_templates_the_one_for_tools_is_audited() -> None:
    assert choose_template({"default": "a", "tool_use": "b"}) == "b"
    assert choose_template({"default": "a", "rag": "b"}) == "a"
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert choose_template(listed) == "b"


def test_reasoning_may_be_dropped_by_a_model_that_does_not_reason() -> None:
    source = GOOD.replace("{%- if message.reasoning_content -%}", "{%- if false -%}")
    source = source.replace("'<think>' ~", "").replace("~ '</think>'", "")
    tokenizer = LetterTokenizer(CHATML[:4])
    assert failed(audit(source, tokenizer)) == {}


def test_reasoning_dropped_from_earlier_turns_is_for_information() -> None:
    source = GOOD.replace(
        "{%- if message.reasoning_content -%}",
        "{%- if message.reasoning_content and loop.last -%}",
    )
    (check,) = [c for c in audit(source, LetterTokenizer()) if c.name == "reasoning_kept"]
    assert check.ok
    assert "dropped from earlier turns" in check.detail


def test_a_day_that_can_be_set_is_for_information() -> None:
    source = GOOD.replace(
        "'<|im_start|>system\\n'",
        "'<|im_start|>system\\n' ~ (date_string or strftime_now('%d %B %Y'))",
        1,
    )
    (check,) = [c for c in audit(source, LetterTokenizer()) if c.name == "date_stable"]
    assert check.ok
    assert "date_string" in check.detail


def test_a_typed_delimiter_that_becomes_the_real_token_is_for_information() -> None:
    (check,) = [c for c in audit(GOOD, LetterTokenizer()) if c.name == "delimiter_injection"]
    assert check.ok
    assert "becomes token 2000002" in check.detail
    without = LetterTokenizer(("<|im_start|>", "<|im_end|>"))
    (check,) = [c for c in audit(GOOD, without) if c.name == "delimiter_injection"]
    assert check.ok
    assert "stays ordinary text" in check.detail


def test_a_tokenizer_without_end_token_cannot_train_one() -> None:
    found = failed(audit(GOOD, LetterTokenizer(eos=None)))
    assert "no eos_token" in found["stop_token_trained"]


def test_system_text_inside_the_first_user_turn_is_for_information() -> None:
    source = r"""
    {%- set system = messages[0].content ~ '\n\n' if messages[0].role == 'system' else '' -%}
    {%- for message in messages -%}
      {%- if message.role == 'user' -%}
        {{- '[INST] ' ~ (system if loop.index < 3) ~ message.content ~ ' [/INST]' -}}
      {%- elif message.role == 'assistant' -%}
        {{- message.content ~ '</s>' -}}
      {%- endif -%}
    {%- endfor -%}"""
    tokenizer = LetterTokenizer(("[INST]", "[/INST]", "</s>"), eos="</s>")
    checks = {check.name: check for check in audit(source, tokenizer)}
    assert checks["system_closed_without_tools"].ok
    assert "part of the first user turn" in checks["system_closed_without_tools"].detail


def test_the_shipped_templates_pass_without_a_real_tokenizer() -> None:
    for name in ("chatml_tools", "smollm3"):
        assert failed(audit(load_shipped(name), LetterTokenizer())) == {}


# ── formats of other shapes ───────────────────────────────────────────────────────────────────

LLAMA = (
    "{%- for m in messages %}<|h|>{{ m.role }}\n"
    "{%- if m.tool_calls %}{%- for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    "{%- endfor %}{%- else %}{{ m.content }}{%- endif %}<|e|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|h|>assistant\n{%- endif %}"
)
"""One bare JSON object a call, as Llama 3 has it, and no delimiter anywhere."""


def test_a_format_without_delimiters_is_audited_by_the_text_of_its_calls() -> None:
    from smollora.formats import get_format

    tokenizer = LetterTokenizer(("<|h|>", "<|e|>"), eos="<|e|>")
    found = {c.name: c for c in audit(LLAMA, tokenizer, fmt=get_format("llama3_json"))}
    assert found["calls_rendered"].ok
    assert found["arguments_as_object"].ok
    assert not found["arguments_as_string"].ok, "a JSON string is encoded once more by tojson"
    assert not found["several_calls"].ok, "two objects without anything between them"
    assert found["delimiter_injection"].detail.startswith("llama3_json has no delimiter")


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rendering may take a second, so that the tests of endless ones do not take ten each."""
    monkeypatch.setattr("smollora.templates.engine.MAX_SECONDS", 1.0, raising=False)


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize(("program", "word"), [(ENDLESS, "longer than"), (HUGE, "characters")])
def test_a_template_past_its_limits_is_tried_once_and_not_again(
    program: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-six checks of several renderings each, of ten seconds each, would look like a hang."""
    monkeypatch.setattr(audit_package, "MOST_SECONDS", 1e9)
    checks = audit(program + GOOD, LetterTokenizer())
    assert not any(check.ok for check in checks)
    assert word in checks[0].detail
    assert all("not tried: tools_reach_prompt ran past" in check.detail for check in checks[1:])


@pytest.mark.usefixtures("short_limit")
def test_a_template_that_only_calls_make_endless_is_stopped_there() -> None:
    source = GOOD.replace("{%- for call in", ENDLESS + "{%- for call in", 1)
    source = source.replace(ENDLESS, "{% if message.tool_calls %}" + ENDLESS + "{% endif %}")
    checks = {check.name: check for check in audit(source, LetterTokenizer())}
    assert checks["tools_reach_prompt"].ok
    assert "was stopped" in checks["calls_rendered"].detail
    assert checks["list_content"].detail == "not tried: calls_rendered ran past the limits"


def test_an_audit_as_a_whole_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_package, "MOST_SECONDS", 0.0)
    (last,) = {check.detail for check in audit(GOOD, LetterTokenizer())[1:]}
    assert last == "not tried: the checks before it took more than 0 seconds"


@pytest.mark.parametrize(
    "call",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.append(1)",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "self.__init__.__globals__",
    ],
)
def test_calls_that_the_sandbox_forbids_fail_every_check_in_its_words(call: str) -> None:
    checks = audit("{{ " + call + " }}" + GOOD, LetterTokenizer())
    assert not any(check.ok for check in checks if check.name != "delimiter_injection")
    assert "sandbox" in checks[0].detail or "failed" in checks[0].detail


def test_named_templates_that_render_another_prompt_without_tools_are_told() -> None:
    """A server picks "default" where no tools are given; rows were rendered with "tool_use"."""
    other = GOOD.replace("'<|im_start|>system\\n'", "'<|im_start|>system\\nHello. '", 1)
    assert failed(audit({"default": GOOD, "tool_use": GOOD}, LetterTokenizer())) == {}
    found = failed(audit({"default": other, "tool_use": GOOD}, LetterTokenizer()))
    assert set(found) == {"serving_prompt_same"}
    assert "takes another one without tools" in found["serving_prompt_same"]


def test_arguments_in_a_string_may_be_refused_but_not_mangled() -> None:
    source = GOOD.replace("{{- call.arguments -}}", "{{- raise_exception('objects only') -}}")
    checks = {check.name: check for check in audit(source, LetterTokenizer())}
    assert checks["arguments_as_string"].ok
    assert "objects only" in checks["arguments_as_string"].detail


def test_thinking_taken_out_of_earlier_turns_is_for_information() -> None:
    source = GOOD.replace(
        "{{- text(message.content) -}}",
        "{%- if loop.last -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}"
        "{{- text(message.content) -}}",
    )
    checks = {check.name: check for check in audit(source, LetterTokenizer())}
    assert checks["history_stable"].ok
    assert "train turn by turn" in checks["history_stable"].detail


def test_an_older_template_says_which_tools_it_reads_instead() -> None:
    source = GOOD.replace("{%- if tools -%}", "{%- if xml_tools -%}").replace(
        "for tool in tools", "for tool in xml_tools"
    )
    found = failed(audit(source, LetterTokenizer()))
    assert "the template reads xml_tools instead of tools" in found["tools_reach_prompt"]


def test_a_forged_delimiter_in_a_result_is_seen_too() -> None:
    source = GOOD.replace("text(message.content) ~ '<|im_end|>", "'hidden' ~ '<|im_end|>")
    (check,) = [c for c in audit(source, LetterTokenizer()) if c.name == "delimiter_injection"]
    assert check.ok
    assert "injection risk: <tool_call> returned by a tool becomes token" in check.detail


@pytest.mark.usefixtures("short_limit")
def test_the_format_is_found_by_reading_a_call_back() -> None:
    assert find_format(GOOD, LetterTokenizer()).name == "hermes"
    for nothing in (None, "{% if %}", ENDLESS, "{{ raise_exception('no') }}"):
        assert find_format(nothing, LetterTokenizer()).name == "hermes"


def test_tokens_are_guessed_from_the_text_of_a_template() -> None:
    source = "{{ '<|im_start|>' }}[INST]<｜User｜><start_of_turn><tool_call> a < b <p> [x] <|turn>"
    assert likely_tokens(source) == [
        *("<|im_start|>", "[INST]", "<｜User｜>", "<start_of_turn>", "<tool_call>", "<|turn>")
    ]
