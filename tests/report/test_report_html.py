"""What the page says, what it leaves out, and what untrusted text cannot do to it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from smollora.report import ReportData, collect, island, render_html, show, write_report
from smollora.report.cases import cases
from smollora.report.charts import MOST_POINTS, loss_chart
from smollora.report.contents import CurvePoint, Rate, TokenRow
from smollora.report.html import headline
from smollora.report.pages import PAGE_BYTES

NewRun = Callable[[], Path]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def page(finished_run: Path) -> str:
    return render_html(collect(finished_run))


def with_rates(data: ReportData, model: str, rates: Mapping[str, Rate]) -> ReportData:
    assert data.probe
    models = {**data.probe.models, model: {**data.probe.models[model], **rates}}
    return replace(data, probe=replace(data.probe, models=models))


def island_of(page: str) -> dict[str, Any]:
    """The JSON from which the page's script draws its lists."""
    found = re.findall(r'<script type="application/json" id="island">(.*?)</script>', page, re.S)
    assert len(found) == 1
    values: dict[str, Any] = json.loads(found[0])
    return values


def drawn(row: TokenRow) -> dict[str, Any]:
    """A training row as the island holds it, its tokens looked up."""
    vocabulary = island.Vocabulary()
    payload = island.row_payload(row, vocabulary)
    entries = vocabulary.entries()
    return {**payload, "tokens": [entries[number] for number in payload["tokens"]]}


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found
    return Page(found[0]).text


# --- what it says ---


def test_the_verdict_is_one_plain_sentence_with_counts(finished_run: Path) -> None:
    assert headline(collect(finished_run)) == [
        "Before: 0 of 208 prompts that need a tool emitted the opening token <tool_call> "
        "(id 49152). After: 205 of 208. From the server: 205 of 208.",
        "Where no call was wanted, it called in 9 of 120; before, in 0 of 120.",
    ]


def test_the_verdict_comes_first(page: str) -> None:
    order = re.findall(r'<(?:header|section) id="(\w+)"', page)
    assert order[0] == "verdict"
    assert order.index("rates") < order.index("template") < order.index("data")
    assert order.index("data") < order.index("training") < order.index("merge")
    assert order.index("merge") < order.index("tokens") < order.index("examples")
    assert '<h1 class="passed">Passed</h1>' in page


def test_a_run_that_fell_short_says_why(new_run: NewRun) -> None:
    run = new_run()
    reason = "emission 61.0% of 208 is below 90.0%"
    change(run / "probe/summary.json", passed=False, reasons=[reason])
    text = Page(render_html(collect(run))).text
    assert "Fell short" in text and reason in text and "Passed" not in text


def test_what_was_not_run_says_so(tmp_path: Path) -> None:
    page = render_html(collect(tmp_path))
    assert "No verdict yet" in page
    for name in ("rates", "suites", "template", "training", "merge", "tokens", "examples"):
        assert "Not run." in section(page, name), name
    assert section(page, "data").count("Not run.") == 3


@pytest.mark.parametrize("stage", ["inspect", "prepare", "verify", "mix", "train", "probe", "eval"])
def test_the_page_stands_without_any_one_stage(new_run: NewRun, stage: str) -> None:
    run = new_run()
    shutil.rmtree(run / stage)
    assert "Not run." in render_html(collect(run))


def test_no_cases_is_never_a_zero(finished_run: Path) -> None:
    nothing = Rate(k=0, n=0, rate=None)
    rates = dict.fromkeys(("emission", "false_call", "right_tool"), nothing)
    data = collect(finished_run)
    for model in ("base", "merged", "served"):
        data = with_rates(data, model, rates)
    assert headline(data) == ["Prompts that need a tool: no cases. From the server: no cases."]
    text = section(render_html(data), "rates")
    assert "no cases" in text and "0 of 0" not in text


def test_a_gate_over_no_cases_says_no_cases(new_run: NewRun) -> None:
    run = new_run()
    gate = {"emission": {"at_least": 0.9, "value": None, "ok": False}}
    change(run / "probe/summary.json", gate=gate, passed=False)
    page = render_html(collect(run))
    row = re.search(r"<tr><th scope=\"row\">Opens a call</th>.*?</tr>", page, re.DOTALL)
    assert row and "at least 90%" in row[0] and "no cases" in row[0] and "fell short" in row[0]


def test_categories_without_cases_are_named(page: str) -> None:
    assert "No cases in: irrelevance, missing_argument, no_tools." in section(page, "rates")


def test_a_model_that_was_not_asked_has_no_column(new_run: NewRun) -> None:
    run = new_run()
    probe = json.loads((run / "probe/summary.json").read_text())
    for model in ("base_stock", "adapter", "served"):
        del probe[model], probe["by_category"][model]
    (run / "probe/summary.json").write_text(json.dumps(probe))
    data = collect(run)
    assert "base_stock" not in section(render_html(replace(data, records=())), "rates")
    assert "From the server" not in headline(data)[0]


def test_problems_are_printed(new_run: NewRun) -> None:
    run = new_run()
    (run / "merge/summary.json").write_text("{")
    text = Page(render_html(collect(run))).text
    assert "1 thing in the run folder could not be used" in text
    assert "merge/summary.json" in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (0.976, "97.6%")],
)
def test_all_and_nothing_are_printed_only_where_exact(share: float, text: str) -> None:
    assert show.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (float("nan"), "nan"),
        (1_200_000, "1,200,000"),
        (2.1e-6, "2.1e-6"),
        (0.4703, "0.470"),
        (12345, "12,345"),
        (857.14, "857"),
    ],
)
def test_numbers_read_as_people_write_them(value: float, text: str) -> None:
    assert show.number(value) == text


# --- tokens and answers ---


def test_every_token_carries_its_id_owner_and_label(finished_run: Path) -> None:
    row = collect(finished_run).preview[0]
    shown = drawn(row)
    assert [token_id for token_id, _ in shown["tokens"]] == list(row.token_ids)
    spread = [run[:2] for run in shown["runs"] for _ in range(run[2])]
    assert len(spread) == len(row.tokens)
    at = row.token_ids.index(49152, row.trained.index(True))
    assert shown["tokens"][at] == (49152, "<tool_call>") and spread[at] == [2, "open"]
    assert spread[0] == [-1, 0]


def test_the_loss_before_and_after_is_that_of_the_probes_file(finished_run: Path) -> None:
    row = collect(finished_run).preview[0]
    shown = drawn(row)
    labelled = sum(row.trained)
    assert shown["logprobs"] == {"base": [7250] * labelled, "merged": [62] * labelled}
    assert shown["loss"][0] == ["open", 1, {"base": 7.25, "merged": 0.0625}]
    assert sum(tokens for _, tokens, _ in shown["loss"]) == shown["labelled"]


def test_a_run_without_log_probabilities_says_so(new_run: NewRun) -> None:
    run = new_run()
    (run / "probe/preview_logprobs.jsonl").unlink()
    page = render_html(collect(run))
    assert "single tokens: not recorded" in section(page, "tokens")
    assert "logprobs" not in island_of(page)["rows"][0]
    assert "by loss before" not in section(page, "tokens")


def test_a_long_row_loses_its_middle_and_says_how_much() -> None:
    n = 5_000
    columns = (tuple(range(n)), ("a",) * n, (0,) * n, (False,) * n, (None,) * n)
    shown = drawn(TokenRow("c", "s", "call", ("user",), *columns))
    assert shown["gap"] == [300, 3500] and shown["length"] == n
    assert shown["tokens"][-1] == (4999, "a") and len(shown["tokens"]) == 1500
    assert shown["runs"] == [[0, 0, 1500]]


def test_failures_come_first_and_categories_take_turns(finished_run: Path) -> None:
    found = cases(collect(finished_run))
    outcomes = [case.is_failure for case in found]
    assert outcomes == sorted(outcomes, reverse=True) and outcomes[0]
    passed = [case.question.category for case in found if not case.is_failure]
    assert len(set(passed[:6])) == 6


def test_equal_answers_are_shown_once_with_every_model(finished_run: Path) -> None:
    case = cases(collect(finished_run))[0]
    assert [answer.models for answer in case.answers] == [
        ("base", "base_stock"),
        ("adapter", "merged", "served"),
    ]


def test_an_answer_without_ids_shows_its_text(finished_run: Path) -> None:
    data = collect(finished_run)
    bare = replace(data.records[0], token_ids=(), tokens=(), text="only text")
    shown = island_of(render_html(replace(data, records=(bare,))))["cases"]
    assert shown[0]["answers"][0]["text"] == "only text"


def test_answers_of_an_evaluation_stand_beside_the_probes(new_run: NewRun) -> None:
    run = new_run()
    lines = (run / "probe/records.jsonl").read_text().splitlines()[:4]
    suite = [json.dumps({**json.loads(line), "suite": "bfcl:simple_python"}) for line in lines]
    (run / "eval/records.jsonl").write_text("\n".join(suite))
    page = render_html(collect(run))
    asked_by = [case["source"] for case in island_of(page)["cases"]]
    assert asked_by.count("bfcl:simple_python") == 4 and asked_by.count("probe") == 328
    assert "Asked by" in section(page, "examples")


def test_a_curve_breaks_where_the_loss_is_missing() -> None:
    losses = (2.0, 1.5, None, 1.2, 1.0)
    curve = [CurvePoint(step, loss, None, None, {}) for step, loss in enumerate(losses)]
    chart = loss_chart(curve)
    assert chart and chart.logged.count("M") == 2 and chart.not_finite == 1


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    curve = [CurvePoint(step, 1.0 / (1 + step), None, None, {}) for step in range(10_000)]
    chart = loss_chart(curve)
    assert chart and chart.total == 10_000 and chart.shown <= MOST_POINTS + 1
    assert "at step 9999" in chart.says


@pytest.mark.parametrize("losses", [[], [None], [0.0], [0.0, 0.0], [3.0]])
def test_the_shortest_curves_draw_without_error(losses: list[float | None]) -> None:
    curve = [CurvePoint(step, loss, None, None, {}) for step, loss in enumerate(losses)]
    assert (loss_chart(curve) is None) == (not any(loss is not None for loss in losses))


# --- size ---


def many(data: ReportData, cases: int, tokens: int) -> ReportData:
    record = replace(data.records[0], token_ids=(7,) * tokens, tokens=(' "<a&',) * tokens)
    records = tuple(
        replace(record, case_id=f"case-{number}", category=f"c{number % 9}", model=model)
        for number in range(cases)
        for model in ("base", "merged")
    )
    return replace(data, records=records, preview=data.preview * 60)


def test_the_page_stays_under_its_limit_and_says_what_it_left_out(finished_run: Path) -> None:
    page = render_html(many(collect(finished_run), cases=3_000, tokens=150))
    assert 1_500_000 < len(page.encode()) < PAGE_BYTES
    held = island_of(page)
    shown = re.search(r"Showing ([\d,]+) of 3,000 cases", section(page, "examples"))
    assert shown and len(held["cases"]) == int(shown[1].replace(",", "")) > 200
    rows = re.search(r"Showing ([\d,]+) of 3,600 rows", section(page, "tokens"))
    assert rows and len(held["rows"]) == int(rows[1].replace(",", "")) > 200


def test_two_thousand_answers_fit_whole(finished_run: Path) -> None:
    data = replace(many(collect(finished_run), cases=1_000, tokens=60), preview=())
    page = render_html(data)
    assert "All 1,000 cases are on this page." in section(page, "examples")
    assert sum(len(case["answers"]) for case in island_of(page)["cases"]) == 1_000  # equal pairs
    assert len(page.encode()) < PAGE_BYTES


def test_huge_single_texts_are_clipped_with_a_count(new_run: NewRun) -> None:
    run = new_run()
    (run / "recipe.yaml").write_text("<" * 3_000_000)
    change(run / "inspect/summary.json", model="m" * 100_000)
    page = render_html(collect(run))
    assert len(page.encode()) < PAGE_BYTES
    assert "2,980,000 more characters" in page


def test_long_tables_are_cut_with_a_count(new_run: NewRun) -> None:
    run = new_run()
    change(run / "prepare/summary.json", rejected={f"reason_{n}": n for n in range(1, 500)})
    text = section(render_html(collect(run)), "data")
    assert "Showing 40 of 499 reasons." in text
    assert "reason_499" in text and "reason_12\n" not in text


# --- untrusted text ---


def test_hostile_text_adds_no_tag_and_no_attribute(hostile_run: Path, page: str) -> None:
    spoiled = Page(render_html(collect(hostile_run)))
    clean = Page(page)
    assert {tag for tag, _ in spoiled.tags} <= {tag for tag, _ in clean.tags}
    for tag in ("script", "style", "title", "img"):
        kinds = [name for name, _ in spoiled.tags]
        assert kinds.count(tag) == {"img": 0, "script": 2}.get(tag, 1)
    names = {name for _, attributes in spoiled.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    assert "dataset.hacked='yes'" in spoiled.text
    assert "{{ 7 * 7 }}" in spoiled.text and "49</" not in spoiled.text


def test_hidden_characters_are_made_visible(hostile_run: Path) -> None:
    page = render_html(collect(hostile_run))
    page.encode("utf-8")
    hidden = [c for c in page if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert set(hidden) == {"\n"}
    for mark in (
        "\u241b[31m",
        "\u2400",
        "\u27e8U+202E\u27e9",
        "\u27e8U+200B\u27e9",
        "\u27e8U+D800\u27e9",
    ):
        assert mark in page


def test_no_code_point_is_hidden_after_visible() -> None:
    for start in range(0, 0x110000, 10_000):
        text = "".join(map(chr, range(start, min(start + 10_000, 0x110000))))
        shown = show.visible(text)
        shown.encode("utf-8")
        bad = {c for c in shown if unicodedata.category(c) in show.HIDDEN} - {"\n", "\t"}
        assert not bad


def test_the_page_fetches_nothing(page: str) -> None:
    parsed = Page(page)
    assert parsed.attributes("src") == []
    links = [link for link in parsed.attributes("href") if link]
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_the_policy_allows_exactly_the_pages_own_style_and_script(page: str) -> None:
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Page(page).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inline  # the island has a type that no browser runs, and needs no hash
        digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def ids_of(tags: Iterable[tuple[str, dict[str, str | None]]]) -> list[str]:
    return [attributes["id"] or "" for _, attributes in tags if "id" in attributes]


def test_tables_scroll_and_everything_named_exists(page: str) -> None:
    tags = Page(page).tags
    ids = ids_of(tags)
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        named = (attributes.get("aria-labelledby") or "").split()
        named += (
            [(attributes.get("href") or "")[1:]] if attributes.get("href", "") != "data:," else []
        )
        assert not [name for name in named if name and name not in ids]
    assert page.count("<table") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table', page))
    regions = [attributes for _, attributes in tags if attributes.get("role") == "region"]
    assert regions and all(r.get("tabindex") == "0" and r.get("aria-label") for r in regions)


# --- what it leaves ---


def test_the_report_leaves_its_page_and_its_summary(new_run: NewRun) -> None:
    run = new_run()
    target = write_report(run)
    assert target == run / "report.html"
    summary = json.loads((run / "report/summary.json").read_text())
    assert summary.keys() == {"schema_version", "stage", "seconds", "bytes", "sections"}
    assert (summary["schema_version"], summary["stage"]) == (1, "report")
    assert summary["bytes"] == target.stat().st_size
    assert summary["seconds"] >= 0
    assert set(summary["sections"].values()) == {"shown"}
    assert not list(run.glob(".*"))


def test_the_same_files_make_the_same_page(new_run: NewRun) -> None:
    run = new_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_facts_of_the_architecture_have_names_and_units(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run" / "inspect" / "summary.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["architecture"] = {"gqa_ratio": 3, "lora_memory_bytes_bf16": 1_420_928_128, "layers": 30}
    path.write_text(json.dumps(values), encoding="utf-8")
    page = render_html(collect(tmp_path / "run"))
    facts = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+)", page))
    assert facts["GQA ratio"] == "3" and facts["Layers"] == "30"
    assert facts["LoRA memory, bf16"] == "1.4 GB"


def parting(case_id: str, margin: float | None, token: str = "</tool_call>") -> dict[str, Any]:
    """What the probe writes of a case that two columns answer with different ids."""
    return {
        "case_id": case_id,
        "category": "single",
        "place": 7,
        "left": {"token_id": 5, "token": token, "margin": margin},
        "right": {"token_id": None, "token": "", "margin": None},
        "same_verdict": True,
        "margin": margin,
    }


def test_where_columns_part_the_widest_margin_comes_first_and_says_so(new_run: NewRun) -> None:
    run = new_run()
    says = "merged differs from adapter: the merge"
    partings = [parting("near", 0.03), parting("unknown", None), parting("wide", 4.5)]
    step = {"left": "adapter", "right": "merged", "says": says, "partings": partings}
    change(run / "probe/summary.json", steps=[step])
    text = section(render_html(collect(run)), "rates")
    assert says in text and "+4.50" in text and "+0.03" in text and "ended" in text
    assert text.index("widesingle7") < text.index("nearsingle7") < text.index("unknownsingle7")
    assert "'</tool_call>'" in text


def test_untrusted_tokens_and_broken_steps_do_not_break_the_page(new_run: NewRun) -> None:
    run = new_run()
    hostile = parting("<script>x</script>", float(1), "<img src=x onerror=alert(1)>")
    step = {"left": "<b>", "right": "merged", "says": "<i>s</i>", "partings": [hostile, 3]}
    change(run / "probe/summary.json", steps=[step, "no step", {"partings": 1}])
    data = collect(run)
    page = render_html(data)
    assert "<script>x</script>" in section(page, "rates"), "as text"
    for markup in ("<img src=x", "<script>x", "<i>s</i>"):
        assert markup not in page
    assert {problem.file.split(":")[0] for problem in data.problems} == {"probe/summary.json"}


def test_a_merge_says_that_the_opening_token_was_made_likelier(new_run: NewRun) -> None:
    run = new_run()
    change(run / "merge/summary.json", open_bias=0.0)
    assert "nats likelier" not in Page(render_html(collect(run))).text
    change(run / "merge/summary.json", open_bias=0.4)
    assert "opening token is 0.400 nats likelier" in Page(render_html(collect(run))).text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"top1_agreement": 0.875, "mean_kl": 0.031}, "at 87.5% of positions"),
        ({"top1_agreement": None, "mean_kl": None, "reason": "no"}, "was not compared"),
    ],
)
def test_a_merge_says_how_far_the_4_bit_model_stood_that_was_trained(
    found: dict[str, Any], said: str, new_run: NewRun
) -> None:
    run = new_run()
    assert "beside" not in Page(render_html(collect(run))).text.split("Merge proof")[2][:600]
    change(run / "merge/summary.json", training_base={"base_weights": "4bit", **found})
    text = Page(render_html(collect(run))).text
    assert "trained beside 4bit weights and merged into the full ones" in text
    assert said in text
