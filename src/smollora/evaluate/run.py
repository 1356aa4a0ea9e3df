"""Public suites asked of a finished run: base and merged model, the same prompts, answers kept as
token ids.

In: a run folder, suites such as `bfcl:simple_python`. Out: `eval/summary.json` (rates a suite and
category, base and merged) and `eval/records.jsonl`. BFCL's questions come from the PyPI wheel
`bfcl-eval` (sha256 checked, cached); they are never trained on. What is scored here is emission,
valid JSON, schema and tool names; arguments are not scored, for BFCL's own checker has rules of its
own for them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollora.errors import ConfigError, DataError
from smollora.evaluate.cases import bfcl_cases, read_cases
from smollora.models import cache_folder, fetch_wheel, load_model
from smollora.progress import meter
from smollora.runs import SCHEMA_VERSION, write_json, write_jsonl
from smollora.stages import Run, load_renderer
from smollora.types import EvalCase

BFCL_WHEEL = "bfcl-eval==2026.3.23"
BFCL_SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
DEFAULT_SUITES = ("bfcl:simple_python", "bfcl:irrelevance", "bfcl:live_irrelevance")


def bfcl_folder() -> Path:
    """The data folder of BFCL's wheel, unpacked in the cache."""
    folder = cache_folder() / "bfcl" / BFCL_SHA256[:12]
    if not (folder / "bfcl_eval" / "data").is_dir():
        wheel = fetch_wheel(BFCL_WHEEL, BFCL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith("bfcl_eval/data/")]
            archive.extractall(folder, names)
    return folder / "bfcl_eval" / "data"


def load_suite(name: str, limit: int | None) -> list[EvalCase]:
    """Cases of `bfcl:CATEGORY` or of a .jsonl.

    Raises:
        ConfigError: neither.
    """
    kind, _, category = name.partition(":")
    if kind == "bfcl" and category:
        return bfcl_cases(bfcl_folder(), category, limit)
    if name.endswith(".jsonl"):
        return read_cases(Path(name).expanduser())[:limit]
    raise ConfigError(
        f'"{name}" is no suite',
        "use bfcl:CATEGORY (bfcl:simple_python, bfcl:irrelevance, ...) or a .jsonl of cases",
    )


def evaluate(
    run: Run, suites: Sequence[str], *, limit: int | None, models: Sequence[str]
) -> dict[str, Any]:
    """Ask `suites` of the run's models and write the eval stage's files.

    Raises:
        DataError: the run has no merged model yet.
    """
    from smollora.generate import local_generator
    from smollora.probe import ask, by_category

    folders = {"base": run.base, "merged": run.merged}
    for name in models:
        if name not in folders:
            raise ConfigError(f'"{name}" is no model of a run', "use base or merged")
        if not folders[name].is_dir():
            raise DataError(f"{folders[name]} is not there", "run `smollora run` first")
    loaded = {suite: load_suite(suite, limit) for suite in suites}
    renderer = load_renderer(run)
    facts = renderer.facts
    section = run.recipe.probe
    found: dict[str, dict[str, dict[str, Any]]] = {}
    records: list[dict[str, Any]] = []
    for name in models:
        model = load_model(folders[name])
        generator = local_generator(model, facts, section.batch_tokens)
        limit_tokens = section.base_max_new_tokens if name == "base" else section.max_new_tokens
        for suite, cases in loaded.items():
            with meter(run.console, f"{suite} {name}", len(cases), "prompts") as shown:
                asked = ask(
                    name,
                    cases,
                    generator,
                    renderer,
                    run.format,
                    max_new_tokens=limit_tokens,
                    on_done=shown.to,
                )
            records.extend({**item.record, "suite": suite} for item in asked)
            for category, rates in by_category(asked).items():
                if suite.startswith("bfcl:"):
                    del rates["right_call"]  # BFCL's own checker judges arguments
                found.setdefault(suite, {}).setdefault(category, {})[name] = rates
    folder = run.folder / "eval"
    write_jsonl(folder / "records.jsonl", records)
    summary = {"schema_version": SCHEMA_VERSION, "stage": "eval", "suites": found}
    write_json(folder / "summary.json", summary)
    return summary
