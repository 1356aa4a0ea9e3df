"""The small made-up conversations that the audit renders."""

from __future__ import annotations

from typing import Any

from smollora.types import ToolSpec

Chat = list[dict[str, Any]]

WEATHER = ToolSpec(
    "get_weather",
    "Weather of one city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": 'The city\'s "full" name'},
            "daily": {"type": "boolean", "default": True},
            "station": {"type": ["string", "null"], "default": None},
        },
        "required": ["city"],
    },
)
CLOCK = ToolSpec("get_time", "Time at one place", {"type": "object", "properties": {}})
TOOLS = [WEATHER.as_openai(), CLOCK.as_openai()]
ARGUMENTS: dict[str, Any] = {"city": "Lisbon", "daily": True, "station": None}

NASTY = (
    "naïve 東京 🙂 \"double\" 'single' \\n back\\slash {one} {{two}} {% raw %} <b> & a\nnew line"
)
RESULT = '{"sky": "clear", "celsius": 21.5}'
LATER_RESULT = '{"time": "14:05"}'
THOUGHT = "The person wants to know what the sky does."


def system(content: Any = "Answer as a lighthouse keeper would.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any = "Tell me about Lisbon.") -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Lisbon lies on seven hills.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calling(*calls: tuple[str, Any], content: Any = "", **more: Any) -> dict[str, Any]:
    """An assistant message that calls tools, in OpenAI form."""
    made = [
        {
            "id": f"call0000{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    return assistant(content, tool_calls=made, **more)


def result(content: Any = RESULT, number: int = 0, name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": content}


ONE_CALL = calling(("get_weather", ARGUMENTS))
TWO_CALLS = calling(("get_weather", ARGUMENTS), ("get_time", {}))
