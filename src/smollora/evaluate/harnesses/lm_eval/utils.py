"""What smollora_calls.yaml names: the cases, and the score of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError
from smollora.evaluate.harness import score_text


def load_cases(cases: str | None = None, **metadata: Any) -> Any:
    """The exported prompts as a `datasets.DatasetDict` with the split "test".

    Args:
        cases: folder that `smollora eval --export` wrote; from --metadata '{"cases": "FOLDER"}'.
        metadata: what else lm-eval keeps of the task.
    """
    import datasets

    del metadata
    path = Path(cases or "") / "test.jsonl"
    if not cases or not path.is_file():
        raise ConfigError(
            f"{path} is not there",
            "run `smollora eval MODEL --export FOLDER`, then give"
            ' --metadata \'{"cases": "FOLDER"}\'',
        )
    return datasets.load_dataset("json", data_files={"test": str(path)})


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The metrics of one answer."""
    return score_text(doc, results[0])
