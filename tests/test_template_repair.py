"""`smollora repair MODEL --out DIR`: what is written, and that nothing is where nothing passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from smollora import repair_template
from smollora.errors import GateFailed
from smollora.templates.engine import load_shipped
from test_inspection import model_folder
from tiny_runs import CHATML, smollora

HOPELESS = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"


def test_the_repaired_folder_is_ready_and_loads_as_a_tokenizer(tmp_path: Path) -> None:
    folder, out = model_folder(tmp_path / "m", CHATML), tmp_path / "deep" / "out"
    said = smollora("repair", folder, "--out", out)
    assert said.code == 0, said.err
    assert smollora("inspect", out).code == 0
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.chat_template == (out / "chat_template.jinja").read_text(encoding="utf-8")
    before = AutoTokenizer.from_pretrained(folder)
    assert loaded.encode("<tool_call> x") == before.encode("<tool_call> x")
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing half is left"


def test_the_diff_stands_first_and_every_fault_has_a_reason(tmp_path: Path) -> None:
    said = smollora("repair", model_folder(tmp_path / "m", CHATML), "--out", tmp_path / "out")
    assert said.out.startswith("--- a/chat_template.jinja\n+++ b/chat_template.jinja\n")
    plan = repair_template(str(tmp_path / "m"))
    for change in plan.result.changes:
        assert f"    {change.check}: {change.reason}" in said.out
        assert change.mended_by in said.out
    assert plan.diff in said.out


def test_repairing_the_result_changes_nothing(tmp_path: Path) -> None:
    smollora("repair", model_folder(tmp_path / "m", CHATML), "--out", tmp_path / "once")
    said = smollora("repair", tmp_path / "once", "--out", tmp_path / "twice", "--json")
    found = json.loads(said.out)
    assert (found["changed"], found["changes"], found["diff"]) == (False, [], "")
    for path in (tmp_path / "once").iterdir():
        assert (tmp_path / "twice" / path.name).read_bytes() == path.read_bytes()


def test_repairing_a_folder_into_itself_keeps_its_other_files(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", CHATML)
    (folder / "model.safetensors").write_bytes(b"weights")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = "an old copy"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert smollora("repair", folder, "--out", folder).code == 0
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "model.safetensors").unlink()
    assert smollora("inspect", folder).code == 0


def test_what_cannot_be_mended_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder, out = model_folder(tmp_path / "m", HOPELESS), tmp_path / "out"
    said = smollora("repair", folder, "--out", out)
    assert said.code == 1
    assert "cannot be repaired automatically" in said.err
    assert "generation_prompt_matches" in said.err
    assert said.out == ""
    assert not out.exists()
    with pytest.raises(GateFailed):
        repair_template(str(folder), out)
    assert not out.exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    said = smollora("repair", model_folder(tmp_path / "m", CHATML), "--out", tmp_path / "out")
    assert said.code == 2
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = model_folder(tmp_path / "m", CHATML), tmp_path / "out"

    def full(path: Path, content: object) -> None:
        if path.name == "tokenizer.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(content.encode() if isinstance(content, str) else content)  # type: ignore

    monkeypatch.setattr("smollora.template_repair.write_whole", full)
    said = smollora("repair", folder, "--out", out)
    assert (said.code, "No space left" in said.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_without_out_nothing_is_written(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", CHATML)
    plan = repair_template(str(folder))
    assert plan.result.shipped == "chatml_tools"
    assert plan.stock == CHATML
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    assert repair_template(str(model_folder(tmp_path / "k", load_shipped("smollm3")))).diff == ""
