"""A server that answers, as a fake that speaks HTTP; and one that does not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from smollora.chat.remote import EndpointAnswerer
from smollora.chat.session import Session
from smollora.chat.settings import Settings
from smollora.endpoint import Endpoint, EndpointError
from smollora.types import Message, ToolCall, ToolSpec

TOOL = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}})
Serve = Callable[..., tuple[EndpointAnswerer, list[dict[str, Any]]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve([delta, ...], ...)`: an answerer for a server that streams those, and the requests; a
    number instead of deltas is a status, with a text.
    """
    servers = []

    def started(*answers: Any) -> tuple[EndpointAnswerer, list[dict[str, Any]]]:
        left, requests = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append(json.loads(body))
                answer = left.pop(0)
                if isinstance(answer, tuple):
                    self.send_response(answer[0])
                    self.end_headers()
                    self.wfile.write(json.dumps({"error": {"message": answer[1]}}).encode())
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for delta in answer:
                    event = {"choices": [{"index": 0, "delta": delta}]}
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
                self.wfile.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}", "m", timeout=20)
        return EndpointAnswerer(endpoint), requests

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(**more: Any) -> Session:
    return Session("Be brief.", (Message("user", "Look."),), (TOOL,), **more)


def test_text_and_thoughts_are_told_as_they_come(serve: Serve) -> None:
    answerer, requests = serve([{"reasoning": "Hm."}, {"content": "It "}, {"content": "is."}])
    told: list[tuple[str, str]] = []
    answer = answerer.answer(asked(), lambda kind, text: told.append((kind, text)))
    assert told == [("thought", "Hm."), ("text", "It "), ("text", "is.")]
    assert answer.message == Message("assistant", "It is.", reasoning="Hm.")
    assert answer.token_ids is None
    assert [m["role"] for m in requests[0]["messages"]] == ["system", "user"]
    assert requests[0]["tools"] == [TOOL.as_openai()]


def test_calls_come_out_decoded_and_bad_ones_as_attempts(serve: Serve) -> None:
    good = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at": '}}
    rest = {"index": 0, "function": {"arguments": '"it"}'}}
    bad = {"index": 1, "id": "c2", "function": {"name": "look", "arguments": "{at"}}
    answerer, _ = serve([{"tool_calls": [good]}, {"tool_calls": [rest]}, {"tool_calls": [bad]}])
    answer = answerer.answer(asked(), lambda kind, text: None)
    assert answer.message.calls == (ToolCall("look", {"at": "it"}, "c1"),)
    assert [attempt.status for attempt in answer.attempts] == ["ok", "bad_syntax"]


def test_what_was_never_set_is_left_to_the_server(serve: Serve) -> None:
    answerer, requests = serve([{"content": "a"}], [{"content": "b"}], [{"content": "c"}])
    answerer.answer(asked(), lambda kind, text: None)
    chosen = Settings(temperature=0.5, seed=3)
    answerer.answer(asked(settings=chosen, thinking=False), lambda kind, text: None)
    answerer.answer(asked(settings=Settings(do_sample=False)), lambda kind, text: None)
    assert not {"temperature", "top_p", "seed", "chat_template_kwargs"} & set(requests[0])
    assert (requests[1]["temperature"], requests[1]["seed"]) == (0.5, 3)
    assert requests[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert requests[2]["temperature"] == 0.0


def test_a_prompt_that_is_too_long_loses_its_oldest_exchange(serve: Serve) -> None:
    long = (400, "This model's maximum context length is 64 tokens")
    answerer, requests = serve(long, [{"content": "Yes."}])
    history = (Message("user", "One."), Message("assistant", "1"), Message("user", "Two?"))
    answer = answerer.answer(Session(messages=history), lambda kind, text: None)
    assert answer.session is not None and answer.session.start == 2
    assert [m["content"] for m in requests[1]["messages"]] == ["Two?"]


def test_a_server_that_fails_is_one_error(serve: Serve) -> None:
    answerer, _ = serve((500, "out of luck"))
    with pytest.raises(EndpointError):
        answerer.answer(asked(), lambda kind, text: None)
