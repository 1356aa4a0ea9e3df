"""The first request to a server, and how a person makes the next one.

In: an address and a model's name. Out: a `SmokeAnswer`: did `tool_calls` come back? And the lines
that ask the same with curl and with the openai client. It is a sign of life, not a measurement: one
greedy request with one tool that it needs.
"""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from smollora.serve.process import authorization

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
QUESTION = "What is the weather in Oslo?"
MOST_TOKENS = 128
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class SmokeAnswer:
    """What came back."""

    status: int
    """Of HTTP; 0 where no answer came at all."""
    calls: tuple[dict[str, Any], ...] = ()
    """`tool_calls` as the server gave them."""
    content: str = ""
    """Words of the answer; the error where `status` is not 200."""
    finish: str = ""

    @property
    def called(self) -> bool:
        """True if the tool was called with arguments that are a JSON object."""
        try:
            read = [json.loads(call["function"]["arguments"]) for call in self.calls]
        except (KeyError, TypeError, ValueError):
            return False
        return bool(read) and all(isinstance(each, dict) for each in read)


def request_body(name: str) -> dict[str, Any]:
    """The body of the smoke call."""
    return {
        "model": name,
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [TOOL],
        "temperature": 0,
        "max_tokens": MOST_TOKENS,
    }


def ask_once(base_url: str, name: str, *, seconds: float = SECONDS) -> SmokeAnswer:
    """One chat completion with a tool; a failure is an answer as well."""
    request = urllib.request.Request(
        f"{base_url}/v1/chat/completions",
        data=json.dumps(request_body(name)).encode(),
        headers={"Content-Type": "application/json", **authorization()},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return SmokeAnswer(error.code, content=error.read(2000).decode("utf-8", "replace"))
    except (OSError, urllib.error.URLError) as error:
        return SmokeAnswer(0, content=f"no answer: {error}")
    try:
        choice = json.loads(raw)["choices"][0]
        message = choice["message"]
        return SmokeAnswer(
            status,
            tuple(message.get("tool_calls") or ()),
            message.get("content") or "",
            choice.get("finish_reason") or "",
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return SmokeAnswer(0, content=f"not a chat completion ({error!r}): {raw[:200]!r}")


def describe(answer: SmokeAnswer) -> str:
    """One sentence."""
    if answer.status != 200:
        return f"the smoke call failed with {answer.status}: {answer.content[:300]}"
    if answer.called:
        shown = ", ".join(
            f"{c['function']['name']}({c['function']['arguments']})" for c in answer.calls
        )
        return f"tool_calls came back: {shown}, finish_reason {answer.finish}"
    if answer.calls:
        return f"tool_calls came back with arguments that are no JSON object: {answer.calls}"
    words = " ".join(answer.content.split())[:160]
    return (
        f'no tool_calls came back; the answer to "{QUESTION}" was in words: {words!r}'
        f" (finish_reason {answer.finish})"
    )


def curl_line(base_url: str, name: str) -> str:
    """The smoke call for a shell."""
    body = shlex.quote(json.dumps(request_body(name)))
    return f"curl -s {base_url}/v1/chat/completions -H 'Content-Type: application/json' -d {body}"


def openai_lines(base_url: str, name: str) -> str:
    """The smoke call in Python."""
    body = request_body(name)
    return "\n".join(
        [
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{base_url}/v1", api_key="none")',
            "answer = client.chat.completions.create(",
            *(f"    {key}={value!r}," for key, value in body.items()),
            ")",
            "print(answer.choices[0].message.tool_calls)",
        ]
    )
