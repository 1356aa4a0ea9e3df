"""What is trained, token by token: hand-written segments, transformers' own renderer and masks."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from smollora.formats.hermes import HERMES
from smollora.render import Renderer, as_openai
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from smollora.types import Conversation, Message, Reject, Rendered, ToolCall, ToolSpec
from tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHATML = load_shipped("chatml_tools")
WITHOUT_MARKERS = re.sub(r"\{%- (end)?generation -%\}", "", CHATML)

RAIN = ToolSpec(
    "rain",
    "Does it rain?",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CALL = ToolCall("rain", {"city": "Łódź"})
CHAT = Conversation(
    "chat",
    "made-up",
    (
        Message("system", "Be brief."),
        Message("user", "Rain in Łódź?"),
        Message("assistant", "I look.", (CALL,)),
        Message("tool", "pouring", name="rain"),
        Message("assistant", "Yes, take an umbrella."),
        Message("user", "Thanks, and in Porto?"),
        Message("assistant", "", (CALL, ToolCall("rain", {"city": "Porto"}))),
    ),
    (RAIN,),
)


def renderer(
    template: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER, **more: Any
) -> Renderer:
    return Renderer(template, tokenizer, read_token_facts(tokenizer, HERMES, template), **more)


def rows_of(template: str, conversation: Conversation) -> tuple[Rendered, ...]:
    rows = renderer(template).row(conversation)
    assert not isinstance(rows, Reject), rows
    return rows


def refusal(template: str, conversation: Conversation) -> str:
    result = renderer(template).row(conversation)
    assert isinstance(result, Reject), result
    assert conversation.id in result.detail
    return result.reason


def segments(row: Rendered) -> list[tuple[int, bool, str]]:
    """Neighbouring tokens with one owner and one label, as text."""
    columns = zip(row.owner, row.trained, row.token_ids, strict=True)
    return [
        (owner, trained, TOKENIZER.decode([token for *_, token in group]))
        for (owner, trained), group in groupby(columns, key=lambda column: column[:2])
    ]


def trained_texts(row: Rendered) -> list[str]:
    return [text for _, trained, text in segments(row) if trained]


# ── what is trained exactly ───────────────────────────────────────────────────────────────────

SEGMENTS = [
    (-1, False, "<|im_start|>system\n"),
    (0, False, "Be brief."),
    (
        -1,
        False,
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user. Call only a"
        " function that fits the request; otherwise answer in plain text.\n\n<tools>\n"
        '{"name": "rain", "description": "Does it rain?", "parameters": {"type": "object",'
        ' "properties": {"city": {"type": "string"}}, "required": ["city"]}}\n'
        "</tools>\n\nFor each function call, write:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n",
    ),
    (1, False, "Rain in Łódź?"),
    (-1, False, "<|im_end|>\n<|im_start|>assistant\n"),
    (
        2,
        True,
        'I look.\n<tool_call>\n{"name": "rain", "arguments": {"city": "Łódź"}}\n</tool_call>'
        "<|im_end|>",
    ),
    (-1, False, "\n<|im_start|>tool\n<tool_response>\n"),
    (3, False, "pouring"),
    (-1, False, "\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
    (4, True, "Yes, take an umbrella.<|im_end|>"),
    (-1, False, "\n<|im_start|>user\n"),
    (5, False, "Thanks, and in Porto?"),
    (-1, False, "<|im_end|>\n<|im_start|>assistant\n"),
    (
        6,
        True,
        '<tool_call>\n{"name": "rain", "arguments": {"city": "Łódź"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "rain", "arguments": {"city": "Porto"}}\n</tool_call><|im_end|>',
    ),
    (-1, False, "\n"),
]


@pytest.mark.parametrize("template", [CHATML, WITHOUT_MARKERS], ids=["marked", "unmarked"])
def test_chatml_tools_trains_the_answers_and_their_stop_token_and_nothing_else(
    template: str,
) -> None:
    assert "generation -%}" in CHATML
    assert "generation -%}" not in WITHOUT_MARKERS
    (row,) = rows_of(template, CHAT)
    assert segments(row) == SEGMENTS
    assert len(row.token_ids) == len(row.owner) == len(row.trained)


def test_tokens_and_labels_are_those_of_transformers_for_a_marked_template() -> None:
    (row,) = rows_of(CHATML, CHAT)
    wanted = TOKENIZER.apply_chat_template(
        as_openai(CHAT.messages),
        tools=[RAIN.as_openai()],
        chat_template=CHATML,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert list(row.token_ids) == wanted["input_ids"]
    assert [int(trained) for trained in row.trained] == wanted["assistant_masks"]


def test_the_prompt_that_a_server_renders_is_what_stands_before_the_label() -> None:
    (row,) = rows_of(CHATML, CHAT)
    for index, message in enumerate(CHAT.messages):
        if message.role != "assistant":
            continue
        prompt = renderer(CHATML).prompt_ids(CHAT.messages[:index], CHAT.tools)
        wanted = TOKENIZER.apply_chat_template(
            as_openai(CHAT.messages[:index]),
            tools=[RAIN.as_openai()],
            chat_template=CHATML,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert list(prompt) == wanted
        assert row.token_ids[: len(prompt)] == prompt
        assert row.trained[len(prompt)]
        assert not row.trained[len(prompt) - 1]


@pytest.mark.parametrize("thinking", [True, False])
def test_an_empty_think_block_of_the_prompt_is_not_trained(thinking: bool) -> None:
    """SmolLM3's no_think prompt supplies it (FACTS 1, point 8); only /think has to write one."""
    said = "" if thinking else "/no_think"
    chat = Conversation(
        "think",
        "made-up",
        (
            Message("system", said or "/think"),
            Message("user", "Rain?"),
            Message("assistant", "Yes.", reasoning="Clouds." if thinking else ""),
        ),
    )
    (row,) = rows_of(load_shipped("smollm3"), chat)
    expected = "<think>\nClouds.\n</think>\nYes.<|im_end|>" if thinking else "Yes.<|im_end|>"
    assert trained_texts(row) == [expected]


CONTENT = st.text(max_size=20).filter(
    lambda text: "<" not in text and (not text or not text[0].isspace())
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.integers() | CONTENT | st.none(), max_size=3)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(CONTENT, CONTENT, st.lists(st.builds(ToolCall, CONTENT, ARGUMENTS), max_size=2)),
        min_size=1,
        max_size=4,
    )
)
def test_any_turn_is_trained_from_its_first_token_to_its_stop_token(
    turns: list[tuple[str, str, list[ToolCall]]],
) -> None:
    messages: list[Message] = []
    expected: list[str] = []
    for asked, said, calls in turns:
        messages += [Message("user", asked), Message("assistant", said, tuple(calls))]
        between = "\n" if said and calls else ""
        expected.append(said + between + HERMES.show(calls) + "<|im_end|>")
    (row,) = rows_of(CHATML, Conversation("any", "made-up", tuple(messages), (RAIN,)))
    assert trained_texts(row) == expected
    assert row.token_ids == tuple(TOKENIZER.encode(TOKENIZER.decode(list(row.token_ids))))


# ── templates that rewrite history ────────────────────────────────────────────────────────────

FORGETS_THOUGHTS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content and loop.last %}"
    "<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: thinking is kept in the last turn only."""

THOUGHTFUL = Conversation(
    "thoughtful",
    "made-up",
    (
        Message("user", "One?"),
        Message("assistant", "1", reasoning="uno"),
        Message("user", "Two?"),
        Message("assistant", "2", reasoning="due"),
        Message("user", "Three?"),
        Message("assistant", "3", reasoning="tre"),
    ),
)


def test_a_template_that_rewrites_history_gives_one_row_per_trained_turn() -> None:
    rows = rows_of(FORGETS_THOUGHTS, THOUGHTFUL)
    assert [TOKENIZER.decode(list(row.token_ids)) for row in rows] == [
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n<think>uno</think>1<|im_end|>",
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n<think>due</think>2<|im_end|>",
        "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        "<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nThree?<|im_end|>\n"
        "<|im_start|>assistant\n<think>tre</think>3<|im_end|>\n",
    ]
    assert [trained_texts(row) for row in rows] == [
        ["<think>uno</think>1<|im_end|>"],
        ["<think>due</think>2<|im_end|>"],
        ["<think>tre</think>3<|im_end|>"],
    ]
    assert [{o for o, t in zip(r.owner, r.trained, strict=True) if t} for r in rows] == [
        {1},
        {3},
        {5},
    ]


def test_turns_without_thoughts_share_one_row_under_the_same_template() -> None:
    plain = Conversation(
        "plain", "made-up", tuple(Message(m.role, m.content) for m in THOUGHTFUL.messages)
    )
    (row,) = rows_of(FORGETS_THOUGHTS, plain)
    assert trained_texts(row) == ["1<|im_end|>", "2<|im_end|>", "3<|im_end|>"]


def test_only_the_turns_that_are_rewritten_get_rows_of_their_own() -> None:
    mixed = Conversation(
        "mixed",
        "made-up",
        (
            *THOUGHTFUL.messages[:2],
            Message("user", "Two?"),
            Message("assistant", "2"),
            *THOUGHTFUL.messages[4:],
        ),
    )
    rows = rows_of(FORGETS_THOUGHTS, mixed)
    assert [trained_texts(row) for row in rows] == [
        ["<think>uno</think>1<|im_end|>"],
        ["2<|im_end|>", "<think>tre</think>3<|im_end|>"],
    ]


# ── refusals ──────────────────────────────────────────────────────────────────────────────────

HELLO = Conversation(
    "hello", "made-up", (Message("user", "Hello?"), Message("assistant", "Good day."))
)
PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_plain_template_trains_plain_answers() -> None:
    (row,) = rows_of(PLAIN, HELLO)
    assert trained_texts(row) == ["Good day.<|im_end|>"]


def test_a_generation_prompt_that_is_not_how_the_turn_starts_is_refused() -> None:
    """Training would teach a prompt that no server ever sends."""
    other = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>model\n{% endif")
    assert refusal(other, HELLO) == "prompt_mismatch"
    none = PLAIN.replace("{% if add_generation_prompt %}", "{% if false %}")
    (row,) = rows_of(none, HELLO)
    assert trained_texts(row) == ["<|im_start|>assistant\nGood day.<|im_end|>"]
    think = PLAIN.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert refusal(think, HELLO) == "prompt_mismatch"


def test_a_turn_without_its_stop_token_is_refused() -> None:
    open_end = PLAIN.replace("<|im_end|>", "{{ '<|im_end|>' if message.role == 'user' }}")
    assert refusal(open_end, HELLO) == "no_stop_token"


def test_a_conversation_without_an_answer_has_nothing_to_train() -> None:
    asked = Conversation("asked", "made-up", (Message("user", "Hello?"),))
    assert refusal(PLAIN, asked) == "nothing_to_train"


def test_a_template_that_raises_is_a_reason_and_no_traceback() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    result = renderer(template).row(HELLO)
    assert isinstance(result, Reject)
    assert result.reason == "template_error"
    assert "roles must alternate" in result.detail


def test_a_token_that_stands_on_both_sides_of_the_prompts_end_is_refused() -> None:
    """Two newlines may be one token where they meet, and are two where a prompt ends between."""
    backend = tiny_tokenizer()
    backend.add_tokens(["\n\n"])
    chat = Conversation(
        "newline", "made-up", (Message("user", "Hello?"), Message("assistant", "\nGood day."))
    )
    result = renderer(PLAIN, backend).row(chat)
    assert isinstance(result, Reject)
    assert result.reason == "boundary_inside_token"


# ── many rows ─────────────────────────────────────────────────────────────────────────────────


def test_rows_come_back_in_order_whatever_the_batch_and_refusals_keep_their_place() -> None:
    asked = Conversation("asked", "made-up", (Message("user", "Hello?"),))
    many = [HELLO, THOUGHTFUL, asked, HELLO, asked, THOUGHTFUL, HELLO]
    rendered = renderer(FORGETS_THOUGHTS)
    alone = [rendered.row(one) for one in many]
    assert [isinstance(result, Reject) for result in alone] == [c is asked for c in many]
    assert [len(r) for r in alone if not isinstance(r, Reject)] == [1, 3, 1, 3, 1]
    for batch in (1, 2, 3, 100):
        assert list(rendered.rows(many, batch=batch)) == alone


def test_truncation_and_padding_left_in_tokenizer_json_change_no_row() -> None:
    """Saved tokenizers often carry both; reading the facts puts them out of action."""
    spoiled = tiny_tokenizer()
    spoiled.backend_tokenizer.enable_truncation(12)
    spoiled.backend_tokenizer.enable_padding(length=64)
    assert renderer(CHATML, spoiled).row(CHAT) == rows_of(CHATML, CHAT)


def test_a_message_is_not_found_again_in_a_later_turn() -> None:
    chat = Conversation(
        "again",
        "made-up",
        (
            Message("user", "Porto"),
            Message("assistant", "A city."),
            Message("user", "Does it rain in Porto today?"),
            Message("assistant", "Yes."),
        ),
    )
    (row,) = rows_of(PLAIN, chat)
    assert [(owner, text) for owner, _, text in segments(row) if owner >= 0] == [
        (0, "Porto"),
        (1, "A city.<|im_end|>"),
        (2, "Does it rain in Porto today?"),
        (3, "Yes.<|im_end|>"),
    ]


def test_the_day_is_frozen_unless_one_is_given() -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }}" + PLAIN
    (row,) = rows_of(dated, HELLO)
    assert TOKENIZER.decode(list(row.token_ids)).startswith("2025-07-08<|im_start|>")
    later = renderer(dated, date="2026-11-22").row(HELLO)
    assert not isinstance(later, Reject)
    assert TOKENIZER.decode(list(later[0].token_ids)).startswith("2026-11-22<|im_start|>")


# ── where a turn ends ─────────────────────────────────────────────────────────────────────────


def with_stops(template: str, *stops: str) -> Renderer:
    ids = tuple(TOKENIZER.convert_tokens_to_ids(list(stops)))
    return Renderer(template, TOKENIZER, read_token_facts(TOKENIZER, HERMES, template, ids))


def only_row(made: Renderer, conversation: Conversation) -> Rendered:
    rows = made.row(conversation)
    assert not isinstance(rows, Reject), rows
    (row,) = rows
    return row


def test_a_turn_ends_at_its_first_stop_token_whatever_the_template_writes_after_it() -> None:
    """As Phi-3's, which ends every text with <|endoftext|>; the last stop token was trained."""
    template = PLAIN.replace("{% endif %}", "{% else %}<|endoftext|>{% endif %}")
    two = Conversation("two", "made-up", THOUGHTFUL.messages[:4])
    row = only_row(with_stops(template, "<|endoftext|>"), two)
    assert trained_texts(row) == ["1<|im_end|>", "2<|im_end|>"]
    assert TOKENIZER.decode(list(row.token_ids)).endswith("<|im_end|>\n<|endoftext|>")


def test_a_turn_that_goes_on_after_a_stop_token_is_refused() -> None:
    template = PLAIN.replace("<|im_end|>\n", "<|im_end|>\n(end of turn)")
    assert refusal(template, HELLO) == "text_after_stop"


NEXT_SPEAKER = (
    "{% for message in messages %}{{ {'user': '<|im_start|>', 'assistant': '<think>',"
    " 'tool': '<tool_response>'}[message.role] }}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
)
"""As GLM's: no turn is closed; a model stops at the header of whoever speaks next."""


def test_a_model_that_stops_at_the_next_speaker_learns_to() -> None:
    row = only_row(with_stops(NEXT_SPEAKER, "<|im_start|>", "<tool_response>"), CHAT_WITHOUT_SYSTEM)
    assert trained_texts(row) == [
        "I look.<tool_call>rain</tool_call><tool_response>",
        "Yes, take an umbrella.<|im_start|>",
        "<tool_call>rain</tool_call><tool_call>rain</tool_call><tool_response>",
    ]
    assert TOKENIZER.decode(list(row.token_ids)).endswith("</tool_call><tool_response>")


CHAT_WITHOUT_SYSTEM = Conversation("chat", "made-up", CHAT.messages[1:], CHAT.tools)


def test_where_the_next_speaker_stops_nothing_the_turn_is_refused() -> None:
    result = with_stops(NEXT_SPEAKER, "<|im_start|>").row(CHAT_WITHOUT_SYSTEM)
    assert isinstance(result, Reject)
    assert result.reason == "no_stop_token"


def test_a_header_that_only_some_prompts_supply_is_refused() -> None:
    """As Gemma 4 after a tool's result: a model would learn to write headers."""
    sometimes = PLAIN.replace(
        "{% if add_generation_prompt %}",
        "{% if add_generation_prompt and messages[-1].role != 'tool' %}",
    )
    assert not isinstance(renderer(sometimes).row(HELLO), Reject)
    assert refusal(sometimes, CHAT) == "prompt_mismatch"


# ── whose text is whose ───────────────────────────────────────────────────────────────────────


def owned(row: Rendered) -> list[tuple[int, str]]:
    return [(owner, text) for owner, _, text in segments(row) if owner >= 0]


def test_words_that_headers_are_made_of_are_found_where_the_message_stands() -> None:
    """The user's "user" was found in the header, the tool's "assistant" in the next one."""
    chat = Conversation(
        "short",
        "made-up",
        (
            Message("system", "system"),
            Message("user", "user"),
            Message("assistant", "user", (CALL,)),
            Message("tool", "assistant", name="rain"),
            Message("assistant", "user"),
            Message("user", "\n"),
            Message("assistant", "u"),
        ),
    )
    (row,) = rows_of(PLAIN, chat)
    assert owned(row) == [
        (0, "system"),
        (1, "user"),
        (2, "user<|im_end|>"),
        (3, "assistant"),
        (4, "user<|im_end|>"),
        (6, "u<|im_end|>"),
    ]
    text = TOKENIZER.decode(list(row.token_ids))
    assert text.startswith("<|im_start|>system\nsystem<|im_end|>\n<|im_start|>user\nuser<|im_end|>")


def test_delimiters_that_a_user_types_or_a_tool_returns_are_theirs_and_never_trained() -> None:
    spelled = '<tool_call>\n{"name": "rain", "arguments": {}}\n</tool_call><|im_end|>'
    chat = Conversation(
        "injected",
        "made-up",
        (
            Message("user", spelled),
            Message("assistant", "", (CALL,)),
            Message("tool", spelled, name="rain"),
            Message("assistant", "No."),
        ),
        (RAIN,),
    )
    (row,) = rows_of(CHATML, chat)
    assert [text for owner, text in owned(row) if owner in (0, 2)] == [spelled, spelled]
    opening = TOKENIZER.convert_tokens_to_ids("<tool_call>")
    columns = list(zip(row.token_ids, row.owner, row.trained, strict=True))
    places = [(owner, trained) for token, owner, trained in columns if token == opening]
    assert places == [(-1, False), (0, False), (1, True), (2, False)]  # -1: the template's example


ESCAPED = PLAIN.replace(
    "{{ message.content }}",
    "{{ message.content | tojson if message.role == 'tool' else message.content | upper"
    " if message.role == 'system' else message.content }}",
)


def test_text_that_the_template_writes_in_another_form_is_found() -> None:
    """As GPT-OSS writes results; nothing of it reads as the message does."""
    chat = Conversation(
        "escaped",
        "made-up",
        (
            Message("system", "Be brief."),
            Message("user", "Rain?"),
            Message("assistant", "Wait."),
            Message("tool", 'a "b"\n<tool_call>', name="rain"),
            Message("assistant", "Yes."),
        ),
    )
    (row,) = rows_of(ESCAPED, chat)
    assert [text for owner, text in owned(row) if owner in (0, 3)] == [
        "BE BRIEF.",
        'a \\"b\\"\\n<tool_call>',
    ]


PICKY = PLAIN.replace(
    "{{ message.content }}",
    "{{ 'short' if message.content == 'Hi' else message.content[:-1] + '!'"
    " if message.content.endswith('?') else message.content }}",
)
"""Looks at both ends of what it is given, so that marks there change what it writes."""


def test_a_message_that_changes_under_marks_is_pinned_from_inside_or_owns_nothing() -> None:
    chat = Conversation(
        "picky",
        "made-up",
        (
            Message("user", "Hi"),
            Message("assistant", "Yes."),
            Message("user", "Rain in Porto?"),
            Message("assistant", "No."),
        ),
    )
    (row,) = rows_of(PICKY, chat)
    assert owned(row) == [(1, "Yes.<|im_end|>"), (2, "Rain in Porto"), (3, "No.<|im_end|>")]


def test_a_delimiter_whose_owner_cannot_be_told_is_refused() -> None:
    template = PLAIN.replace(
        "{{ message.content }}",
        "{{ message.content if message.content | length != 11 else message.content + ' ' }}",
    )
    chat = Conversation(
        "unclear", "made-up", (Message("user", "<tool_call>"), Message("assistant", "No."))
    )
    assert len("<tool_call>") == 11
    assert refusal(template, chat) == "owner_unclear"
    plain = Conversation(
        "clear", "made-up", (Message("user", "eleven here"), Message("assistant", "No."))
    )
    (row,) = rows_of(template, plain)
    assert owned(row) == [(1, "No.<|im_end|>")]


def test_a_message_that_is_written_twice_owns_both_places() -> None:
    twice = PLAIN.replace("{{ message.content }}", "{{ message.content }}{{ message.content }}")
    (row,) = rows_of(twice, HELLO)
    assert owned(row) == [(0, "Hello?Hello?"), (1, "Good day.Good day.<|im_end|>")]


# ── forms of content, borders, many batches ───────────────────────────────────────────────────


def test_a_template_that_reads_parts_is_given_parts() -> None:
    """As vision models; a string would render as nothing, and empty answers would be taught."""
    parts = PLAIN.replace(
        "{{ message.content }}",
        "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}",
    )
    assert renderer(parts).takes_parts
    assert not renderer(PLAIN).takes_parts
    assert rows_of(parts, THOUGHTFUL) == rows_of(PLAIN, THOUGHTFUL)
    assert renderer(parts).prompt_ids(HELLO.messages[:1]) == renderer(PLAIN).prompt_ids(
        HELLO.messages[:1]
    )


@pytest.mark.parametrize("trim", [True, False])
def test_offsets_without_their_space_change_no_label(trim: bool) -> None:
    """Llama 3's tokenizer.json leaves the space of a token out of its offsets."""
    spaced = PLAIN.replace("assistant\n{% endif", "assistant:{% endif").replace(
        "{{ message.role }}\n",
        "{{ message.role }}{{ ': ' if message.role == 'assistant' else '\n' }}",
    )
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    porto = Conversation(
        "porto", "made-up", (Message("user", "Where?"), Message("assistant", "Porto rains"))
    )
    assert len(tokenizer.tokenize(" Porto")[0]) > 1  # the space and a letter are one token
    row = only_row(renderer(spaced, tokenizer), porto)
    assert trained_texts(row) == [" Porto rains<|im_end|>"]
    inside = spaced.replace("assistant:{% endif", "assistant: {% endif")
    result = renderer(inside, tokenizer).row(porto)
    assert isinstance(result, Reject)
    assert result.reason == "boundary_inside_token"


def test_tools_are_written_alike_however_often_a_conversation_is_rendered() -> None:
    """Their JSON is kept between the renderings of one conversation, and only there."""
    rendered = renderer(CHATML)
    other = ToolSpec("snow", "Does it snow?", {"type": "object", "properties": {}})
    for tools in ((RAIN,), (other,), (RAIN, other), ()):
        (row,) = rows_of(CHATML, Conversation("tools", "made-up", CHAT.messages, tools))
        (again,) = (rendered.row(Conversation("tools", "made-up", CHAT.messages, tools)),)
        assert again == (row,)
        wanted = TOKENIZER.apply_chat_template(
            as_openai(CHAT.messages),
            tools=[tool.as_openai() for tool in tools] or None,
            chat_template=CHATML,
            return_dict=False,
        )
        assert list(row.token_ids) == wanted


SPOKEN = st.text(alphabet=st.sampled_from("ab \n.Łé東🙂’\u0301<|im_end|>"), max_size=12)


@settings(max_examples=80)
@given(st.lists(st.tuples(SPOKEN, CONTENT), min_size=1, max_size=3))
def test_lengths_of_tokens_say_the_same_as_their_offsets(turns: list[tuple[str, str]]) -> None:
    """Offsets cost a fifth of the time; they are asked for where lengths do not add up."""
    messages = [
        Message(role, text)
        for asked, said in turns
        for role, text in (("user", asked), ("assistant", said))
    ]
    chat = Conversation("any", "made-up", tuple(messages))
    fast, slow = renderer(PLAIN), renderer(PLAIN)
    slow._columns.lengths = None
    assert fast._columns.lengths is not None
    assert fast.row(chat) == slow.row(chat)


def test_a_tokenizer_that_changes_the_text_is_asked_for_offsets() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    chat = Conversation(
        "nfc", "made-up", (Message("user", "e\u0301?"), Message("assistant", "e\u0301."))
    )
    row = only_row(renderer(PLAIN, tokenizer), chat)
    assert trained_texts(row) == ["é.<|im_end|>"]
    assert owned(row)[0] == (0, "é?")
