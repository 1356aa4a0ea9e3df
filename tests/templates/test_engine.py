"""The engine against transformers' own renderer, and its limits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from smollora.errors import TemplateError
from smollora.templates import engine
from smollora.templates.engine import ChatTemplate, load_shipped

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find <b>things</b> & 'more' – für alle",
            "parameters": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer", "default": None},
                    "deep": {"default": True},
                },
            },
        },
    }
]

TEMPLATES = {
    "plain ChatML": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "whitespace rules": (
        "{{ bos_token }}\n"
        "{% for message in messages %}\n"
        "    {%- if message.role == 'user' %}\n"
        "    [{{ message.content }}]\n"
        "    {% elif loop.index0 > 0 +%}\n"
        "    ({{ message.content | default('nothing', true) | trim }})\n"
        "    {%- else %}\n"
        "    ?\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{# a comment #}\n"
        "end\n"
    ),
    "tools with every tojson option": (
        "{% if tools is not none %}{% for tool in tools %}{{ tool | tojson }}\n"
        "{{ tool | tojson(indent=2) }}\n{{ tool | tojson(separators=(',', ':')) }}\n"
        "{{ tool | tojson(sort_keys=true, ensure_ascii=true) }}\n{% endfor %}{% endif %}"
        "{{ tools | string }}{{ messages | length }}"
    ),
    "loop controls and namespaces": (
        "{% set ns = namespace(seen=0, text='') %}{% for message in messages %}"
        "{% if message.role == 'tool' %}{% continue %}{% endif %}"
        "{% if ns.seen > 3 %}{% break %}{% endif %}"
        "{% set ns.seen = ns.seen + 1 %}{% set ns.text = ns.text ~ loop.index ~ message.role %}"
        "{% endfor %}{{ ns.text }}{{ dict(a=1, b=[2]) | tojson }}{{ dict.fromkeys(['x'], 3) }}"
        "{% for a in [1, [2, [3]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}"
        "{% for a in 'abc' %}{{ loop.previtem }}{{ a }}{{ loop.nextitem }}{{ loop.length }}"
        "{% else %}none{% endfor %}{% for key, value in messages[0] | items %}{{ key }}{% endfor %}"
    ),
    "clock and refusals": (
        "{{ strftime_now('%d %B %Y') }}{% for message in messages %}"
        "{% if message.role == 'tool' %}{{ raise_exception('No tools here, sorry!') }}{% endif %}"
        "{{ message.content }}{% endfor %}{{ documents is defined }}{{ documents is none }}"
    ),
    "markers": (
        "{% for message in messages %}{{ '<' ~ message.role ~ '>' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.reasoning_content }}"
        "{{ message.thinking }}{{ message.content }}{{ message.tool_calls | tojson if "
        "message.tool_calls }}</s>{% endgeneration %}{% else %}{{ message.content }}{% endif %}\n"
        "{% endfor %}"
    ),
    "arithmetic": (
        "{{ 2 ** 10 }} {{ 7 * 6 }} {{ 'ab' * 3 }} {{ [1] * 2 }} {{ 1.5 + 2 }} {{ [1] + [2] }} "
        "{{ 'a' + 'b' }} {{ 'a' ~ 1 ~ none ~ missing }} {{ true * 'x' }} "
        "{{ 2 ** -1 }} {{ -2 * 'a' }}"
    ),
    "an undefined name": "{{ messages[0].content }}{{ nobody.home }}",
    "a type error": "{{ messages[0].content + 1 }}",
    "a forbidden call": "{{ messages.append(1) }}",
    "chatml_tools": load_shipped("chatml_tools"),
    "smollm3": load_shipped("smollm3"),
}


def conversations(count: int = 25) -> list[list[dict[str, Any]]]:
    """Made-up conversations of all shapes; the same ones every time."""
    dice = random.Random(7)
    texts = ["Hi", "", "  spaced\n", "naïve 東京 🙂", "q\"u'o{te}", "<b>&</b>", "{% if %}", None]
    made = []
    for _ in range(count):
        messages: list[dict[str, Any]] = []
        for _ in range(dice.randint(1, 7)):
            role = dice.choice(["system", "user", "assistant", "tool"])
            message: dict[str, Any] = {"role": role, "content": dice.choice(texts)}
            if role == "assistant" and dice.random() < 0.5:
                arguments = dice.choice([{"n": 1, "s": "é"}, '{"n": 1}', {}])
                call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
                message["tool_calls"] = [call] * dice.randint(1, 2)
            if role == "assistant" and dice.random() < 0.3:
                message[dice.choice(["reasoning_content", "thinking", "reasoning"])] = "Hm."
            if role == "tool" and dice.random() < 0.3:
                message["content"] = {"n": 1, "ok": True}
            if role == "user" and dice.random() < 0.2:
                message["content"] = [{"type": "text", "text": "part"}]
            messages.append(message)
        made.append(messages)
    return made


def as_transformers(source: str, messages: Any, tools: Any, prompt: bool) -> Any:
    """(text, spans), or the error, of transformers' own renderer."""
    given = [{k: v for k, v in message.items() if v is not None} for message in messages]
    try:
        texts, spans = render_jinja_template(
            [given],
            tools=tools,
            chat_template=source,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=True,
            bos_token="<s>",
        )
    except Exception as error:
        return error
    return texts[0], tuple(tuple(span) for span in spans[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_what_transformers_renders(name: str) -> None:
    source = TEMPLATES[name]
    template = ChatTemplate(source)
    for number, messages in enumerate(conversations()):
        options: dict[str, Any] = {
            "tools": TOOLS if number % 2 else None,
            "add_generation_prompt": number % 3 == 0,
        }
        wanted = as_transformers(source, messages, options["tools"], number % 3 == 0)
        now = datetime.now().isoformat()
        try:
            marked = template.render_marked(messages, **options, date=now, bos_token="<s>")
            text = template.render(messages, **options, date=now, bos_token="<s>")
        except TemplateError as error:
            assert isinstance(wanted, Exception), f"{messages}: {error}"
            assert str(wanted) in error.message
        else:
            assert (marked.text, marked.spans) == wanted, messages
            assert text == marked.text


def test_a_tokenizer_gives_the_same_text() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), eos_token="<|im_end|>", bos_token="<s>"
    )
    tokenizer.chat_template = TEMPLATES["chatml_tools"]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Find it."},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "find", "arguments": {}}]},
    ]
    wanted = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert ChatTemplate(TEMPLATES["chatml_tools"]).render(messages, TOOLS) == wanted


SAY: list[dict[str, Any]] = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{% set x = f(n - 1) ~ f(n - 1) %}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    ],
    ids=["silent loop", "macro that calls itself", "loop of empty pieces"],
)
def test_a_template_that_does_not_end_is_stopped(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MAX_SECONDS", 0.2)
    started = time.thread_time()
    with pytest.raises(TemplateError, match=r"longer than 0\.2 seconds"):
        ChatTemplate(source).render(SAY)
    assert time.thread_time() - started < 2


def test_a_template_that_does_not_end_is_stopped_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "MAX_SECONDS", 0.2)
    caught: list[TemplateError] = []
    turns = "range(99999)"
    endless = f"{{% for a in {turns} %}}{{% for b in {turns} %}}{{% endfor %}}{{% endfor %}}"

    def work() -> None:
        try:
            ChatTemplate(endless).render(SAY)
        except TemplateError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert "longer than" in caught[0].message


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 100000000 }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{% set s %}{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ 'x'.rjust(10 ** 9) }}",
        "{{ ('x' * 9000000).replace('x', 'y' * 1000) }}",
        "{{ ('x' * 9000000) | replace('x', 'y' * 1000) }}",
        "{{ ('%9999999d' * 100) | format(1, 2) }}",
        "{{ '%9999999d%9999999d' % (1, 2) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ ('x' * 9000).join(range(9999) | map('string') | list) }}",
        "{{ range(9999) | join('x' * 9000) }}",
        "{{ [1] | batch(10 ** 9, 'x') | list }}",
        "{{ [1] | slice(10 ** 9) | list }}",
        "{{ ('\n' * 9000) | indent(9000) }}",
        "{{ (['\t' * 9000] | first).expandtabs(9000) }}",
        "{{ ([[0] * 9000] * 9000) | sum(start=[]) | length }}",
        "{{ ('x ' * 9000) | wordwrap(1, wrapstring='y' * 9000) }}",
    ],
)
def test_a_template_that_builds_too_much_is_stopped(source: str) -> None:
    started = time.thread_time()
    with pytest.raises(TemplateError, match="more than 10,000,000 characters"):
        ChatTemplate(source).render(SAY)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 'a-b' | replace('-', '+') }}{{ 'ab' | center(6) }}", "a+b  ab  "),
        ("{{ '%s is %d' | format('x', 1700000000) }}", "x is 1700000000"),
        ("{{ '%05.1f|%d' % (2.5, 1700000000) }}", "002.5|1700000000"),
        ("{{ '{:>4}|{}'.format('x', 1700000000) }}", "   x|1700000000"),
        ("{% macro f(n) %}{{ n }}{% endmacro %}{{ f(1700000000) }}", "1700000000"),
        ("{{ [1, 2] | join(', ') }}{{ [[1], [2]] | sum(start=[]) }}", "1, 2[1, 2]"),
        ("{{ 'a\nb' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}", "a\n  b[[1, 2], [3]]"),
        ("{{ {'a': 1} | tojson(separators=[',', ':']) }}", '{"a":1}'),
    ],
)
def test_operations_of_ordinary_size_are_left_alone(source: str, said: str) -> None:
    assert ChatTemplate(source).render(SAY) == said


def test_json_is_not_indented_by_gigabytes() -> None:
    with pytest.raises(TemplateError, match="indents JSON"):
        ChatTemplate("{{ tools | tojson(indent=10 ** 9) }}").render(SAY, TOOLS)


def test_a_long_conversation_is_within_the_limits() -> None:
    text = "word " * 100_000
    rendered = ChatTemplate(TEMPLATES["chatml_tools"]).render([{"role": "user", "content": text}])
    assert text in rendered


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ raise_exception('Roles must alternate!') }}", "line 2.*Roles must alternate!"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "is unsafe"),
        ("{{ messages.append(1) }}", "forbids.*append"),
        ("{% set ns = namespace(_secret=1) %}", "underscore"),
        ("{{ nobody.home }}", "'nobody' is undefined"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% if %}", "line 1 of the chat template is not valid Jinja"),
        ("{{ 1 | nonsense }}", "nonsense"),
    ],
)
def test_a_template_that_fails_says_so_in_its_own_words(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(SAY)


def test_rendering_leaves_the_timers_of_others_alone() -> None:
    """A timer armed by pytest or a notebook must still be running after a rendering."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers on this system")
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 100)
        ChatTemplate("{{ messages }}").render(SAY)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_the_clock_is_frozen_unless_a_date_is_given() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}")
    assert template.render(SAY) == "2025-07-08"
    assert template.render(SAY, date="2026-11-22") == "2026-11-22"
    with pytest.raises(TemplateError, match="not a date"):
        template.render(SAY, date="next week")


def test_what_is_rendered_is_not_changed() -> None:
    messages = [{"role": "assistant", "content": None, "thinking": "Hm.", "tool_calls": None}]
    ChatTemplate("{{ messages }}").render(messages)
    assert messages == [
        {"role": "assistant", "content": None, "thinking": "Hm.", "tool_calls": None}
    ]


def test_markers_inside_a_captured_block_are_refused() -> None:
    source = "{% set s %}{% generation %}yes{% endgeneration %}{% endset %}no {{ s }}"
    assert ChatTemplate(source).render(SAY) == "no yes"
    with pytest.raises(TemplateError, match="changed or moved"):
        ChatTemplate(source).render_marked(SAY)


def test_markers_are_found_by_parsing() -> None:
    assert ChatTemplate("{%- generation -%}x{%- endgeneration -%}").has_generation_markers
    assert not ChatTemplate("{# {% generation %} #}{{ '{% generation %}' }}").has_generation_markers


def test_threads_do_not_mix_their_markers() -> None:
    template = ChatTemplate(TEMPLATES["markers"])
    wrong: list[str] = []

    def work(number: int) -> None:
        said = "a" * number
        for _ in range(100):
            marked = template.render_marked([{"role": "assistant", "content": said}])
            (start, end), *_rest = marked.spans
            if marked.text[start:end] != said + "</s>":
                wrong.append(marked.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_small_renderings_are_quick() -> None:
    """5,000 a second on an idle core; a tenth of that must hold on a busy one."""
    template = ChatTemplate(TEMPLATES["chatml_tools"])
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    template.render(messages, TOOLS)
    started = time.process_time()
    for _ in range(500):
        template.render(messages, TOOLS)
    assert time.process_time() - started < 1


def test_templates_are_rendered_without_heavy_imports() -> None:
    code = (
        "import sys, smollora.templates.audit, smollora.templates.repair;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_shipped_template_is_named_with_those_there_are() -> None:
    with pytest.raises(TemplateError, match="chatml_tools, smollm3"):
        load_shipped("nobody")
