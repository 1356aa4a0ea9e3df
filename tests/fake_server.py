"""An OpenAI-compatible server in a thread, with vLLM's manners and faults that can be planted.

It renders prompts as vLLM does, with its tokenizer's `apply_chat_template` after decoding the
arguments; a scripted model answers in token ids; `hermes_complete` and `HermesStream` follow vLLM
0.32's parser of that name, and a test holds them to answers recorded from the real one.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Model = Callable[[Sequence[int]], Sequence[int]]
"""Token ids of a prompt to those of the answer, stop token included, as long as it likes."""


# ── vLLM's hermes parser ──────────────────────────────────────────────────────────────────────


def hermes_complete(text: str) -> tuple[str | None, list[dict[str, str]]]:
    """(content, calls) of a complete answer: any bad block voids every call."""
    if OPEN not in text:
        return text, []
    found = re.findall(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", text, re.DOTALL)
    try:
        bodies = [json.loads(closed or left) for closed, left in found]
        calls = [
            {"name": b["name"], "arguments": json.dumps(b["arguments"], ensure_ascii=False)}
            for b in bodies
        ]
    except (ValueError, KeyError, TypeError):
        return text, []
    content = text[: text.find(OPEN)]
    return (content if content.strip() else None), calls


class HermesStream:
    """What each new piece of text adds: regions are read again whole, and what is new is sent."""

    def __init__(self) -> None:
        self.text = ""
        self.sent_content = 0
        self.names: list[bool] = []
        self.sent: list[str] = []

    def feed(self, piece: str) -> dict[str, Any] | None:
        self.text += piece
        content, deltas = self._content(), []
        for i, (body, complete) in enumerate(self._bodies()):
            if i == len(self.names):
                self.names.append(False)
                self.sent.append("")
            if not self.names[i]:
                name = re.search(r'"name"\s*:\s*"([^"]+)"', body)
                if not name:
                    break
                self.names[i] = True
                function = {"name": name[1]}
                deltas.append(
                    {"index": i, "id": f"call-{i}", "type": "function", "function": function}
                )
            arguments = re.search(r'"arguments"\s*:\s*', body)
            if arguments is None:
                continue
            raw = body[arguments.end() :]
            if complete:
                raw = raw.rstrip()
                raw = raw[:-1].rstrip() if raw.endswith("}") else raw
            if len(raw) > len(self.sent[i]):
                new = raw[len(self.sent[i]) :]
                self.sent[i] = raw
                deltas.append({"index": i, "function": {"arguments": new}})
        if not content and not deltas:
            return None
        return {
            **({"content": content} if content else {}),
            **({"tool_calls": deltas} if deltas else {}),
        }

    def _content(self) -> str:
        if OPEN in self.text:
            end = self.text.index(OPEN)
        else:
            end = len(self.text) - _overlap(self.text, OPEN)
        piece = self.text[self.sent_content : end]
        self.sent_content = max(self.sent_content, end)
        return piece

    def _bodies(self) -> Iterator[tuple[str, bool]]:
        place = 0
        while (start := self.text.find(OPEN, place)) >= 0:
            begin = start + len(OPEN)
            end = self.text.find(CLOSE, begin)
            if end < 0:
                raw = self.text[begin:]
                overlap = _overlap(raw, CLOSE)
                body = (raw[:-overlap] if overlap else raw).strip()
                yield body, _is_json(body)
                return
            yield self.text[begin:end].strip(), True
            place = end + len(CLOSE)


def _overlap(text: str, tag: str) -> int:
    longest = min(len(tag) - 1, len(text))
    return next((k for k in range(longest, 0, -1) if text.endswith(tag[:k])), 0)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# ── the server ────────────────────────────────────────────────────────────────────────────────


@dataclass
class FakeServer:
    """`with FakeServer(tokenizer, model) as server: ... server.url`."""

    tokenizer: Any
    """A fast tokenizer of transformers, or what has its members."""
    model: Model
    stops: frozenset[int]
    """Ids at which generation ends."""
    parser: str = "hermes"
    """hermes; mistral (finds nothing in what other models write); none (refuses tools)."""
    ids: bool = True
    """Whether it knows vLLM's ids: return_token_ids and /tokenize."""
    takes_ids: bool = True
    """Whether text completions take a prompt of ids."""
    name: str = "fake"
    extra_prompt: tuple[int, ...] = ()
    """Put before every prompt that is rendered (a BOS twice)."""
    trouble: Callable[[str, int], str] = field(default=lambda path, count: "")
    """(path, requests so far) to "", "500", "html", "slow", "truncated", "endless", "drip", "json",
    "busy" or "error event".
    """
    mangle: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Changes every delta before it is sent."""
    edit: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Changes every complete chat answer before it is sent."""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    """(path, body, headers) of all requests."""

    def __enter__(self) -> FakeServer:
        fake = self

        class Handler(_Handler):
            server_of = fake

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.stopped = threading.Event()
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def render(self, body: dict[str, Any]) -> list[int]:
        messages = [dict(message) for message in body["messages"]]
        for message in messages:
            calls = [
                dict(call, function=dict(call["function"]))
                for call in message.get("tool_calls") or ()
            ]
            for call in calls:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            if calls:
                message["tool_calls"] = calls
        rendered = self.tokenizer.apply_chat_template(
            messages,
            tools=body.get("tools"),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return [*self.extra_prompt, *rendered]

    def generate(self, prompt: Sequence[int], body: dict[str, Any]) -> tuple[list[int], str]:
        stops = self.stops | set(body.get("stop_token_ids") or ())
        ids: list[int] = []
        for token in self.model(prompt):
            ids.append(token)
            if token in stops:
                return ids, "stop"
            if len(ids) == body["max_tokens"]:
                break
        return ids, "length"

    def text(self, ids: Sequence[int], finish: str, body: dict[str, Any]) -> str:
        shown = list(ids[:-1] if finish == "stop" else ids)
        keep = bool(body.get("tools")) or body.get("skip_special_tokens") is False
        return str(self.tokenizer.decode(shown, skip_special_tokens=not keep))

    def parse(self, text: str, tools: Any) -> tuple[str | None, list[dict[str, str]]]:
        return hermes_complete(text) if self.parser == "hermes" and tools else (text, [])

    def deltas(
        self, ids: Sequence[int], finish: str, body: dict[str, Any]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        stream = HermesStream() if self.parser == "hermes" and body.get("tools") else None
        shown = ""
        for end in range(1, len(ids) + 1):
            last = end == len(ids) and finish == "stop"
            text = shown if last else self.text(ids[:end], "length", body)
            piece = "" if text.endswith("\ufffd") else text[len(shown) :]
            shown += piece
            delta = stream.feed(piece) if stream else ({"content": piece} if piece else None)
            yield [ids[end - 1]], delta or {}


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server_of: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle({})

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self._handle(json.loads(self.rfile.read(length)))

    def _handle(self, body: dict[str, Any]) -> None:
        fake = self.server_of
        fake.asked.append((self.path, body, dict(self.headers)))
        trouble = fake.trouble(self.path, len(fake.asked))
        try:
            if trouble and self._make(trouble):
                return
            self._answer(body, trouble)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _make(self, trouble: str) -> bool:
        fake = self.server_of
        if trouble == "500":
            self._json({"error": {"message": "engine is dead"}}, 500)
        elif trouble == "busy":
            self._json({"error": {"message": "later"}}, 503)
        elif trouble == "html":
            self._send(b"<!DOCTYPE html><title>Welcome</title>\x1b[31m", "text/html")
        elif trouble == "json":
            self._json({"choices": "none"})
        elif trouble == "slow":
            fake.stopped.wait(30)
        elif trouble in ("endless", "drip"):
            self._begin_stream()
            while not fake.stopped.is_set():
                event = {"choices": [{"delta": {"content": "la " * 500}, "token_ids": [1] * 500}]}
                self._event(event if trouble == "endless" else None)
                time.sleep(0 if trouble == "endless" else 0.05)
        else:
            return False
        return True

    def _answer(self, body: dict[str, Any], trouble: str) -> None:
        fake = self.server_of
        if self.path == "/v1/models":
            self._json({"data": [{"id": fake.name}]})
        elif body.get("model") != fake.name:
            said = f"The model `{body.get('model')}` does not exist."
            self._json({"error": {"message": said}}, 404)
        elif self.path == "/tokenize" and fake.ids:
            self._json({"tokens": fake.render(body)})
        elif self.path == "/v1/completions" and fake.takes_ids:
            ids, finish = fake.generate(body["prompt"], body)
            choice = {"text": fake.text(ids, finish, body), "finish_reason": finish}
            self._json({"choices": [{**choice, **({"token_ids": ids} if fake.ids else {})}]})
        elif self.path == "/v1/chat/completions":
            if body.get("tools") and fake.parser == "none":
                said = '"auto" tool choice requires --enable-auto-tool-choice and'
                self._json({"error": {"message": said + " --tool-call-parser to be set"}}, 400)
                return
            self._chat(body, trouble)
        else:
            self._json({"detail": "Not Found"}, 404)

    def _chat(self, body: dict[str, Any], trouble: str) -> None:
        fake = self.server_of
        prompt = fake.render(body)
        ids, finish = fake.generate(prompt, body)
        gives = fake.ids and body.get("return_token_ids")
        if body.get("stream"):
            self._stream(body, prompt if gives else None, ids, finish, trouble)
            return
        content, calls = fake.parse(fake.text(ids, finish, body), body.get("tools"))
        listed = [
            {"id": f"call-{i}", "type": "function", "function": c} for i, c in enumerate(calls)
        ]
        message = {"role": "assistant", "content": content, "tool_calls": listed}
        choice = {"message": message, "finish_reason": "tool_calls" if calls else finish}
        if gives:
            choice["token_ids"] = ids
        answer = {"choices": [choice], **({"prompt_token_ids": prompt} if gives else {})}
        self._json(fake.edit(answer) if fake.edit else answer)

    def _stream(
        self,
        body: dict[str, Any],
        prompt: list[int] | None,
        ids: list[int],
        finish: str,
        trouble: str,
    ) -> None:
        fake = self.server_of
        self._begin_stream()
        first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        self._event({**first, **({"prompt_token_ids": prompt} if prompt else {})})
        called = False
        for place, (some, delta) in enumerate(fake.deltas(ids, finish, body)):
            called = called or bool(delta.get("tool_calls"))
            if fake.mangle:
                delta = fake.mangle(delta)
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
            if prompt:
                choice["token_ids"] = some
            if place == len(ids) - 1:
                choice["finish_reason"] = "tool_calls" if called and finish == "stop" else finish
            if trouble == "truncated" and place >= len(ids) // 2:
                self.close_connection = True
                return
            if trouble == "error event" and place >= len(ids) // 2:
                self._event({"error": {"message": "engine is dead", "code": 500}})
            self._event({"choices": [choice]})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _event(self, event: dict[str, Any] | None) -> None:
        self._chunk(b": wait\n\n" if event is None else f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""
