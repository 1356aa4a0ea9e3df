"""A client of OpenAI-compatible servers that asks for token ids wherever they are offered.

In: conversations, or prompts as token ids. Out: `ChatAnswer`s and `Generation`s; failures are
`EndpointError` (see `wire`), which is never counted against a model. `ServedGenerator` makes a
served model a `Generator`, as the probe and the evaluation see one.

What of vLLM (0.32) is used, and what happens elsewhere:
- `return_token_ids` on chat and text completions: `prompt_token_ids` once, `token_ids` per choice
  or chunk, the stop token included. Other servers ignore the key: the ids are None.
- `/tokenize` with messages and tools (not under /v1): the prompt's ids. Elsewhere None.
- a text completion whose `prompt` is a list of ids. llama.cpp takes it too, but returns no ids.
- `logprob_token_ids` with `return_tokens_as_token_ids`: the log-probability of one token, the
  opening delimiter, at the first position.
- `skip_special_tokens=False` leaves delimiters that are special tokens in the text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from smollora.endpoint.chat_form import (
    ChatAnswer,
    ServedCall,
    read_answer,
    read_events,
    read_ids,
    read_text,
    request_messages,
)
from smollora.endpoint.wire import HINTS, HOPELESS, MAX_BYTES, EndpointError, Wire, printable
from smollora.types import Generation, Message, ToolSpec

__all__ = ["ChatAnswer", "Completion", "Endpoint", "EndpointError", "ServedCall", "ServedGenerator"]

WRONG_SHAPE = (KeyError, TypeError, IndexError, AttributeError)
"""What reading JSON of another shape raises."""
GIVE_UP = 16
"""So many failures and not one answer: the server is at fault, and the other prompts are spared."""
KEY_NAMES = ("SMOLLORA_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prompt given as ids."""

    text: str
    finish_reason: str | None
    token_ids: tuple[int, ...] | None = None
    opener_logprob: float | None = None
    watched: Mapping[int, float] = field(default_factory=dict)
    """Log-probabilities (nats) at the first position, of the tokens that were asked for."""


@dataclass(slots=True)
class Endpoint:
    """One model of one server.

    Args:
        url: base address, with or without /v1.
        model: its name there; None: the only one offered.
        api_key: None: from SMOLLORA_API_KEY or OPENAI_API_KEY.
        timeout: seconds for a whole request.
        max_bytes: bound on the size of one answer.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_bytes: int = MAX_BYTES
    _wire: Wire = field(init=False, repr=False)

    def __post_init__(self) -> None:
        key = self.api_key or next((os.environ[n] for n in KEY_NAMES if os.environ.get(n)), None)
        self.api_key = None  # it lives in one header only
        self._wire = Wire(self.url, api_key=key, timeout=self.timeout, max_bytes=self.max_bytes)
        self.url = self._wire.base

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def models(self) -> tuple[str, ...]:
        """The models that the server offers."""
        found = self._wire.get("/v1/models")
        try:
            return tuple(str(each["id"]) for each in found["data"])
        except WRONG_SHAPE as error:
            raise _shape(self.url, "/v1/models", found) from error

    def connect(self) -> str:
        """The model's name, once it is certain that the server offers it.

        Raises:
            EndpointError: nobody there; wrong_model, with the models offered.
        """
        offered = self.models()
        if self.model is None and len(offered) == 1:
            self.model = offered[0]
        if self.model not in offered:
            what = f"offers no model {self.model}" if self.model else "offers several models"
            names = printable(", ".join(offered)) or "none"
            raise EndpointError(
                "wrong_model", f"{self.url} {what}", f"name one of those it offers: {names}"
            )
        return self.model

    def chat(
        self,
        messages: Sequence[Message] | Sequence[dict[str, Any]],
        tools: Sequence[ToolSpec] = (),
        *,
        stream: bool = False,
        max_tokens: int = 512,
        temperature: float | None = 0.0,
        on_delta: Callable[[dict[str, Any]], None] | None = None,
        **more: Any,
    ) -> ChatAnswer:
        """One chat completion.

        Args:
            messages: ours, or dicts in OpenAI's form.
            tools: offered to the model; the server decides (tool_choice "auto").
            stream: ask for a stream and put it together again; `on_delta` sees each delta.
            max_tokens: of the answer.
            temperature: 0 is greedy; None leaves sampling to the server.
            more: further keys of the request (top_p, seed, chat_template_kwargs, ...).
        """
        body = {**self._asked(messages, tools), "max_tokens": max_tokens, "stream": stream}
        body["return_token_ids"] = True
        if temperature is not None:
            body["temperature"] = temperature
        body.update(more)
        path, found = "/v1/chat/completions", None
        try:
            if stream:
                return read_events(self._events(path, body, on_delta))
            found = self._wire.post(path, body)
            return read_answer(found)
        except WRONG_SHAPE as error:
            raise _shape(self.url, path, found) from error

    def _events(
        self, path: str, body: dict[str, Any], on_delta: Callable[[dict[str, Any]], None] | None
    ) -> Iterator[dict[str, Any]]:
        for event in self._wire.events(path, body):
            if "error" in event:
                said = event["error"]
                said = said.get("message") if isinstance(said, dict) else said
                raise EndpointError(
                    "server_error",
                    f"{self.url}{path} broke off: {printable(str(said))}",
                    "look into the server's log",
                )
            for choice in event.get("choices") or ():
                if on_delta and choice.get("delta"):
                    on_delta(choice["delta"])
            yield event

    def tokenize(
        self, messages: Sequence[Message] | Sequence[dict[str, Any]], tools: Sequence[ToolSpec] = ()
    ) -> tuple[int, ...] | None:
        """The ids of the prompt that the server would render; None where it does not tell."""
        body = {**self._asked(messages, tools), "add_generation_prompt": True}
        try:
            found = self._wire.post("/tokenize", body, again=True)
        except EndpointError as error:
            if error.kind in ("not_found", "refused", "not_json", "server_error"):
                return None
            raise
        return read_ids(found.get("tokens")) if isinstance(found, dict) else None

    def complete(
        self,
        prompt_token_ids: Sequence[int],
        max_tokens: int = 512,
        *,
        temperature: float | None = 0.0,
        stop_token_ids: Sequence[int] = (),
        opener_id: int | None = None,
        watched: Sequence[int] = (),
        **more: Any,
    ) -> Completion:
        """Continue a prompt given as ids: nothing is rendered and nothing is parsed.

        Args:
            prompt_token_ids: the whole prompt.
            max_tokens: of the answer.
            temperature: 0 is greedy; None leaves sampling to the server.
            stop_token_ids: further ids that end the answer.
            opener_id: whose log-probability at the first position is wanted.
            watched: further tokens of which it is wanted.
            more: further keys of the request.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt_token_ids),
            "max_tokens": max_tokens,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        if temperature is not None:
            body["temperature"] = temperature
        if stop_token_ids:
            body["stop_token_ids"] = list(stop_token_ids)
        wanted = [*watched] if opener_id is None else [opener_id, *watched]
        if wanted:
            body |= {"logprobs": 1, "return_tokens_as_token_ids": True}
            body["logprob_token_ids"] = wanted
        body.update(more)
        found = self._wire.post("/v1/completions", body)
        try:
            choice = found["choices"][0]
            first = _logprobs(choice.get("logprobs"), wanted)
            return Completion(
                read_text(choice.get("text")),
                choice.get("finish_reason"),
                read_ids(choice.get("token_ids")),
                None if opener_id is None else first.get(opener_id),
                {token: first[token] for token in watched if token in first},
            )
        except WRONG_SHAPE as error:
            raise _shape(self.url, "/v1/completions", found) from error

    def _asked(
        self, messages: Sequence[Message] | Sequence[dict[str, Any]], tools: Sequence[ToolSpec]
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": request_messages(messages)}
        if tools:
            body["tools"] = [tool.as_openai() for tool in tools]
        return body


class ServedGenerator:
    """A served model as a `Generator`: prompts as ids in, ids out, many requests at once.

    What the server failed to answer has finish "error" and stands in `failures`: such a prompt is
    no answer of the model and belongs in no rate.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        stop_ids: Sequence[int] = (),
        opener_id: int | None = None,
        concurrency: int = 16,
        temperature: float | None = 0.0,
        more: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Args: server and model; ids that end a turn besides the server's own; id of the opening
        delimiter (None: no log-probability); requests at a time; 0 is greedy, None the server's;
        further keys of each prompt's request.
        """
        self.endpoint = endpoint
        self.stop_ids = tuple(stop_ids)
        self.opener_id = opener_id
        self.concurrency = concurrency
        self.temperature = temperature
        self.more = more
        self.failures: dict[int, EndpointError] = {}
        """By place among the prompts, of the last `generate`."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Generator`.

        Raises:
            EndpointError: of a kind that every further request would meet (nobody there, no such
                model, no ids), or nothing but failures; single ones are kept in `failures`.
        """
        self.failures = {}
        results: dict[int, Generation] = {}
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            waiting = {
                pool.submit(self._one, place, prompt, max_new_tokens): place
                for place, prompt in enumerate(prompts)
            }
            for future in as_completed(waiting):
                place = waiting[future]
                try:
                    results[place] = future.result()
                except EndpointError as error:
                    if error.kind in HOPELESS:
                        raise
                    self.failures[place] = error
                    results[place] = Generation((), "error")
                    if len(self.failures) == len(results) == GIVE_UP:
                        raise EndpointError(
                            error.kind,
                            f"the first {GIVE_UP} prompts got no answer; the last: {error.message}",
                            error.hint or "",
                            status=error.status,
                        ) from error
                if on_done:
                    on_done(len(results))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [results[place] for place in range(len(prompts))]

    def _one(self, place: int, prompt: Sequence[int], max_new_tokens: int) -> Generation:
        found = self.endpoint.complete(
            prompt,
            max_new_tokens,
            temperature=self.temperature,
            stop_token_ids=self.stop_ids,
            opener_id=self.opener_id,
            **(self.more[place] if self.more else {}),
        )
        if found.token_ids is None:
            raise EndpointError(
                "no_ids",
                f"{self.endpoint.url} returns text and no token ids",
                HINTS["no_ids"],
            )
        ended = found.finish_reason == "stop"
        return Generation(found.token_ids, "stop" if ended else "length", found.opener_logprob)


def _logprobs(found: Any, wanted: Sequence[int]) -> dict[int, float]:
    """Log-probabilities of tokens at the first position, from vLLM's answer; what it does not hold
    is left out.
    """
    if not wanted or not isinstance(found, dict):
        return {}
    first = (found.get("top_logprobs") or [None])[0] or {}
    values = {token: first.get(f"token_id:{token}") for token in wanted}
    return {
        token: round(float(value), 4)
        for token, value in values.items()
        if isinstance(value, (int, float))
    }


def _shape(url: str, path: str, found: Any) -> EndpointError:
    return EndpointError(
        "bad_answer",
        f"{url}{path} answered JSON of another shape: {printable(str(found))}",
        HINTS["bad_answer"],
    )
