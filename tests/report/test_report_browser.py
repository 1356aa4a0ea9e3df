"""The page in a real browser: its script runs, nothing injected does, and it fits a phone.

Needs Debian's chromium; without it these tests are skipped. Interaction is tested by a second
script, appended to a copy of the page without its policy, which leaves what it saw in the document.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from smollora.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--allow-file-access-from-files", "--virtual-time-budget=5000"),
)


def browse(page: Path, *flags: str) -> str:
    """Chromium's view of a page, as HTML after its scripts ran."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={page.parent / 'profile'}", *flags]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, timeout=120, check=True, text=True
    )
    return done.stdout


def without_policy(html: str) -> str:
    """The page with its content security policy taken out: only the escaping is left."""
    bare, cuts = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert cuts == 1
    return bare


def ask(page: Path, script: str) -> Any:
    """Run `script` after the page's own; what it assigns to `seen` comes back."""
    wrapped = (
        f"<script>addEventListener('load', () => {{ const seen = {{}}; {script};"
        " document.documentElement.dataset.seen = JSON.stringify(seen); })</script></body>"
    )
    copy = page.with_name("asked.html")
    copy.write_text(without_policy(page.read_text("utf-8")).replace("</body>", wrapped), "utf-8")
    found = re.search(r'data-seen="([^"]*)"', browse(copy, "--dump-dom"))
    assert found, "the script did not come to its end"
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "starter"
    shutil.copytree(finished_run, folder)
    return write_report(folder)


def test_the_script_runs(page: Path) -> None:
    assert '<html lang="en" data-ready="yes">' in browse(page, "--dump-dom")


@pytest.mark.parametrize("policy", ["with the policy", "by escaping alone"])
def test_no_injection_runs(hostile_run: Path, tmp_path: Path, policy: str) -> None:
    run = tmp_path / "starter"
    shutil.copytree(hostile_run, run)
    target = write_report(run)
    assert target.read_text("utf-8").count("dataset.hacked") > 1000
    if policy == "by escaping alone":
        target.write_text(without_policy(target.read_text("utf-8")), "utf-8")
    seen = browse(target, "--dump-dom")
    assert 'data-ready="yes"' in seen
    assert "data-hacked" not in seen
    assert len(re.findall(r"<script", seen)) == 1


@pytest.mark.parametrize(("width", "height"), [(1280, 3000), (600, 1200)])
def test_it_can_be_photographed(page: Path, tmp_path: Path, width: int, height: int) -> None:
    picture = tmp_path / "page.png"
    browse(page, f"--screenshot={picture}", f"--window-size={width},{height}", "--hide-scrollbars")
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) == (width, height)
    assert len(content) > 20_000, "an empty page compresses better"


def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    frame = page.with_name("phone.html")
    frame.write_text(
        f'<iframe id="f" src="{page.name}" width="375" height="800"></iframe>'
        "<script>addEventListener('load', () => { const root = document.getElementById('f')"
        ".contentDocument.documentElement; for (const d of root.querySelectorAll('details'))"
        " d.open = true; document.documentElement.dataset.wide = root.scrollWidth; })</script>"
    )
    found = re.search(r'data-wide="(\d+)"', browse(frame, "--dump-dom"))
    assert found and int(found[1]) <= 375


def test_filters_leave_what_fits_and_count_it(page: Path) -> None:
    seen = ask(
        page,
        """
        const shown = (list) =>
          [...document.querySelectorAll(`#${list} > li`)].filter((li) => !li.hidden);
        const set = (id, value) => {
          const box = document.getElementById(id);
          box.value = value; box.dispatchEvent(new Event("change"));
        };
        seen.first = shown("rows").length;
        document.querySelector("[name=kind][value=no_call]").click();
        seen.kinds = [...new Set(shown("rows").map((li) => li.dataset.kind))];
        seen.rows = document.getElementById("rows-left").textContent;
        set("by-category", "irrelevance");
        set("by-model", "merged");
        set("by-verdict", "false_call");
        seen.categories = [...new Set(shown("cases").map((li) => li.dataset.category))];
        seen.cases = shown("cases").length;
        const answers = shown("cases").flatMap((li) => [...li.querySelectorAll(".answer")]);
        seen.verdicts = [...new Set(answers.filter((answer) => !answer.hidden)
          .map((answer) => answer.dataset.verdict))];
        set("by-category", ""); set("by-model", ""); set("by-verdict", "right");
        seen.right = document.getElementById("cases-left").textContent;
        document.getElementById("cases-more").click();
        seen.more = shown("cases").length;
        """,
    )
    assert seen["first"] == 20
    assert seen["kinds"] == ["no_call"] and seen["rows"] == "20 of 60 match"
    assert seen["categories"] == ["irrelevance"] and seen["cases"] == 5
    assert seen["verdicts"] == ["false_call"]
    assert re.fullmatch(r"\d+ of 328 match", seen["right"])
    assert seen["more"] == 40


def test_tokens_are_read_with_the_keyboard(page: Path) -> None:
    seen = ask(
        page,
        """
        const box = document.querySelector("#rows .tokens");
        const key = (name) => document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
        seen.stop = box.tabIndex;
        box.focus(); key("ArrowRight"); key("ArrowRight");
        seen.second = [...box.querySelectorAll("i")].indexOf(document.activeElement);
        seen.says = document.getElementById("readout").textContent;
        key("End");
        seen.last = document.activeElement === [...box.querySelectorAll("i")].at(-1);
        key("Escape");
        seen.after = document.getElementById("readout").textContent;
        """,
    )
    assert seen["stop"] == 0 and seen["second"] == 1
    assert re.fullmatch(r"system\s*id \d+, template, not labelled", seen["says"])
    assert seen["last"] is True and seen["after"] == ""
