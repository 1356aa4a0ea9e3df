"""Holds our reading of bench/format_cases.yaml against vLLM's, and writes down where they differ.

In: the cases, and the answers that bench/vllm_parsers.py got from vLLM. Out: a table in
docs/formats.md, and src/smollora/formats/served.json, from which `verify` knows what a server does
to a call. Run it after either changes; a test fails where the files are not what it would write.

    python bench/format_agreement.py
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from smollora.formats import get_format
from smollora.types import ParsedCall, ToolSpec

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "bench" / "format_cases.yaml"
ANSWERS = ROOT / "bench" / "vllm_answers.json"
SERVED = ROOT / "src" / "smollora" / "formats" / "served.json"
PAGE = ROOT / "docs" / "formats.md"
BEGIN, END = "<!-- table of agreement: bench/format_agreement.py -->", "<!-- end of table -->"
WORDS = {"text_before": "I will look that up.", "text_after": "I have asked for it."}
"""What the cases of these names say beside the call."""


def load_driver() -> Any:
    """bench/vllm_parsers.py, which is no package: for its tokenizer."""
    path = ROOT / "bench" / "vllm_parsers.py"
    spec = importlib.util.spec_from_file_location("vllm_parsers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_readings() -> Iterator[tuple[str, str, tuple[ParsedCall, ...]]]:
    """(format, case, our attempts), in the order of the file."""
    driver = load_driver()
    tools = [
        ToolSpec(tool["function"]["name"], "", tool["function"]["parameters"])
        for tool in yaml.safe_load(CASES.read_text("utf-8"))["tools"]
    ]
    tokenizers: dict[str, Any] = {}
    for fmt, case, text in driver.read_cases(CASES):
        name = fmt["name"]
        if name not in tokenizers:
            tokenizers[name] = driver.tokenizer_for(fmt["tokens"], fmt["special"])
        ids = driver.encode(tokenizers[name], case, text)
        yield name, case, get_format(name).parse(ids, tokenizers[name], tools)


def compare(case: str, ours: Sequence[ParsedCall], theirs: dict[str, Any]) -> str:
    """What a client of vLLM gets, beside what we read: one of the words of the table."""
    if "error" in theirs:
        return "error"
    wanted = [(a.call.name, dict(a.call.arguments)) for a in ours if a.call is not None]
    got: list[tuple[str, Any]] = []
    empty = False
    for place, call in enumerate(theirs["calls"]):
        try:
            arguments = json.loads(call["arguments"], parse_constant=_no_json)
        except ValueError:
            arguments = None
        if call["arguments"] == "" and place < len(wanted) and not wanted[place][1]:
            empty, arguments = True, {}
        if not isinstance(arguments, dict):
            return "corrupt"
        got.append((call["name"], arguments))
    if len(got) < len(wanted):
        return "lost"
    if len(got) > len(wanted):
        return "laxer"
    if got != wanted:
        return "changed"
    if wanted and case in WORDS and WORDS[case] not in theirs["content"]:
        return "words lost"
    return "empty" if empty else "same"


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def verdicts() -> dict[str, Any]:
    """What served.json holds."""
    stored = json.loads(ANSWERS.read_text("utf-8"))
    formats: dict[str, dict[str, Any]] = {}
    for fmt, case, attempts in our_readings():
        theirs = stored["answers"][fmt][case]
        formats.setdefault(fmt, {})[case] = {
            "ours": [attempt.status for attempt in attempts],
            "complete": compare(case, attempts, theirs["complete"]),
            "streamed": compare(case, attempts, theirs["streamed"]),
        }
    return {"vllm": stored["vllm"], "formats": formats}


def as_json(found: dict[str, Any]) -> str:
    """A case a line, so that a change is one line of a diff."""
    lines = ["{", f' "vllm": {json.dumps(found["vllm"])},', ' "formats": {']
    blocks = []
    for fmt, cases in found["formats"].items():
        rows = [f"   {json.dumps(case)}: {json.dumps(seen)}" for case, seen in cases.items()]
        blocks.append(f"  {json.dumps(fmt)}: {{\n" + ",\n".join(rows) + "\n  }")
    return "\n".join(lines) + "\n" + ",\n".join(blocks) + "\n }\n}\n"


def as_table(found: dict[str, Any]) -> str:
    """The tables of docs/formats.md."""
    lines = []
    for fmt, cases in found["formats"].items():
        parser = get_format(fmt).vllm_parser
        counts = [Counter(seen[way] for seen in cases.values()) for way in ("complete", "streamed")]
        same = " and ".join(
            f"{count['same']} {way}"
            for count, way in zip(counts, ("complete", "streamed"), strict=True)
        )
        lines += [
            f"### {fmt}",
            "",
            f"vLLM parser `{parser}`; of {len(cases)} cases the same: {same}.",
            "",
            "| case | ours | vLLM, complete | vLLM, streamed |",
            "|---|---|---|---|",
        ]
        for case, seen in cases.items():
            ours = ", ".join(seen["ours"]) or "no attempt"
            shown = ["" if seen[way] == "same" else seen[way] for way in ("complete", "streamed")]
            lines.append(f"| {case.replace('_', ' ')} | {ours} | {shown[0]} | {shown[1]} |")
        lines.append("")
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """docs/formats.md with the table in its place."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}{END}{rest.split(END)[1]}"


def main() -> None:
    """Write both files."""
    found = verdicts()
    SERVED.write_text(as_json(found), "utf-8")
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), as_table(found)), "utf-8")


if __name__ == "__main__":
    main()
