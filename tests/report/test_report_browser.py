"""The pages in a real browser, with real clicks and keys: lists, microscope, colours, access.

Needs Debian's chromium, which playwright drives; without it these tests are skipped. The policy of
the page stays in force throughout, and a page that asks for anything but itself fails.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conftest import build_run, change
from smollora.report import write_comparison, write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"
)
PHONE = {"width": 400, "height": 800}

Opens = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opens]:
    """Opens a file; after the test, it must have logged nothing and fetched nothing."""
    contexts, said, asked = [], [], []

    def open_file(path: Path, *, ready: bool = True, **settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if ready:
            expect(page.locator("html")).to_have_attribute("data-ready", "yes")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.fixture(scope="module")
def written(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "starter"
    shutil.copytree(finished_run, folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs; in the second, the merged model opens no call in the cases of "parallel"."""
    folder = tmp_path_factory.mktemp("compared")
    first, second = build_run(folder / "first"), build_run(folder / "second")
    lines = (second / "probe/records.jsonl").read_text().splitlines()
    changed = [
        re.sub(r'"verdict": "right"', '"verdict": "no_call"', line)
        if '"model": "merged"' in line and '"category": "parallel"' in line
        else line
        for line in lines
    ]
    (second / "probe/records.jsonl").write_text("\n".join(changed))
    change(second / "probe/summary.json", passed=False, reasons=["emission 69% is too low"])
    write_comparison([first, second], folder / "compare.html")
    return folder / "compare.html"


def shown(page: Page, name: str) -> int:
    return page.locator(f"#{name} > li").count()


def open_everything(page: Page) -> None:
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_function(
        "[...document.querySelectorAll('.list details')].every((d) => d.querySelector('.inside'))"
    )


def facts(page: Page) -> dict[str, str]:
    """What the microscope says."""
    pairs = page.locator("#microscope dl > div")
    texts = [(p.locator("dt").inner_text(), p.locator("dd").inner_text()) for p in pairs.all()]
    return dict(texts)


# ── the lists ──────────────────────────────────────────────────────────────────────────────────


def test_text_kind_and_source_filter_the_training_rows(written: Path, opened: Opens) -> None:
    page = opened(written)
    assert shown(page, "rows") == 20
    page.get_by_text("Tools, no call", exact=True).click()
    expect(page.locator("#rows-left")).to_have_text("20 of 60 match")
    expect(page.locator("#rows > li .how").first).to_contain_text("near-misses, no call")
    page.locator("#rows-source").select_option("general")
    expect(page.locator("#rows-left")).to_have_text("0 of 60 match")
    page.locator("#rows-clear").click()
    assert shown(page, "rows") == 20
    page.locator("#rows-text").press_sequentially("REYKJAVÍK")
    expect(page.locator("#rows-left")).to_have_text("7 of 60 match")  # every eighth of 60 rows
    assert shown(page, "rows") == 7


def test_category_model_verdict_and_text_filter_the_answers(written: Path, opened: Opens) -> None:
    page = opened(written)
    page.locator("#cases-category").select_option("irrelevance")
    page.locator("#cases-verdict").select_option("false_call")
    expect(page.locator("#cases-left")).to_have_text("5 of 328 match")
    page.locator("#cases-model").select_option("base")
    expect(page.locator("#cases-left")).to_have_text("0 of 328 match")
    page.locator("#cases-model").select_option("merged")
    page.locator("#cases > li summary").nth(1).click()
    answers = page.locator("#cases > li").nth(1).locator(".answer")
    expect(answers).to_have_count(1)
    expect(answers.locator("h3")).to_have_text("adapter, merged, served ✗ false_call")
    page.locator("#cases-text").fill("no such words")
    expect(page.locator("#cases-left")).to_have_text("0 of 328 match")
    page.locator("#cases-clear").click()
    expect(page.locator("#cases-left")).to_have_text("")
    expect(page.locator("#cases-text")).to_be_focused()


def test_all_but_right_are_those_that_fail(written: Path, opened: Opens) -> None:
    page = opened(written)
    page.locator("#cases-model").select_option("merged")
    page.locator("#cases-verdict").select_option("not right")
    expect(page.locator("#cases-left")).to_have_text(f"{FAILED_AFTER} of 328 match")


FAILED_AFTER = sum(
    number % 41 == 40 or number % 17 == 16 for size in (80, 64, 64) for number in range(size)
) + sum(number % 13 == 0 for size in (60, 40) for number in range(size))
"""By the rules that `answer` in conftest.py follows."""


def test_more_rows_come_on_demand_and_the_focus_goes_to_them(written: Path, opened: Opens) -> None:
    page = opened(written)
    more = page.locator("#rows-more")
    expect(more).to_have_text("Show 20 more of 40")
    more.click()
    assert shown(page, "rows") == 40
    expect(page.locator("#rows > li summary").nth(20)).to_be_focused()
    more.click()
    expect(more).to_be_hidden()
    assert shown(page, "rows") == 60


# ── the microscope ─────────────────────────────────────────────────────────────────────────────


def test_pointing_at_a_token_shows_all_that_is_known_of_it(written: Path, opened: Opens) -> None:
    page = opened(written)
    page.locator("#rows .delimiter i").first.hover()
    seen = facts(page)
    row = json.loads((written.parent / "mix/preview.jsonl").read_text().splitlines()[0])
    at = row["part"].index("open")
    assert seen == {
        "Token": "<tool_call>",
        "Id": "49152",
        "Position": f"{at + 1} of {len(row['tokens'])}",
        "Owner": "assistant, message 3",
        "Label": "labelled as opening delimiter",
        "Before training": "loss 7.250, log-probability −7.250 (0.1%)",
        "After training": "loss 0.062, log-probability −0.062 (94.0%)",
    }
    page.locator("#rows .run.user i").first.hover()
    seen = facts(page)
    assert (seen["Owner"], seen["Label"]) == ("user, message 2", "not labelled")
    assert seen["Loss and log-probability"] == "none: it is only read"
    page.keyboard.press("Escape")
    expect(page.locator("#microscope")).to_be_hidden()


def test_tokens_are_read_with_the_keyboard_alone(written: Path, opened: Opens) -> None:
    page = opened(written)
    page.locator("#rows-source").focus()
    for _ in range(4):  # three ways to colour are one stop
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#rows .tokens')"):
            break
    assert page.evaluate("document.activeElement.matches('#rows .tokens')")
    page.keyboard.press("ArrowRight")
    assert facts(page)["Token"] == "<|im_start|>"
    assert facts(page)["Position"].startswith("1 of")
    page.keyboard.press("ArrowDown")
    assert (facts(page)["Token"], facts(page)["Id"]) == ("<tool_call>", "49152")
    page.keyboard.press("End")
    assert re.fullmatch(r"(\d+) of \1", facts(page)["Position"])
    page.keyboard.press("Home")
    assert facts(page)["Position"].startswith("1 of")
    page.keyboard.press("Escape")
    expect(page.locator("#microscope")).to_be_hidden()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 500}])
def test_the_microscope_never_hides_the_token_it_is_about(
    viewport: dict[str, int], written: Path, opened: Opens
) -> None:
    page = opened(written, viewport=viewport)
    page.locator("#rows .tokens").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown", "End", "Home"):
        page.keyboard.press(key)
        token = page.locator("#rows .tokens i:focus").bounding_box()
        panel = page.locator("#microscope").bounding_box()
        assert token and panel
        assert token["y"] >= 0 and token["y"] + token["height"] <= panel["y"], key


def test_what_the_microscope_says_is_announced(written: Path, opened: Opens) -> None:
    page = opened(written)
    page.locator("#rows .delimiter i").first.click()
    status = page.get_by_role("complementary", name="Token microscope").get_by_role("status")
    expect(status).to_contain_text("49152")
    box = page.locator("#rows .tokens").first
    described = box.get_attribute("aria-describedby")
    assert described and "Right arrow" not in described
    expect(page.locator(f"#{described}")).to_contain_text("next and previous token")


def test_tokens_can_be_coloured_by_their_loss(written: Path, opened: Opens) -> None:
    page = opened(written)
    token = page.locator("#rows .delimiter i").first
    paint = "element => getComputedStyle(element).backgroundColor"
    plain = token.evaluate(paint)
    page.get_by_text("by loss before", exact=True).click()
    high = token.evaluate(paint)
    page.get_by_text("by loss after", exact=True).click()
    low = token.evaluate(paint)
    assert high not in (plain, low)


# ── colours, sizes, motion ─────────────────────────────────────────────────────────────────────


def paper(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_page_follows_the_system_until_the_reader_chooses(written: Path, opened: Opens) -> None:
    light, dark = (opened(written, color_scheme=scheme) for scheme in ("light", "dark"))
    assert paper(light) == "rgb(252, 251, 248)" and paper(dark) == "rgb(22, 22, 20)"
    light.get_by_text("Dark", exact=True).click()
    assert paper(light) == paper(dark)
    light.reload()
    assert paper(light) == paper(dark), "the choice is kept"
    light.get_by_text("Auto", exact=True).click()
    assert paper(light) == "rgb(252, 251, 248)"


@pytest.mark.parametrize("which", ["written", "compared"])
def test_nothing_is_wider_than_a_phone(
    which: str, opened: Opens, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), viewport=PHONE)
    open_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_who_wants_less_motion_gets_none(written: Path, opened: Opens) -> None:
    page = opened(written, reduced_motion="reduce")
    scroll = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(scroll) == "auto"
    assert opened(written).evaluate(scroll) == "smooth"


@pytest.mark.parametrize(("width", "height"), [(1280, 3000), (600, 1200)])
def test_it_can_be_photographed(written: Path, opened: Opens, width: int, height: int) -> None:
    page = opened(written, viewport={"width": width, "height": height})
    content = page.screenshot()
    assert struct.unpack(">II", content[16:24]) == (width, height)
    assert len(content) > 20_000, "an empty page compresses better"


# ── access ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["written", "compared"])
def test_axe_finds_nothing_to_object_to(
    which: str, scheme: str, opened: Opens, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(which), color_scheme=scheme)
    open_everything(page)
    page.locator(".tokens i").first.click()
    expect(page.locator("#microscope")).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["violations"]) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_accepts_the_colours_of_losses_on_a_phone(
    scheme: str, written: Path, opened: Opens
) -> None:
    page = opened(written, color_scheme=scheme, viewport=PHONE)
    page.get_by_text("by loss before", exact=True).click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_axe_would_object(written: Path, opened: Opens, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    text = written.read_text("utf-8")
    spoiled.write_text(text.replace('<html lang="en">', "<html>"), "utf-8")
    assert "html-has-lang" in Axe().run(opened(spoiled)).generate_report()


def test_tab_reaches_every_control_in_the_order_of_the_page(written: Path, opened: Opens) -> None:
    page = opened(written)
    places = []
    for _ in range(200):
        page.keyboard.press("Tab")
        place = page.evaluate(
            "(() => { const at = document.activeElement; const all = [...document.querySelectorAll("
            "'*')]; return at === document.body ? null : [all.indexOf(at), at.id || at.className];"
            " })()"
        )
        if place is None:
            break
        places.append(place)
    order = [place for place, _ in places]
    assert order == sorted(order)
    names = [name for _, name in places]
    assert names[0] == "skip"
    for control in ("rows-text", "rows-source", "rows-more", "cases-text", "cases-model"):
        assert control in names


# ── untrusted text ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["with the policy", "by escaping alone"])
def test_no_injection_runs(hostile_run: Path, tmp_path: Path, policy: str, opened: Opens) -> None:
    run = tmp_path / "starter"
    shutil.copytree(hostile_run, run)
    target = write_report(run)
    text = target.read_text("utf-8")
    assert text.count("dataset.hacked") > 1000
    if policy == "by escaping alone":
        text, cuts = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert cuts == 1
        target.write_text(text, "utf-8")
    page = opened(target)
    before = page.locator("script, style, img, iframe, object, base").count()
    open_everything(page)
    for token in page.locator(".tokens i").all()[:40:8]:
        token.hover()
    page.locator("#cases-text").fill("dataset.hacked")
    expect(page.locator("#cases-left")).to_contain_text("match")
    assert page.evaluate("document.documentElement.dataset.hacked") is None
    assert before == 3  # one style, one script, the island
    assert page.locator("script, style, img, iframe, object, base").count() == before
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every((e) => [...e.attributes].every((a) =>"
        " !a.name.startsWith('on')))"
    )


def test_the_comparison_of_hostile_runs_runs_nothing(
    hostile_run: Path, finished_run: Path, tmp_path: Path, opened: Opens
) -> None:
    run = tmp_path / "hostile"
    shutil.copytree(hostile_run, run)
    write_comparison([finished_run, run], tmp_path / "compare.html")
    page = opened(tmp_path / "compare.html")
    open_everything(page)
    assert page.evaluate("document.documentElement.dataset.hacked") is None
    assert page.locator("script, style, img, iframe, object, base").count() == 3


# ── without the script, and side by side ───────────────────────────────────────────────────────


def test_without_its_script_the_page_still_gives_its_verdict(written: Path, opened: Opens) -> None:
    page = opened(written, ready=False, java_script_enabled=False)
    expect(page.get_by_role("heading", level=1)).to_have_text("Passed")
    expect(page.get_by_text("drawn by the page's own script").first).to_be_visible()
    expect(page.locator("#cases-filters")).to_be_hidden()


def test_runs_side_by_side_show_the_cases_that_differ(compared: Path, opened: Opens) -> None:
    page = opened(compared)
    right = sum(not (n % 41 == 40 or n % 17 == 16) for n in range(64))
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(f"{right} of 328 shared cases differ")
    cards = page.locator(".run-card")
    expect(cards.nth(0)).to_contain_text("Passed")
    expect(cards.nth(1)).to_contain_text("Fell short")
    expect(cards.nth(1)).to_contain_text("emission 69% is too low")
    page.locator("#cases-model").select_option("A first")
    page.locator("#cases-verdict").select_option("no_call")
    expect(page.locator("#cases-left")).to_have_text(f"0 of {right} match")
    page.locator("#cases-model").select_option("B second")
    expect(page.locator("#cases-left")).to_have_text(f"{right} of {right} match")
