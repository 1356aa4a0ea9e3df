"""How large the report's page is, and how long a browser takes to show it.

    python bench/report_page.py runs/starter --answers 2000

The answers of the run are repeated under new case ids until there are as many as asked for. Times
are the browser's own (Performance API): navigation start to the end of DOMContentLoaded, when the
lists are drawn; first contentful paint; the load event; and a text filter over all cases, from the
event to the next painted frame. Needs Debian's chromium and playwright (`pip install -e .[dev]`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from smollora.report import write_report

LEFT_OUT = ("model", "adapter", "base", "*.parquet", ".done", "report.html")
NAVIGATION = """() => {
  const [entry] = performance.getEntriesByType('navigation');
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  return { drawn: entry.domContentLoadedEventEnd, load: entry.loadEventEnd,
           paint: paint ? paint.startTime : null,
           elements: document.querySelectorAll('*').length };
}"""
FILTER = """() => new Promise((done) => {
  const box = document.getElementById('cases-text');
  box.value = 'the';
  const start = performance.now();
  box.dispatchEvent(new Event('input'));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def grown_run(run: Path, folder: Path, answers: int) -> Path:
    """A copy of the run's small files whose probe holds `answers` records."""
    copy = folder / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    lines = (run / "probe" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    with (copy / "probe" / "records.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(answers):
            record: dict[str, Any] = json.loads(lines[number % len(lines)])
            record["case_id"] += f"#{number // len(lines)}"
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return copy


def measure(page: Page, target: Path) -> dict[str, float]:
    """One cold opening and one text filter, in milliseconds."""
    page.goto(target.as_uri(), wait_until="load")
    page.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    values: dict[str, float] = page.evaluate(NAVIGATION)
    values["filter"] = page.evaluate(FILTER)
    return values


def main() -> None:
    """Print sizes and the median times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--times", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = grown_run(given.run, Path(folder), given.answers)
        start = time.perf_counter()
        target = write_report(run)
        seconds = time.perf_counter() - start
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        found = []
        for _ in range(given.times):
            context = browser.new_context()
            found.append(measure(context.new_page(), target))
            context.close()
        browser.close()
        print(f"answers {given.answers}  page {target.stat().st_size / 1e6:.2f} MB")
        print(f"written in {seconds:.2f} s")
        for name in ("paint", "drawn", "load", "filter"):
            values = [each[name] for each in found]
            print(f"{name:7s} median {statistics.median(values):6.0f} ms  worst {max(values):.0f}")
        print(f"elements {found[0]['elements']:.0f}")


if __name__ == "__main__":
    main()
