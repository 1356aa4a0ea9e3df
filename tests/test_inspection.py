"""`smollora inspect MODEL` as a person meets it: verdicts, no torch, the page, bad templates."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import smollora as package
from smollora.inspection import audit_template, describe_architecture, inspect_model
from smollora.report.model_page import render_model_page
from smollora.templates.engine import load_shipped
from tiny_models import tiny_tokenizer
from tiny_runs import CHATML, smollora

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"


def model_folder(path: Path, template: Any, **more: Any) -> Path:
    """Tokenizer and config, no weights."""
    tokenizer = tiny_tokenizer(**more)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    """They take seconds, and gigabytes with CUDA, to answer a question about text."""
    folder = model_folder(tmp_path / "m", load_shipped("chatml_tools"))
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "user", "content": "Hi"}]', encoding="utf-8")
    commands = [
        ["inspect", str(folder), "--html", str(tmp_path / "m.html")],
        ["repair", str(folder), "--out", str(tmp_path / "r")],
        ["template", str(folder), str(chat), "--tokens"],
    ]
    program = (
        "import sys; from smollora.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['smollora', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, arguments\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Content-Security-Policy" in (tmp_path / "m.html").read_text(encoding="utf-8")


def test_a_model_that_has_everything_is_ready(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", load_shipped("chatml_tools"))
    said = smollora("inspect", folder)
    assert said.code == 0, said.err
    assert said.out.splitlines()[0].endswith(": ready")
    assert "4 query heads on 2 key-value heads (GQA 2:1)" in said.out
    assert "note: pad id: tokenizer" in said.out


def test_json_holds_every_check_with_its_token(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", CHATML)
    said = smollora("inspect", folder, "--json")
    assert said.code == 1
    found = json.loads(said.out)
    lost = {c["name"] for c in found["template"]["checks"] if not c["ok"]}
    assert {"tools_reach_prompt", "calls_rendered", "list_content"} <= lost
    assert all(c["detail"] for c in found["template"]["checks"])
    assert found["verdict"] == f"the chat template fails {len(lost)} of 26 checks"


def test_delimiters_of_several_tokens_are_told_with_their_ids(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", load_shipped("chatml_tools"), tags=())
    said = smollora("inspect", folder)
    assert said.code == 1
    assert "<tool_call> is" in said.err
    assert "ordinary tokens; </tool_call> is" in said.err


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% if %}", "not valid Jinja"),
        ("{{ raise_exception('Not for you') }}", "fails 2"),
        ("{{ ''.__class__.__mro__ }}", "fails 2"),
        ("{{ messages.append(1) }}", "fails 2"),
        (ENDLESS, "runs past its limits"),
        (HUGE, "runs past its limits"),
        ({"rag": "x"}, "the tokenizer has no chat template"),
    ],
    ids=["none", "broken", "raises", "unsafe", "changes", "endless", "huge", "no name of use"],
)
def test_a_template_that_cannot_be_used_is_a_verdict_and_never_a_hang(
    template: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.3 if template == ENDLESS else 1.0  # that one is cut off six times
    monkeypatch.setattr("smollora.templates.engine.MAX_SECONDS", seconds)
    folder = model_folder(tmp_path / "m", template)
    chat = tmp_path / "chat.json"
    chat.write_text('[{"role": "user", "content": "Hi"}]', encoding="utf-8")
    start = time.monotonic()
    said = smollora("inspect", folder)
    assert (said.code, words in said.err) == (1, True), said.err
    said = smollora("repair", folder, "--out", tmp_path / "out")
    assert said.code in (1, 2), said.err
    assert not (tmp_path / "out").exists()
    said = smollora("template", folder, chat)
    assert said.code == 2 or (said.code == 0 and template == "{{ messages.append(1) }}"), said.err
    assert said.err.count("error: ") == (1 if said.code else 0)
    assert time.monotonic() - start < 60


def test_of_named_templates_the_one_for_tools_is_inspected(tmp_path: Path) -> None:
    shipped = load_shipped("chatml_tools")
    named = {"default": shipped, "tool_use": shipped}
    assert inspect_model(str(model_folder(tmp_path / "a", named)))["verdict"] == "ready"
    found = inspect_model(str(model_folder(tmp_path / "b", {**named, "default": "Hi. " + CHATML})))
    lost = [c["name"] for c in found["template"]["checks"] if not c["ok"]]
    assert lost == ["serving_prompt_same"]
    assert found["template"]["named"] == ["default", "tool_use"]


def test_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    assert smollora("inspect", tmp_path / "none").code == 2
    (tmp_path / "empty").mkdir()
    said = smollora("inspect", tmp_path / "empty")
    assert (said.code, "tokenizer" in said.err) == (2, True)
    folder = model_folder(tmp_path / "m", CHATML)
    (folder / "config.json").unlink()
    said = smollora("inspect", folder)
    assert (said.code, "config.json" in said.err) == (2, True)
    assert smollora("inspect", model_folder(tmp_path / "f", CHATML), "--format", "morse").code == 2


def test_the_page_is_escaped_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\u202e"
    folder = model_folder(tmp_path / "m", "{{ '" + evil + "' }}" + load_shipped("chatml_tools"))
    found = inspect_model(str(folder))
    page = render_model_page(found, describe_architecture(found["architecture"]))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<tr>") == 27, "a head and every check"


def test_the_functions_are_there_without_further_imports(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", load_shipped("chatml_tools"))
    assert package.inspect_model(str(folder))["verdict"] == "ready"
    assert all(check.ok for check in package.audit_template(str(folder)))
    assert package.audit_template is audit_template
    assert {"inspect_model", "repair_template", "show_template"} <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = package.nothing_of_ours
