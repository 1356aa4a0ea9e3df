"""Arrows only point down, and the command line starts without the heavy libraries.

The levels are those of docs/design.md; a module takes the level of the longest name that it begins
with. Every import counts, wherever it stands, but for those under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import smollora

ROOT = Path(smollora.__file__).parent

LEVELS = {
    **dict.fromkeys(("errors", "types"), 0),
    **dict.fromkeys(("formats", "config", "recipe_keys", "draft.text", "runs"), 1),
    **dict.fromkeys(("tokens", "tokenizer_file", "templates", "render", "verify"), 2),
    **dict.fromkeys(("columns", "pieces"), 2),
    "data": 3,
    **dict.fromkeys(("models", "attention", "native", "memory", "train", "merge", "generate"), 4),
    **dict.fromkeys(("architecture", "launch", "likelihood", "endpoint"), 4),
    **dict.fromkeys(("probe", "evaluate", "serve", "doctor", "chat", "cures"), 5),
    **dict.fromkeys(("chat.child", "chat.start", "chat.stream"), 4),
    "report": 6,
    **dict.fromkeys(("cli", "__main__", "stages", "pipeline", "plan", "inspection", "progress"), 7),
    "commands": 7,
    **dict.fromkeys(("template_repair", "template_view", "run_view"), 7),
    **dict.fromkeys(("probe.run", "probe.steps", "probe.target", "probe.folder"), 7),
    "probe.table": 7,
    **dict.fromkeys(("cures.plan", "cures.run", "cures.subject", "cures.table", "cures.ways"), 7),
    **dict.fromkeys(("evaluate.run", "evaluate.targets", "evaluate.export"), 7),  # load models
    **dict.fromkeys(("team_checks", "pytest_plugin", "draft", "environment"), 7),
}

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow")
"""Imported where they are used: inside functions."""
MAY_IMPORT_TORCH_AT_ONCE = {
    "attention",
    "attention.blocks",
    "attention.gradient",
    "attention.interface",
    "attention.kernel",
    "attention.segments",
    "train.fused_four_bit",
    "train.fused_lora",
    "train.gate",
    "train.self_attention",
    "train.head",
    "native",
    "native.operator",
}
"""They register operators when they are imported, and training imports them."""
TORCH_FREE_BELOW = 4
MAY_USE_TORCH_BELOW = {"data.batch"}


def module_name(path: Path) -> str:
    """ "data.batch" for data/batch.py, "data" for data/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def level(module: str) -> int | None:
    parts = module.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((LEVELS[name] for name in names if name in LEVELS), None)


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Import statements, and whether each stands inside a function; TYPE_CHECKING left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, inside
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(absolute name, inside a function) of everything that a module imports."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for statement, inside in walk(tree):
        if isinstance(statement, ast.Import):
            yield from ((alias.name, inside) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{module} has a relative import"
            for alias in statement.names:
                inner = f"{statement.module}.{alias.name}"
                known = inner.removeprefix("smollora.") in MODULES
                yield (inner if known else str(statement.module)), inside


def own_imports(module: str) -> Iterator[tuple[str, bool]]:
    """The same for smollora's own modules, without the leading name; "" is the package."""
    for name, inside in imports(module):
        if name == "smollora" or name.startswith("smollora."):
            yield name.partition(".")[2], inside


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    source = (
        "import a\ndef f():\n    if x:\n        from b.c import d\nif TYPE_CHECKING:\n    import e"
    )
    found = [(ast.unparse(node), inside) for node, inside in walk(ast.parse(source))]
    assert found == [("import a", False), ("from b.c import d", True)]


def test_every_module_has_a_level() -> None:
    assert len(MODULES) > 30
    homeless = [module for module in MODULES if module and level(module) is None]
    assert homeless == []


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_a_module_imports_from_its_own_level_or_below(module: str) -> None:
    own = level(module)
    assert own is not None
    for other, _ in own_imports(module):
        theirs = 0 if other == "" else level(other)
        assert theirs is not None, f"{module} imports smollora.{other}, which is not there"
        assert theirs <= own, f"{module} (level {own}) imports {other} (level {theirs})"


def test_no_two_modules_need_each_other_to_be_imported() -> None:
    arrows = {
        module: {other for other, inside in own_imports(module) if not inside and other != module}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def test_nothing_but_the_stages_and_the_command_line_imports_the_report() -> None:
    users = {
        module
        for module in MODULES
        for other, _ in own_imports(module)
        if other.startswith("report") and not module.startswith("report")
    }
    assert users <= {"stages", "commands.stages", "commands.reporting"}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(module: str) -> None:
    for name, inside in imports(module):
        library = name.partition(".")[0]
        if library not in HEAVY:
            continue
        assert inside or module in MAY_IMPORT_TORCH_AT_ONCE, f"{module} imports {name} at once"
        below = (level(module) or 0) < TORCH_FREE_BELOW
        if library == "torch" and below:
            assert module in MAY_USE_TORCH_BELOW, f"{module} uses torch"


def test_probe_and_evaluation_see_the_generator_and_not_torch() -> None:
    for module in MODULES:
        if level(module) == 5:
            libraries = {name.partition(".")[0] for name, _ in imports(module)}
            assert not libraries & {"torch", "transformers", "peft"}, module


def test_formats_and_templates_and_types_need_the_standard_library_and_little_else() -> None:
    allowed = {
        "errors": set(),
        "types": set(),
        "formats": set(),
        "formats.hermes": set(),
        "runs": {"filelock"},
        "verify": set(),
        "render": set(),
        "tokens": {"pydantic"},
        "config": {"pydantic", "yaml"},
        "templates.engine": {"jinja2"},
        "templates.audit": set(),
        "templates.repair": set(),
        "data.sources": {"jsonschema"},
        "data.mix": set(),
        "data.parts": set(),
        "evaluate.match": set(),
        "evaluate.bfcl_match": set(),
        "evaluate.bfcl_values": set(),
        "evaluate.instructions": set(),
    }
    for module, libraries in allowed.items():
        found = {name.partition(".")[0] for name, _ in imports(module)}
        assert found - {"smollora"} - set(sys.stdlib_module_names) <= libraries, module


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys; import smollora, smollora.cli;"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "tokenizers", "huggingface_hub", "numpy", "jsonschema", "yaml"}
