"""Tools of a chat: read from a file, run in a child process, and every failure a result."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from chat_parts import TOOLS

from smollora.chat.tools import Toolbox, load_tools
from smollora.errors import DataError
from smollora.types import ToolCall


@pytest.fixture(scope="module")
def box(tool_file: Path) -> Toolbox:
    return load_tools(tool_file)


def error_of(box: Toolbox, call: ToolCall, seconds: float = 30.0, size: int = 20_000) -> str:
    outcome = box.run(call, seconds=seconds, size=size)
    assert outcome.failed
    return str(json.loads(outcome.content)["error"])


def test_schemas_are_those_of_apply_chat_template(box: Toolbox, tool_file: Path) -> None:
    from transformers.utils import get_json_schema

    namespace: dict[str, object] = {}
    exec(TOOLS, namespace)
    assert [spec.name for spec in box.specs] == [
        *("get_weather", "leave_a_mark", "fail", "flood", "hang", "give_up")
    ]
    for spec in box.specs:
        expected = get_json_schema(namespace[spec.name])
        del expected["function"]["return"]  # what it returns is not offered: no row teaches it
        assert spec.as_openai() == expected


def test_a_result_is_json_and_a_text_is_itself(box: Toolbox, tmp_path: Path) -> None:
    found = box.run(ToolCall("get_weather", {"city": "Ōsaka"}), seconds=30, size=1000)
    assert json.loads(found.content) == {"city": "Ōsaka", "celsius": 21}
    assert "Ōsaka" in found.content
    mark = tmp_path / "mark"
    wrote = box.run(ToolCall("leave_a_mark", {"path": str(mark)}), seconds=30, size=1000)
    assert (wrote.content, wrote.failed, mark.exists()) == ("written", False, True)


def test_a_tool_that_raises_tells_the_model_and_what_it_printed_the_person(box: Toolbox) -> None:
    outcome = box.run(ToolCall("fail", {"reason": "no such town"}), seconds=30, size=1000)
    assert json.loads(outcome.content) == {"error": "fail raised ValueError: no such town"}
    assert outcome.failed and outcome.printed == "on the way to fail"


def test_ten_megabytes_are_not_passed_on(box: Toolbox) -> None:
    assert "more than 20,000 bytes" in error_of(box, ToolCall("flood", {}))


def test_the_limit_of_size_is_one_of_bytes_of_the_result(tmp_path: Path) -> None:
    path = tmp_path / "echo.py"
    path.write_text(
        'def echo(n: int) -> str:\n    """Echo.\n\n    Args:\n        n: How many.\n    """\n'
        '    return "é" * n\n',
        encoding="utf-8",
    )
    box = load_tools(path)
    assert box.run(ToolCall("echo", {"n": 500}), seconds=30, size=1000).content == "é" * 500
    assert "1,000 bytes" in error_of(box, ToolCall("echo", {"n": 501}), size=1000)


def test_a_tool_that_never_ends_is_ended(box: Toolbox) -> None:
    start = time.monotonic()
    assert "longer than 0.5 s" in error_of(box, ToolCall("hang", {}), seconds=0.5)
    assert time.monotonic() - start < 20


def test_a_tool_that_takes_the_process_down_tells_how(box: Toolbox) -> None:
    assert "exit code 3" in error_of(box, ToolCall("give_up", {}))


def test_what_a_tool_starts_ends_with_it(tmp_path: Path) -> None:
    """A killed shell used to leave its children running."""
    path = tmp_path / "spawn.py"
    path.write_text(
        "import subprocess, time\n"
        'def spawn() -> str:\n    """Start a sleeper."""\n'
        "    child = subprocess.Popen(['sleep', '300'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(300)\n",
        encoding="utf-8",
    )
    error_of(load_tools(path), ToolCall("spawn", {}), seconds=3.0)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the sleeper outlived its tool")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (ToolCall("get_wether", {"city": "Oslo"}), 'no tool "get_wether"'),
        (ToolCall("get_weather", {"city": 3}), "schema"),
        (ToolCall("get_weather", {}), "schema"),
        (ToolCall("get_weather", {"city": "Oslo", "hour": 3}), "hour"),
    ],
)
def test_a_call_that_cannot_be_run_is_known_before_anybody_is_asked(
    box: Toolbox, call: ToolCall, words: str
) -> None:
    assert words in str(box.problem(call))
    assert box.problem(ToolCall("get_weather", {"city": "Oslo"})) is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.py", "x = 1\n", "defines no function"),
        ("broken.py", "def f(:\n", "SyntaxError"),
        ("leaves.py", "import sys; sys.exit(3)\n", "SystemExit"),
        ("bare.py", "def f(x):\n    return x\n", "no docstring"),
        ("hint.py", 'def f(x):\n    """F.\n\n    Args:\n        x: X.\n    """\n', "x"),
        ("args.py", 'def f(x: int):\n    """F."""\n', "no description for the argument"),
        ("async.py", 'async def f() -> str:\n    """F."""\n', "async"),
        ("list.json", "[]", "no tools"),
        ("twice.json", '[{"name": "a"}, {"name": "a"}]', "two tools of one name"),
        ("text.json", "{", "JSON"),
        ("nameless.json", "[{}]", "no name"),
        ("tool.txt", "", "neither"),
    ],
)
def test_a_file_that_gives_no_tools_says_why(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as found:
        load_tools(path)
    assert words in found.value.message and found.value.hint


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match="no tool file"):
        load_tools(Path("nowhere.py"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_tools_of_json_have_no_code(tmp_path: Path, wrapped: bool) -> None:
    tool = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([{"type": "function", "function": tool}] if wrapped else [tool]))
    box = load_tools(path)
    assert [spec.name for spec in box.specs] == ["look"] and not box.runs_code
