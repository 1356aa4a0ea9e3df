"""Requests to a server, bounded in time and in size, and the words for how they fail.

In: a base URL, a path, a JSON body. Out: decoded JSON, the events of a stream, or `EndpointError`
with its kind. An `EndpointError` is a harness error: it is counted beside the rates and is never a
fault of the model. The surprise: the timeout of an HTTP library bounds the wait for the *next
bytes*; a server that sends one byte a second never meets it. Here the whole request has a
deadline, looked at whenever bytes arrive, so that a request ends after at most twice its timeout.

The API key goes into one header, and is cut out of every text that came from the server; redirects
are not followed, for they would take the key along.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import httpx2

from smollora.errors import SmolloraError

ErrorKind = Literal[
    "down",
    "timeout",
    "unauthorized",
    "not_found",
    "wrong_model",
    "refused",
    "not_json",
    "bad_answer",
    "server_error",
    "truncated_stream",
    "endless",
    "no_ids",
]
"""down: nobody answers. timeout: it accepts and says nothing. refused: it will not do what it was
asked (HTTP 4xx). not_json: HTML or other text. bad_answer: JSON of another shape. truncated_stream:
the connection ended before the answer did. endless: still sending past the limit of time or size.
no_ids: text came where token ids are needed.
"""

HOPELESS: frozenset[ErrorKind] = frozenset(
    {"down", "unauthorized", "not_found", "wrong_model", "not_json", "no_ids"}
)
"""Kinds that the next request would meet again."""
MAX_BYTES = 16_000_000
EXCERPT = 300
RETRY_AFTER = (0.5, 2.0)
"""Seconds before the second and the third try."""
BUSY = (429, 503)
"""The server says that it has not begun: safe to ask again."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class EndpointError(SmolloraError):
    """A request to a server did not give an answer. Not the model's doing."""

    def __init__(
        self, kind: ErrorKind, message: str, hint: str = "", *, status: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.kind = kind
        self.status = status
        """The HTTP status, where there was one."""


def plain_url(url: str) -> str:
    """A base URL without user name, password, query, a final slash or a final /v1."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EndpointError(
            "down", f"{printable(url)} is no address", "write it as http://127.0.0.1:8000"
        )
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/").removesuffix("/v1")
    return urlunsplit((parts.scheme, host, path, "", ""))


def printable(text: str, limit: int = EXCERPT) -> str:
    """Text of a stranger for a terminal: one line, no control characters, not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * limit])
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class Wire:
    """HTTP to one server. Safe to use from several threads."""

    def __init__(self, url: str, *, api_key: str | None, timeout: float, max_bytes: int) -> None:
        self.base = plain_url(url)
        self._key = api_key
        self.timeout = timeout
        self.max_bytes = max_bytes
        local = urlsplit(self.base).hostname in LOOPBACK
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=256),
            trust_env=not local,  # a proxy that is set for the web cannot reach this machine
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON at `path`; a GET is asked again when it fails for a passing reason."""
        return self._json("GET", path, None, again=True)

    def post(self, path: str, body: Mapping[str, Any], *, again: bool = False) -> Any:
        """The JSON answer to `body`. `again`: nothing is lost by asking twice (tokenizing). Without
        it a request is repeated only if the server did not begin with it.
        """
        return self._json("POST", path, body, again=again)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None, *, again: bool) -> Any:
        for pause in (*RETRY_AFTER, None):
            try:
                with self._opened(method, path, body) as response:
                    text = b"".join(self._bytes(response, path)).decode("utf-8", "replace")
                    return self._decoded(text, path, response)
            except EndpointError as error:
                passing = error.status in BUSY or (
                    again and error.kind in ("server_error", "truncated_stream")
                )
                if pause is None or not passing:
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The decoded events of a stream, until its `[DONE]`. Never asked again.

        Raises:
            EndpointError: truncated_stream where it ends without `[DONE]`, and all others.
        """
        with self._opened("POST", path, body) as response:
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if kind != "text/event-stream":
                text = b"".join(self._bytes(response, path)).decode("utf-8", "replace")
                self._decoded(text, path, response)
                raise self._error("bad_answer", path, f"answered {kind} where a stream was asked")
            rest = b""
            for chunk in self._bytes(response, path):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data:"):
                        continue  # comments and blank lines
                    event = line[5:].strip().decode("utf-8", "replace")
                    if event == "[DONE]":
                        return
                    yield self._decoded(event, path, response)
        raise self._error("truncated_stream", path, "the stream ended before its [DONE]")

    @contextmanager
    def _opened(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[httpx2.Response]:
        try:
            with self._client.stream(method, self.base + path, json=body) as response:
                if response.status_code >= 300:
                    text = b"".join(self._bytes(response, path)).decode("utf-8", "replace")
                    raise self._refusal(response, path, text)
                yield response
        except httpx2.ConnectTimeout as error:
            raise self._error("down", path, "does not accept a connection") from error
        except httpx2.TimeoutException as error:
            raise self._error("timeout", path, f"said nothing for {self.timeout:g} s") from error
        except httpx2.ConnectError as error:
            raise self._error("down", path, f"cannot be reached ({error})") from error
        except (httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            raise self._error("truncated_stream", path, "broke the connection off") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._error("down", path, f"cannot be asked ({error})") from error

    def _bytes(self, response: httpx2.Response, path: str) -> Iterator[bytes]:
        """The body as it comes, within both limits."""
        deadline, size = time.monotonic() + self.timeout, 0
        for chunk in response.iter_bytes():
            size += len(chunk)
            if size > self.max_bytes:
                raise self._error("endless", path, f"sent more than {self.max_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise self._error("endless", path, f"still sends after {self.timeout:g} s")
            yield chunk

    def _decoded(self, text: str, path: str, response: httpx2.Response) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "no content type").partition(";")[0]
            what = f"answered {kind}, not JSON: {text}"
            raise self._error("not_json", path, what, status=response.status_code) from error

    def _refusal(self, response: httpx2.Response, path: str, text: str) -> EndpointError:
        status = response.status_code
        said = _message_in(text) or text
        kind: ErrorKind = "refused"
        if status in (401, 403):
            kind = "unauthorized"
        elif status >= 500:
            kind = "server_error"
        elif "does not exist" in said and "model" in said:
            kind = "wrong_model"
        elif status in (404, 405) or status < 400:
            kind = "not_found"
        return self._error(kind, path, f"answered {status}: {said}", status=status)

    def _error(
        self, kind: ErrorKind, path: str, what: str, *, status: int | None = None
    ) -> EndpointError:
        if self._key:
            what = what.replace(self._key, "[key]")
        return EndpointError(
            kind, f"{self.base}{path} {printable(what)}", HINTS[kind], status=status
        )


def _message_in(text: str) -> str | None:
    """What an OpenAI-compatible server says in an error: {"error": {"message": ...}}."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        inner = found.get("error", found)
        said = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(said, str):
            return said
    return None


HINTS: dict[ErrorKind, str] = {
    "down": "start the server, or check the address and the port",
    "timeout": "the server is loading or overloaded: wait, or raise the timeout",
    "unauthorized": "set SMOLLORA_API_KEY (or OPENAI_API_KEY)",
    "not_found": "give the address of an OpenAI-compatible server, without /chat/completions",
    "wrong_model": "name a model that the server offers",
    "refused": "the server's message says why; its log may say more",
    "not_json": "that is not an OpenAI-compatible server, or a proxy stands in front of it",
    "bad_answer": "that is not an answer of an OpenAI-compatible server",
    "server_error": "look into the server's log",
    "truncated_stream": "look into the server's log; a proxy may have cut the answer",
    "no_ids": "vLLM gives ids (return_token_ids); without them nothing can be proved",
    "endless": "give fewer tokens, or look why the server does not stop",
}
