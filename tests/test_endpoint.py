"""The client of OpenAI-compatible servers: what it asks, what it reads, how it fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from doctor_models import ServedTokenizer
from fake_server import FakeServer
from smollora.endpoint import Endpoint, EndpointError, ServedGenerator
from smollora.endpoint.chat_form import ServedCall, reassemble, request_messages, with_call_ids
from smollora.endpoint.wire import plain_url, printable
from smollora.templates.engine import load_shipped
from smollora.types import Message, ToolCall, ToolSpec

TOOL = ToolSpec("find", "Finds.", {"type": "object", "properties": {"what": {"type": "string"}}})
ASKED = [Message("user", "Where is it?")]
CALL = '<tool_call>\n{"name": "find", "arguments": {"what": "Łódź 🙂"}}\n</tool_call>'
SECRET = "sk-very-secret"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return ServedTokenizer(load_shipped("chatml_tools"))


@pytest.fixture
def server(tokenizer: Any) -> Iterator[FakeServer]:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*tokenizer.encode(CALL, add_special_tokens=False), end]
    with FakeServer(tokenizer, lambda prompt: ids, frozenset({end})) as served:
        yield served


@pytest.fixture
def endpoint(server: FakeServer) -> Iterator[Endpoint]:
    with Endpoint(server.url, timeout=60.0) as made:
        made.connect()
        yield made


def failure(action: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        action()
    assert caught.value.hint
    return caught.value


# ── what it asks and reads ────────────────────────────────────────────────────────────────────


def test_a_complete_and_a_streamed_answer_hold_the_same(endpoint: Endpoint) -> None:
    complete = endpoint.chat(ASKED, [TOOL])
    streamed = endpoint.chat(ASKED, [TOOL], stream=True)
    for answer in (complete, streamed):
        (call,) = answer.calls
        assert (call.name, call.arguments) == ("find", '{"what": "Łódź 🙂"}')
        assert answer.finish_reason == "tool_calls"
    assert complete.token_ids == streamed.token_ids
    assert complete.prompt_token_ids == endpoint.tokenize(ASKED, [TOOL])
    assert streamed.prompt_token_ids == complete.prompt_token_ids
    assert not complete.deltas
    assert len(streamed.deltas) > 5


def test_deltas_are_seen_as_they_come(endpoint: Endpoint) -> None:
    seen: list[dict[str, Any]] = []
    answer = endpoint.chat(ASKED, [TOOL], stream=True, on_delta=seen.append)
    assert reassemble(seen)[2] == answer.calls


def test_a_server_that_knows_no_ids_gives_none(server: FakeServer, endpoint: Endpoint) -> None:
    server.ids = False
    for stream in (False, True):
        answer = endpoint.chat(ASKED, [TOOL], stream=stream)
        assert (answer.prompt_token_ids, answer.token_ids) == (None, None)
        assert answer.calls
    assert endpoint.tokenize(ASKED, [TOOL]) is None
    assert endpoint.complete([1, 2]).token_ids is None


def test_arguments_go_out_as_text_and_results_bear_the_id_of_their_call() -> None:
    messages = [
        Message("user", "?"),
        Message("assistant", calls=(ToolCall("f", {"a": "ü"}), ToolCall("g", {}, "own"))),
        Message("tool", "1"),
        Message("tool", "2", call_id="own"),
    ]
    turns = request_messages(messages)
    calls = turns[1]["tool_calls"]
    assert calls[0]["function"]["arguments"] == '{"a": "ü"}'
    assert [turn["tool_call_id"] for turn in turns[2:]] == [calls[0]["id"], "own"]
    assert with_call_ids(with_call_ids(messages)) == with_call_ids(messages)


def test_calls_are_told_apart_by_index_not_by_order() -> None:
    parts = [
        {"index": 1, "id": "b", "function": {"name": "g"}},
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}},
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": "}"}},
    ]
    found = reassemble([{"tool_calls": [part]} for part in parts] + [{"content": None}])
    assert found == ("", "", (ServedCall("f", "{}", "a"), ServedCall("g", "{}", "b")))


# ── the generator ─────────────────────────────────────────────────────────────────────────────


def test_a_served_model_is_a_generator_of_ids(endpoint: Endpoint, server: FakeServer) -> None:
    done: list[int] = []
    answers = ServedGenerator(endpoint, concurrency=4).generate(
        [[1], [2], [3]], max_new_tokens=64, on_done=done.append
    )
    assert [answer.finish for answer in answers] == ["stop"] * 3
    assert answers[0].token_ids == tuple(server.model([1]))
    assert done == [1, 2, 3]
    short = ServedGenerator(endpoint).generate([[1]], max_new_tokens=3)
    assert (short[0].finish, len(short[0].token_ids)) == ("length", 3)


def test_what_the_server_failed_to_answer_is_kept_apart(
    endpoint: Endpoint, server: FakeServer
) -> None:
    before = len(server.asked)
    server.trouble = lambda path, count: "500" if count == before + 1 else ""
    generator = ServedGenerator(endpoint, concurrency=1)
    answers = generator.generate([[1], [2]], max_new_tokens=64)
    assert [answer.finish for answer in answers] == ["error", "stop"]
    assert {place: error.kind for place, error in generator.failures.items()} == {0: "server_error"}


def test_a_server_that_answers_nothing_is_not_asked_all_prompts(
    endpoint: Endpoint, server: FakeServer
) -> None:
    before = len(server.asked)
    server.trouble = lambda path, count: "500"
    generator = ServedGenerator(endpoint, concurrency=2)
    error = failure(lambda: generator.generate([[n] for n in range(200)], max_new_tokens=4))
    assert error.kind == "server_error" and "the first 16 prompts got no answer" in str(error)
    assert len(server.asked) - before < 30


def test_one_answer_is_reason_enough_to_ask_on(endpoint: Endpoint, server: FakeServer) -> None:
    before = len(server.asked)
    server.trouble = lambda path, count: "" if count == before + 1 else "500"
    generator = ServedGenerator(endpoint, concurrency=1)
    answers = generator.generate([[n] for n in range(30)], max_new_tokens=4)
    assert [answer.finish for answer in answers].count("error") == 29


def test_a_server_without_ids_is_no_generator(endpoint: Endpoint, server: FakeServer) -> None:
    server.ids = False
    error = failure(lambda: ServedGenerator(endpoint).generate([[1]], max_new_tokens=4))
    assert error.kind == "no_ids"


# ── how it fails ──────────────────────────────────────────────────────────────────────────────


def test_nobody_there() -> None:
    assert failure(Endpoint("http://127.0.0.1:9").models).kind == "down"


@pytest.mark.parametrize("url", ["http://", "ftp://host", "http://host:0", "http://host:port"])
def test_what_is_no_address_is_refused(url: str) -> None:
    assert failure(lambda: Endpoint(url)).kind == "down"


def test_addresses_are_taken_as_people_write_them() -> None:
    for url in ("127.0.0.1:8000", "http://127.0.0.1:8000/", "http://me:word@127.0.0.1:8000/v1/"):
        assert plain_url(url) == "http://127.0.0.1:8000"
    assert plain_url("https://host/proxy/v1") == "https://host/proxy"


def test_a_wrong_model_name_lists_the_models_there_are(server: FakeServer) -> None:
    error = failure(Endpoint(server.url, "other").connect)
    assert error.kind == "wrong_model"
    assert "fake" in error.hint
    error = failure(lambda: Endpoint(server.url, "other").chat(ASKED))
    assert error.kind == "wrong_model"


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("html", "not_json"), ("500", "server_error"), ("json", "bad_answer")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_strange_answers_have_their_own_word(
    server: FakeServer, endpoint: Endpoint, trouble: str, kind: str, stream: bool
) -> None:
    server.trouble = lambda path, count: trouble
    error = failure(lambda: endpoint.chat(ASKED, stream=stream))
    assert error.kind == kind
    assert "\x1b" not in str(error)


@pytest.mark.parametrize(
    ("trouble", "kind", "seconds"),
    [
        ("truncated", "truncated_stream", 60.0),
        ("error event", "server_error", 60.0),
        ("endless", "endless", 60.0),
        ("drip", "endless", 2.0),
        ("slow", "timeout", 0.5),
    ],
)
def test_a_stream_ends_in_bounded_time_and_size(
    server: FakeServer, trouble: str, kind: str, seconds: float
) -> None:
    """An endless one meets the bound on size, one that drips the deadline."""
    server.trouble = lambda path, count: trouble
    with Endpoint(server.url, "fake", timeout=seconds, max_bytes=300_000) as endpoint:
        assert failure(lambda: endpoint.chat(ASKED, stream=True)).kind == kind


def test_a_busy_server_is_asked_again_and_a_generation_that_failed_is_not(
    server: FakeServer, endpoint: Endpoint
) -> None:
    before = len(server.asked)
    server.trouble = lambda path, count: "busy" if count == before + 1 else ""
    assert endpoint.chat(ASKED, [TOOL]).calls
    assert len(server.asked) == before + 2
    server.trouble = lambda path, count: "500"
    failure(lambda: endpoint.chat(ASKED))
    assert len(server.asked) == before + 3


def test_the_key_goes_into_one_header_and_into_no_message(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLORA_API_KEY", SECRET)
    endpoint = Endpoint(server.url, "fake")
    server.model = lambda prompt: [1]
    endpoint.chat(ASKED)
    path, body, headers = server.asked[-1]
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in repr(body) + repr(endpoint) + path
    server.name = SECRET  # a server that says the key back to us
    said = failure(lambda: Endpoint(server.url, f"x{SECRET}").chat(ASKED))
    assert SECRET not in str(said)


def test_text_of_a_stranger_is_shown_on_one_line_without_control_characters() -> None:
    assert printable("a\x1b[31m\nb\u202e" + "c" * 900, 20) == "a [31m b " + "c" * 10 + "…"
