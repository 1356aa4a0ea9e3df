"""Rows, sources and a renderer for tests of the prepared set; nothing needs torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from smollora.config import PrepareSection, SourceSection
from smollora.data.worker import RendererFiles
from smollora.formats.hermes import HERMES
from smollora.render import Renderer
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from tiny_models import tiny_tokenizer

Row = dict[str, Any]
CHATML = load_shipped("chatml_tools")
FIND: Row = {
    "name": "find",
    "description": "Find a thing",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
}


def renderer_files(folder: Path) -> RendererFiles:
    """What a renderer is made of, saved in `folder`."""
    tokenizer = tiny_tokenizer()
    path = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    return RendererFiles(CHATML, read_token_facts(tokenizer, HERMES, CHATML), str(path))


def small_renderer(folder: Path) -> Renderer:
    """The shipped ChatML template over the tiny tokenizer."""
    return renderer_files(folder).load()


def said(*turns: str, tools: tuple[Row, ...] = ()) -> Row:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": messages, "tools": list(tools)}


def calling(what: str) -> Row:
    """A request that calls `find`."""
    record = said(f"Find {what}", "", tools=(FIND,))
    record["messages"][1]["tool_calls"] = [{"name": "find", "arguments": {"what": what}}]
    return record


def tool_lines(count: int) -> list[str]:
    """Calls, with every third row answered in words, every eleventh of those without an answer, a
    broken line and an empty one here and there.
    """
    lines = []
    for i in range(count):
        answer = "" if i % 11 == 0 else f"It is {i}."
        row = calling(f"key {i}") if i % 3 else said(f"What is {i}?", answer, tools=(FIND,))
        lines.append(json.dumps(row))
        lines += [""] if i % 17 == 0 else []
        lines += ['{"bad'] if i % 29 == 0 else []
    return lines


def general_lines(count: int, different: int) -> list[str]:
    """Plain chat, of which only the first `different` rows differ."""
    return [
        json.dumps(said(f"What is {i % different}?", f"It is {i % different}."))
        for i in range(count)
    ]


def small_section(
    folder: Path, *, tools: int = 90, general: int = 60, **keys: Any
) -> PrepareSection:
    """A prepare section over two files, which are written here."""
    for name, lines in (("a", tool_lines(tools)), ("b", general_lines(general, 40))):
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    sources = (
        SourceSection(name="a", path=str(folder / "a.jsonl"), kind="tool"),
        SourceSection(name="b", path=str(folder / "b.jsonl"), kind="general"),
    )
    filters = dict.fromkeys(("duplicates", "near_duplicates", "overlap"), "off")
    return PrepareSection(sources=sources, **{"shard_rows": 32, **filters, **keys})


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that a finished prepare left."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
