"""The program of the child process that a tool file is loaded and run in; nothing of smollora.

`python -P child.py describe FILE` writes the JSON schemas of the file's functions, as
`apply_chat_template` would make them. `python -P child.py run FILE NAME` reads arguments as JSON
from stdin and writes the result. Both write one line of JSON to the descriptor that stdout was at
the start; what the tool itself prints goes to stderr.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any


def load_file(path: Path) -> ModuleType:
    """The module of a tool file, with its folder importable."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("tools_of_the_chat", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickled functions look themselves up there
    spec.loader.exec_module(module)
    return module


def tools_in(module: ModuleType) -> dict[str, Any]:
    """The functions that the file itself defines, without those that begin with `_`."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and name == function.__name__
        and function.__module__ == module.__name__
    }


def describe(path: Path) -> dict[str, Any]:
    """The schemas, or why a function has none."""
    from transformers.utils.chat_template_utils import get_json_schema

    schemas, problems = [], []
    for name, function in tools_in(load_file(path)).items():
        if inspect.iscoroutinefunction(function):
            problems.append(f"{name}: an async function cannot be called here")
            continue
        try:
            schemas.append(get_json_schema(function)["function"])
        except Exception as error:
            problems.append(f"{name}: {' '.join(str(error).split())}")
    return {"tools": schemas, "problems": problems}


def run(path: Path, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The result as text: JSON, or the string itself."""
    value = tools_in(load_file(path))[name](**arguments)
    if isinstance(value, str):
        return {"result": value}
    return {"result": json.dumps(value, ensure_ascii=False, default=str)}


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)
    what, path = sys.argv[1], Path(sys.argv[2])
    try:
        if what == "describe":
            found = describe(path)
        else:
            found = run(path, sys.argv[3], json.loads(sys.stdin.read()))
    except BaseException as error:  # sys.exit() in a tool is its failure, not ours
        lines = "".join(str(error)).strip()
        found = {"error": f"{type(error).__name__}: {lines}" if lines else type(error).__name__}
    for stream in (sys.stdout, sys.stderr):  # what stands in a buffer would be lost at the end
        with suppress(OSError, ValueError):
            stream.flush()
    channel.write(json.dumps(found, ensure_ascii=False) + "\n")
    channel.flush()
    os._exit(0)  # threads that a tool left behind keep nobody waiting


if __name__ == "__main__":
    main()
