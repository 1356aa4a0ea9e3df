"""Tools that are remembered are written as they were; the expected side is transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from smollora.templates.engine import ChatTemplate
from smollora.templates.offer import OfferedTools
from smollora.types import ToolSpec

SAID = [{"role": "user", "content": "Which?"}]
WAYS = [
    "{{ tools | tojson }}",
    "{{ tools | tojson(indent=2) }}",
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}",
    "{% for tool in tools %}{{ tool.function | tojson(indent=4) }}\n{% endfor %}",
    "{% for tool in tools %}{{ {'name': tool.function.name, 'description':"
    " tool.function.description, 'parameters': tool.function.parameters} | tojson }}\n{% endfor %}",
    "{% for tool in tools %}{{ {'a': tool.function.name} | tojson }}"
    "{{ {'b': tool.function.name} | tojson }}\n{% endfor %}",
    "{% for tool in tools %}{{ {'name': tool.function.name, 'n': loop.index} | tojson }}"
    "{{ tool.function.parameters | tojson(sort_keys=true, separators=[',', ':']) }}\n{% endfor %}",
    "{% for tool in tools %}{{ tool.function.parameters.properties | tojson }}"
    "{{ tool.function.parameters.items | default('none') | string | length > 0 }}\n{% endfor %}",
]


def spec(number: int) -> ToolSpec:
    """A tool; some share names, descriptions and schemas that are equal but not the same."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {f"über_{number % 2}": {"type": "string", "description": "a 'b' <c>"}},
    }
    return ToolSpec(f"tool_{number % 3}", "" if number % 2 else "Does it.", schema)


@pytest.mark.parametrize("source", WAYS)
@pytest.mark.parametrize("most", [3, 4096])
def test_remembered_tools_are_written_as_transformers_writes_them(
    source: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollora.templates.offer.REMEMBERED", most)
    template, known = ChatTemplate(source), OfferedTools()
    specs = [spec(number) for number in range(6)]
    offers = [specs[:2], specs[2:5], specs[:2], [specs[5], specs[0]], specs[1:3]]
    for tools in offers * 2:
        bound = template.bind(known.offer(tools))
        [wanted], _ = render_jinja_template(
            [SAID], tools=[tool.as_openai() for tool in tools], chat_template=source
        )
        assert bound.render(SAID) == wanted
        assert bound.render(SAID, add_generation_prompt=True) == wanted


def test_a_conversation_without_tools_offers_none() -> None:
    bound = ChatTemplate("{{ tools is none }}").bind(OfferedTools().offer(()))
    assert bound.render(SAID) == "True"


def test_an_offer_outlives_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smollora.templates.offer.REMEMBERED", 1)
    template, known = ChatTemplate("{{ tools[0].function | tojson }}"), OfferedTools()
    bound = template.bind(known.offer([spec(0)]))
    before = bound.render(SAID)
    for number in range(1, 50):  # their objects may take the places of those forgotten
        template.bind(known.offer([spec(number)])).render(SAID)
    assert bound.render(SAID) == before


def test_keys_and_methods_of_messages_are_told_apart() -> None:
    source = "{{ messages[0].content }}|{{ messages[0].items() | list | length }}|" + (
        "{{ messages[0].missing is undefined }}|{{ messages[0].content.upper().strip('W') }}|"
        "{{ '%s' | format(messages[0].role) }}|{{ 'a-b'.split('-') | join(',') }}"
    )
    [wanted], _ = render_jinja_template([SAID], chat_template=source)
    assert ChatTemplate(source).render(SAID) == wanted
