"""README and docs say what is there: commands and their options, links, help, recipes, imports."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from smollora.config import check_recipe, load_recipe
from smollora.errors import ConfigError
from smollora.templates.audit import CHECKS
from tiny_runs import smollora, write_model

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "src").rglob("*.md"),
    ]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = set(re.findall(r"^  (\w+)  +\w", smollora("--help").out, re.MULTILINE))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(text: str) -> list[str]:
    """What stands in backticks and in fenced blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*blocks, *re.findall(r"`([^`]+)`", rest)]


@every_page
def test_every_command_that_is_named_exists(page: Path) -> None:
    found = re.findall(
        r"(?:^|\s)smollora (?!import\b)([a-z]\w*)",
        "\n".join(code(page.read_text(encoding="utf-8"))),
    )
    assert set(found) <= VERBS


def test_the_readme_names_the_commands_that_there_are() -> None:
    stages = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert stages <= VERBS
    named = {"chat", "check", "doctor", "eval", "init", "repair", "run", "serve", "template"}
    assert stages | named == VERBS


def test_the_help_in_the_readme_is_the_help_of_the_command() -> None:
    shown = re.search(r"<!-- smollora --help -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert shown
    assert shown[1] == smollora("--help").out.strip()


@cache
def options_of(verb: str) -> set[str]:
    """Long options of a verb, from its help."""
    return set(re.findall(r"(--[a-z][a-z-]*)", smollora(verb, "--help").out))


def blocks(text: str, *languages: str) -> list[str]:
    """Fenced blocks of these languages ("" for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Commands of smollora in the page's blocks, split as a shell splits them."""
    text = "\n".join(blocks(page.read_text(encoding="utf-8"), "", "sh", "bash"))
    lines = text.replace("\\\n", " ").splitlines()  # a command may go on in the next line
    found = [re.search(r"(?:^|[;&|] |run: )smollora ([^;&|>]*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_commands_are_found_in_blocks() -> None:
    found = commands(ROOT / "docs" / "index.md")
    assert ["repair", "~/models/mine", "--out", "mine-repaired"] in found and len(found) >= 8


@every_page
def test_every_command_in_a_block_has_its_options(page: Path) -> None:
    if page.name == "log.md":
        return  # entries keep the commands of their day
    for verb, *rest in commands(page):
        known = {"--help", "--install-completion", "--show-completion"}
        known |= set() if verb.startswith("-") else options_of(verb)
        own = rest[: rest.index("--")] if "--" in rest else rest  # after it: another program's
        named = {word.partition("=")[0] for word in [verb, *own] if word.startswith("--")}
        assert named <= known, f"smollora {verb}"


@every_page
def test_every_yaml_block_is_a_recipe_or_names_what_it_is(page: Path) -> None:
    """A block with `repos:` is for pre-commit; every other one is a recipe."""
    for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
        values = yaml.safe_load(block)
        if "repos" in values:
            hooks = [hook for repo in values["repos"] for hook in repo["hooks"]]
            for hook in hooks:
                program, verb, *rest = shlex.split(hook["entry"])
                assert program == "smollora" and verb in VERBS
                assert {word for word in rest if word.startswith("--")} <= options_of(verb)
        else:
            check_recipe(values, str(page))


@every_page
def test_every_python_block_compiles_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("smollora"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_the_python_of_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "models" / "mine")
    (block,) = blocks((ROOT / "docs" / "index.md").read_text(encoding="utf-8"), "python")
    names: dict[str, object] = {}
    exec(compile(block, "index.md", "exec"), names)
    assert "fails" in str(names["found"]["verdict"])  # type: ignore[index]


@every_page
def test_every_recipe_key_that_is_named_exists(page: Path) -> None:
    if page.name == "log.md":
        return  # entries keep the keys of their day
    text = "\n".join(code(page.read_text(encoding="utf-8")))
    recipe = load_recipe("starter")
    for place in re.findall(r"\b((?:model|prepare|mix|train|merge|probe)(?:\.[a-z_]+)+)\b", text):
        found: object = recipe
        for key in place.split("."):
            if key in ("md", "yaml", "py"):
                break
            assert hasattr(found, key), place
            found = getattr(found, key)


@every_page
def test_every_override_in_a_command_is_accepted(page: Path) -> None:
    for line in "\n".join(code(page.read_text(encoding="utf-8"))).splitlines():
        command = re.match(r"smollora \w+ (\w+) ((?:[a-z_.]+=\S+ ?)+)", line)
        if command:
            load_recipe(command[1], command[2].split())


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown
    (tmp_path / "mine.yaml").write_text(shown[1], encoding="utf-8")
    try:
        assert load_recipe(tmp_path / "mine.yaml").name == "mine"
    except ConfigError as error:
        pytest.fail(str(error))


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page if not name else page.parent / name
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_links_and_commands_of_a_notebook_are_there(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s#]+)", text):
        assert target.startswith("https://") or (path.parent / target).is_file(), target
    assert set(re.findall(r"`smollora (?!import\b)([a-z]\w*)", text)) <= VERBS


def test_every_path_in_the_contributing_guide_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:src|tests|docs|\.ci)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_checks_that_the_readme_names_are_checks_of_the_audit() -> None:
    table = README[README.index("## When it does not work") : README.index("## Limits")]
    checks = {check.__name__ for check in CHECKS}
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", table))
    others = {"tool_calls", "base_stock", "spelled_out", "date_string"}
    assert named - others - {"tied_before", "tied_after"} <= checks
    assert len(named & checks) >= 7


@every_page
def test_no_figure_is_left_to_be_filled_in(page: Path) -> None:
    assert re.findall(r"TODO_FIGURE\(\w+\)", page.read_text(encoding="utf-8")) == []


@every_page
def test_a_page_has_no_line_of_trailing_spaces(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if line != line.rstrip()] == []
