"""What the shell offers after TAB, asked as bash and zsh ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smollora.commands.completion import complete_format, complete_recipe, complete_setting
from smollora.config import shipped_recipes
from smollora.formats import FORMATS
from tiny_runs import smollora


def offered(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is told for the line, whose last word is being typed."""
    words = line.split(" ")
    monkeypatch.setenv("_SMOLLORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return smollora().out.split()


def test_verbs_and_recipes_are_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "notes.txt").touch()
    assert "inspect" in offered(monkeypatch, "smollora ins")
    assert offered(monkeypatch, "smollora run ") == [*shipped_recipes(), "mine.yaml"]
    assert offered(monkeypatch, "smollora run smo") == ["smollm3"]


def test_recipe_keys_are_offered_as_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(monkeypatch, "smollora train starter train.lr") == ["train.lr="]
    assert "train.weights.open=" in offered(monkeypatch, "smollora run smollm3 train.")


def test_formats_and_stages_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(monkeypatch, "smollora inspect some --format deep") == [
        *("deepseek_v3", "deepseek_v31")
    ]
    assert offered(monkeypatch, "smollora run starter --force pre") == ["prepare"]


def test_values_of_a_key_that_takes_few_are_offered() -> None:
    assert [text for text, _ in complete_setting("train.embeddings=")] == [
        *("train.embeddings=lora", "train.embeddings=tool_tokens", "train.embeddings=frozen")
    ]
    assert [text for text, _ in complete_setting("model.format=deepseek_v31")] == [
        "model.format=deepseek_v31"
    ]
    assert complete_setting("train.lr=") == []
    assert complete_setting("no.such.key=") == []


def test_every_format_is_offered_beside_its_parser() -> None:
    assert dict(complete_format("")) == {
        name: f"vLLM parser {fmt.vllm_parser}" for name, fmt in FORMATS.items()
    }


def test_recipes_of_another_folder_are_offered(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").touch()
    assert complete_recipe(f"{tmp_path}/") == [(f"{tmp_path}/a.yaml", "recipe file")]
    assert complete_recipe(f"{tmp_path}/nowhere/") == []


def test_tab_answers_without_the_heavy_libraries() -> None:
    program = (
        "import os, sys\n"
        "os.environ['_SMOLLORA_COMPLETE'] = 'complete_zsh'\n"
        "os.environ['_TYPER_COMPLETE_ARGS'] = 'smollora run '\n"
        "sys.argv = ['smollora']\n"
        "from smollora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'pyarrow', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "starter" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
