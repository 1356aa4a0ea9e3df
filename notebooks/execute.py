"""Runs notebooks from their first cell to their last, and keeps what came out.

`python notebooks/execute.py` for all of them, `python notebooks/execute.py 4` for one: each runs in
an empty folder and is written back with its outputs, which the documentation shows. A hash of the
code stands in the notebook's metadata, so that a test can tell outputs of older code.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SECONDS_A_CELL = 900


def notebooks() -> list[Path]:
    """The notebooks, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def code_hash(notebook: Any) -> str:
    """sha256 of the code of all cells."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "\n\0\n".join(each if isinstance(each, str) else "".join(each) for each in code)
    return hashlib.sha256(text.encode()).hexdigest()


def execute(path: Path, folder: Path) -> Any:
    """The notebook with new outputs; its code runs in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if not is_warning(output)]
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
        "smollora": {"code": code_hash(notebook)},
    }
    return notebook


def is_warning(output: Any) -> bool:
    """Libraries speak there of the machine they run on, not of the notebook."""
    return bool(output.output_type == "stream" and output.name == "stderr")


def kept(output: Any) -> Any:
    """The output with its picture in 48 colours, a quarter of the bytes."""
    picture = output.get("data", {}).get("image/png")
    if picture is not None:
        from PIL import Image

        drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
        smaller = io.BytesIO()
        drawn.quantize(48, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
        output["data"]["image/png"] = base64.b64encode(smaller.getvalue()).decode() + "\n"
    return output


def main() -> None:
    import nbformat

    for path in notebooks():
        if len(sys.argv) > 1 and not path.name.startswith(tuple(sys.argv[1:])):
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
