"""What `mkdocs build` adds to the pages of this folder.

In: mkdocs' events. Out: the recipe's keys from config.py, the commands from --help, pages that live
elsewhere in the repository (notebooks with the outputs that they are kept with), and a place in the
navigation for pages that mkdocs.yml does not name. Nothing of it is kept in the repository, so that
it cannot fall behind the code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

OUTSIDE = {
    "starter-data.md": "src/smollora/data/starter/authored/FORMAT.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    **{
        f"notebook-{path.stem.replace('_', '-')}.md": f"notebooks/{path.name}"
        for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
    },
}
"""Pages of the site and the files of the repository that they show."""
ELSEWHERE = {"README.md": "index.md", **{source: page for page, source in OUTSIDE.items()}}
UNNAMED_GO_TO = "Use"
"""Section of the navigation for pages of docs/ that mkdocs.yml does not name."""
UNNAMED_ELSEWHERE = {"benchmarks.md": "Project"}
"""Those that go to another one."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts pages that nobody named into the navigation."""
    assert config.nav is not None
    there = {path.name for path in Path(config.docs_dir).glob("*.md")}
    left = sorted(there - set(named(config.nav)))
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    for page in left:
        sections[UNNAMED_ELSEWHERE.get(page, UNNAMED_GO_TO)].append(page)
    return config


def named(nav: Any) -> list[str]:
    """Every page that a navigation holds."""
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [page for value in values for page in named(value)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that live outside docs/."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for page, source in OUTSIDE.items():
        if source.endswith(".ipynb"):
            text, pictures = notebook_page(root / source, page.removesuffix(".md"))
        else:
            text, pictures = (root / source).read_text(encoding="utf-8"), {}
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    return files


def notebook_page(path: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """(Markdown, pictures by file name) of a notebook as it is kept; nothing is executed."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(
        str(path), resources={"unique_key": name, "output_files_dir": ""}
    )
    where = f"This page is `notebooks/{path.name}`, with the outputs of its last execution.\n"
    head, rule, rest = text.lstrip().partition("\n\n")
    text = f"---\nhide: [toc]\n---\n{head}{rule}{where}\n{rest}"  # code is wider than prose
    return text.replace("![png](", "![What the code above draws]("), resources["outputs"]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills what is generated in, and turns links that leave docs/ to where the site has them."""
    return adapt(page.file.src_uri, markdown)


def adapt(page: str, markdown: str) -> str:
    """A page of docs/ (or of OUTSIDE) as the site shows it."""
    if "<!-- recipe keys -->" in markdown:
        markdown = markdown.replace("<!-- recipe keys -->", recipe_reference())
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", command_reference())
    if "<!-- github action -->" in markdown:
        action = (Path(__file__).parent / "github-action.yml").read_text(encoding="utf-8")
        markdown = markdown.replace("<!-- github action -->", f"```yaml\n{action}```")
    place = OUTSIDE.get(page, f"docs/{page}")

    def moved(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            return link[0]
        path, sign, anchor = target.partition("#")
        real = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
        found = ELSEWHERE.get(real)
        if found is None and real.startswith("docs/"):
            found = real.removeprefix("docs/")
        return words if found is None else f"[{words}]({found}{sign}{anchor})"

    pieces = re.split(r"(^```.*?^```|`[^`\n]+`(?!\]))", markdown, flags=re.DOTALL | re.MULTILINE)
    pieces[::2] = [
        re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", moved, piece) for piece in pieces[::2]
    ]
    return "".join(pieces)


# ── recipe ───────────────────────────────────────────────────────────────────────────────────────


def recipe_reference() -> str:
    """Every key of the recipe, a table a section."""
    from smollora.draft.text import as_yaml
    from smollora.recipe_keys import recipe_keys, recipe_sections

    lines: list[str] = []
    keys = list(recipe_keys())
    for section in recipe_sections():
        title = section.path.replace("[]", " (each)") or "The recipe"
        lines += [f"## {title}", "", section.about, "", "| key | takes | default | meaning |"]
        lines.append("|---|---|---|---|")
        for key in keys:
            if key.section != section.path:
                continue
            if key.takes == "a list of sections":
                default = "the starter rows"
            else:
                default = "needed" if key.required else f"`{as_yaml(key.default)}`"
            cells = (f"`{key.name}`", key.takes, default, key.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def command_reference() -> str:
    """The help of every command."""
    lines: list[str] = []
    for verb in verbs():
        lines += [f"## smollora {verb}", "", "```text", help_of(verb), "```", ""]
    return "\n".join(lines)


def verbs() -> list[str]:
    """The commands in their order."""
    return re.findall(r"^  (\w+)  +\w", help_of(), re.MULTILINE)


def help_of(*verb: str) -> str:
    """What --help prints."""
    from typer.testing import CliRunner

    from smollora.cli import app

    runner = CliRunner(env={"COLUMNS": "88", "TERMINAL_WIDTH": "88", "NO_COLOR": "1"})
    done = runner.invoke(app, [*verb, "--help"], prog_name="smollora")
    assert done.exit_code == 0, done.output
    return done.output.strip()
