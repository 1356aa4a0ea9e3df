"""The report: run folders in, one HTML page out: what was wrong, what was done, what it changed.

`collect` reads files, `render_html` makes the page, `write_report` does both and leaves
`report.html` beside the stages' folders; `write_comparison` puts several runs side by side. Nothing
else in the package but the verb and the stage imports this one.
"""

from __future__ import annotations

import time
from pathlib import Path

from smollora.report.collect import collect
from smollora.report.compare_page import is_run_folder, write_comparison
from smollora.report.contents import ReportData
from smollora.report.html import render_html
from smollora.runs import SCHEMA_VERSION, write_json, write_whole

__all__ = [
    "ReportData",
    "collect",
    "is_run_folder",
    "render_html",
    "write_comparison",
    "write_report",
]


def write_report(run_folder: Path, target: Path | None = None) -> Path:
    """Write `report.html` and `report/summary.json` into a run folder, or the page alone elsewhere.

    Args:
        run_folder: what is read.
        target: where the page goes; None for the run folder.

    Returns:
        The page.

    Raises:
        DataError: there is no such folder.
        SmolloraError: the folder cannot be written to, or the page would be larger than 3 MB.
    """
    start = time.perf_counter()
    data = collect(run_folder)
    page = render_html(data).encode()
    if target is not None:
        write_whole(target, page)
        return target
    target = run_folder / "report.html"
    write_whole(target, page)
    write_json(
        run_folder / "report" / "summary.json",
        {
            "schema_version": SCHEMA_VERSION,
            "stage": "report",
            "seconds": round(time.perf_counter() - start, 3),
            "bytes": len(page),
            "sections": data.sections(),
        },
    )
    return target
