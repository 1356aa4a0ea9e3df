"""The documentation as a site: it builds without a warning and without a network, says what the
code says, and can be looked at.

Needs mkdocs-material (`pip install -e '.[dev]'`); pictures need Debian's chromium.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from html import unescape
from pathlib import Path
from string import Template
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

from smollora.cli import app
from smollora.commands.probing import read_gate
from smollora.config import Recipe, load_recipe, names_a_recipe
from smollora.formats import FORMATS
from smollora.recipe_keys import recipe_keys
from smollora.team_checks import MODEL_CHECKS, ROW_CHECKS
from tiny_runs import smollora

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
VERBS = re.findall(r"^  (\w+)  +\w", smollora("--help").out, re.MULTILINE)
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every way to the network closed."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    """What a page says, without tags."""
    return unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))


def closed_up(text: str) -> str:
    """The text without line breaks and without the spaces that tags left before punctuation."""
    return re.sub(r" ([.,;:)])", r"\1", " ".join(text.split()))


def test_every_page_of_docs_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    pages |= {"starter-data", "contributing", "changelog"}
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    pages |= {f"notebook-{name.replace('_', '-')}" for name in notebooks}
    index = (site / "index.html").read_text(encoding="utf-8")
    for name in pages - {"index"}:
        assert (site / f"{name}.html").is_file()
        assert f'href="{name}.html"' in index, f"{name} is not in the navigation"


def test_a_notebook_shows_its_code_its_outputs_and_its_pictures(site: Path) -> None:
    said = closed_up(text_of(site / "notebook-5-model-card-words.html"))
    assert "SmolLM3RotaryEmbedding" in said and "256 + 1 = 256.0" in said
    page = (site / "notebook-5-model-card-words.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img alt="What the code above draws" src="([^"]+)"', page)
    assert len(pictures) == 7
    assert all((site / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    taught = (site / "notebook-4-teach-tool-calls.html").read_text(encoding="utf-8")
    assert re.search(r"<span[^>]*#8a2b12[^>]*labelled, delimiter[^>]*>&lt;tool_call&gt;", taught)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    """Links may lead away; what a page needs may not."""
    loads = r'<(?:link|script|img|iframe|source)\b[^>]*?(?:href|src)="(?:https?:)?//[^"]*"'
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 12
    for page in pages:
        found = re.findall(loads, page.read_text(encoding="utf-8"))
        assert [tag for tag in found if 'rel="canonical"' not in tag] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8"))


def test_every_link_of_the_site_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    ids = {
        page.name: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
        for page in site.glob("*.html")
    }
    seen = 0
    for page in set(site.glob("*.html")) - {site / "404.html"}:  # that one is for a server's root
        body = page.read_text(encoding="utf-8")
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', body):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = unescape(target).partition("#")
            name = page.name if path in ("", ".") else path
            assert (site / name).exists(), f"{page.name}: {target}"
            if anchor and name in ids and anchor not in ("", "__skip"):
                assert anchor in ids[name], f"{page.name}: {target}"
            seen += 1
    assert seen > 500


def test_the_recipe_page_holds_every_key_with_its_meaning(site: Path) -> None:
    said = " ".join(text_of(site / "recipe.html").split())
    plain = closed_up(said)
    for key in recipe_keys():
        assert key.name in said
        assert closed_up(key.description.replace("`", "")) in plain, key.path
    assert str(Recipe().train.batch_tokens) in said


def test_the_commands_page_holds_the_help_of_every_command(site: Path) -> None:
    said = " ".join(text_of(site / "commands.html").split())
    for verb in VERBS:
        assert f"Usage: smollora {verb} " in said
        options = set(re.findall(r"--[a-z][a-z-]+", smollora(verb, "--help").out))
        assert all(option in said for option in options), verb


def test_links_that_leave_the_docs_are_turned_to_the_pages_of_the_site(hooks: ModuleType) -> None:
    assert hooks.adapt("design.md", "[how](../src/smollora/data/starter/authored/FORMAT.md#a)") == (
        "[how](starter-data.md#a)"
    )
    assert hooks.adapt("contributing.md", "[d](docs/design.md) [l](LICENSE)") == "[d](design.md) l"
    assert (
        hooks.adapt("why.md", "[d](design.md) [r](../README.md)") == "[d](design.md) [r](index.md)"
    )
    assert hooks.adapt("why.md", "`[a](../README.md)` [x](https://a.b)") == (
        "`[a](../README.md)` [x](https://a.b)"
    )


def test_notebooks_are_linked_as_pages_and_pictures_stay_pictures(hooks: ModuleType) -> None:
    assert hooks.adapt("chat.md", "[a](../notebooks/1_simple_chat.ipynb)") == (
        "[a](notebook-1-simple-chat.md)"
    )
    assert hooks.adapt("notebook-3-chat-templates.md", "[why](../docs/why.md)") == "[why](why.md)"
    assert hooks.adapt("why.md", "![drawn](somewhere.png)") == "![drawn](somewhere.png)"


def test_pages_that_nobody_named_get_a_place(hooks: ModuleType) -> None:
    assert hooks.named([{"A": ["a.md", {"B": ["b.md"]}]}, "c.md"]) == ["a.md", "b.md", "c.md"]


# ── what the pages say ────────────────────────────────────────────────────────────────────────


def test_the_families_are_told_as_the_audit_found_them() -> None:
    """The table of families against the one that bench/audit_families.py wrote."""
    audit = (DOCS / "audit.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| (\w+) \|.*\| ([^|]+) \|$", audit, re.MULTILINE))
    families = (DOCS / "families.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| ((?:`\w+`(?:, )?)+) \| [^|]+ \| (\w+)[^|]* \|", families, re.M
    )
    assert len(rows) >= 10
    for family, templates, repair in rows:
        for name in re.findall(r"`(\w+)`", templates):
            said = "edited" if found[name].startswith("edited") else "no"
            assert repair == said, f"{family}: {name} is {found[name]}"


def test_the_families_name_formats_and_parsers_that_there_are() -> None:
    families = (DOCS / "families.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|.*\| `(\w+)` \|$", families, re.MULTILINE)
    assert len(rows) >= 20
    for formats, parser in rows:
        names = re.findall(r"`(\w+)`", formats)
        assert set(names) <= set(FORMATS)
        if names:
            assert {FORMATS[name].vllm_parser for name in names} == {parser}


def test_checks_and_reasons_that_pages_name_are_there() -> None:
    data = (DOCS / "data.md").read_text(encoding="utf-8")
    rates = {*Recipe().probe.gate, "stops_after_call", "spelled_out", "false_call_near"}
    known = {*MODEL_CHECKS, *ROW_CHECKS, *rates, *re.findall(r"`([a-z_]+)`", data)}
    others = {
        *("tool_calls", "loss_by_part", "base_stock", "tied_before", "tied_after", "date_string"),
        "training_base",
        *("enable_thinking", "prompt_mismatch", "embed_tokens", "xml_tools", "python_tools"),
        *("template_error", "no_call", "no_tools", "reasoning_content", "chatml_tools"),
        *(name for name in FORMATS),
        *(fmt.vllm_parser for fmt in FORMATS.values()),
    }
    for page in ("troubleshooting.md", "why.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        named = set(re.findall(r"`([a-z]+_[a-z_0-9]+)`", text))
        assert named - known - others == set(), page


def workflow_commands() -> list[list[str]]:
    """The commands of the workflow as a shell splits them, variables as they stand in `env`."""
    workflow = yaml.safe_load((DOCS / "github-action.yml").read_text(encoding="utf-8"))
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    lines = [line for run in runs for line in run.splitlines()]
    known = {name: str(value) for name, value in workflow["env"].items()}
    used = {name for line in lines for name in re.findall(r"\$(\w+)", line)}
    assert used == set(known)
    return [shlex.split(Template(line).substitute(known)) for line in lines]


def test_the_commands_of_the_workflow_parse() -> None:
    """As the command line parses them, positions and types of values included."""
    root = get_command(app)
    asked = [words for words in workflow_commands() if words[0] == "smollora"]
    assert {verb for _, verb, *_ in asked} == {"inspect", "check", "doctor", "probe"}
    for _, verb, *words in asked:
        with root.commands[verb].make_context(verb, list(words)):  # type: ignore[attr-defined]
            pass
    with pytest.raises(Exception, match="No such option"):  # that a wrong one would be found
        root.commands["probe"].make_context("probe", ["m", "--gates", "x"])  # type: ignore[attr-defined]


def test_the_workflow_gates_a_model_by_the_probe() -> None:
    (probe,) = [words for words in workflow_commands() if words[:2] == ["smollora", "probe"]]
    gate = read_gate([probe[at + 1] for at, word in enumerate(probe) if word == "--gate"])
    assert gate is not None and set(gate) <= set(Recipe().probe.gate)
    assert {"emission", "false_call_no_tools"} <= set(gate)
    assert not names_a_recipe(probe[2]), "a recipe has a gate of its own and takes no --gate"


def test_the_actions_of_the_workflow_have_a_version() -> None:
    workflow = yaml.safe_load((DOCS / "github-action.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", s["uses"]) for s in steps if "uses" in s)


def test_the_options_of_the_plugin_are_those_that_the_page_lists() -> None:
    plugin = (ROOT / "src" / "smollora" / "pytest_plugin.py").read_text(encoding="utf-8")
    page = (DOCS / "teams.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(--smollora-[a-z-]+)", page, re.MULTILINE))
    assert listed == set(
        re.findall(r'^        "(--smollora-[a-z-]+)",$', plugin, re.MULTILINE)
    ) | set(re.findall(r'addoption\(\s*"(--smollora-[a-z-]+)"', plugin))


def test_the_recipe_of_the_recipe_page_loads(tmp_path: Path) -> None:
    shown = re.search(
        r"```yaml\n(.*?)```", (DOCS / "recipe.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert shown
    (tmp_path / "mine.yaml").write_text(shown[1], encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml").train.epochs == 2


# ── in a browser ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("page", "dark"), [("index", False), ("recipe", True)])
def test_pages_can_be_photographed_light_and_dark(
    site: Path, tmp_path: Path, page: str, dark: bool
) -> None:
    picture = tmp_path / f"{page}.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    subprocess.run(
        [
            *(str(CHROMIUM), *flags, f"--screenshot={picture}", "--window-size=1280,1000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"),
            (site / f"{page}.html").as_uri(),
        ],
        capture_output=True,
        timeout=900,  # a browser that hangs, not one on a busy machine
        check=True,
    )
    content = picture.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1000)
    assert len(content) > 40_000, "an empty page compresses better"
