"""What a chat leaves out when it starts, and that nobody misses it. Processes of their own: what is
imported in one stays imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smollora.templates.engine import load_shipped
from tiny_models import FAMILIES, save_model, tiny_model, tiny_tokenizer

HEAVY = ("scipy.optimize", "torch._dynamo.eval_frame", "torch.distributed.tensor")

ANSWER = """
import json, sys
from pathlib import Path
from smollora.chat.settings import Settings
from smollora.chat.stream import open_stream
asked = {"greedy": {}, "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 5}}
answers = {}
for folder in sys.argv[2:]:
    stream = open_stream(Path(folder), alone=sys.argv[1] == "alone")
    said = {
        name: list(stream.tokens(range(40, 60), Settings(max_new_tokens=12, **more), (), bool))
        for name, more in asked.items()
    }
    modules = [m for m in sys.modules if sys.modules[m]]
    answers[Path(folder).name] = {"said": said, "modules": modules}
print(json.dumps(answers))
"""

COMPILED = """
import torch, sys
from smollora.chat.start import skip_what_no_answer_needs
skip_what_no_answer_needs()
import transformers.models.llama.modeling_llama
assert "torch._dynamo.eval_frame" not in sys.modules
@torch.compile(backend="eager")
def twice(x):
    return 2 * x
assert twice(torch.ones(2)).tolist() == [2, 2]
assert torch._dynamo.config.recompile_limit > 0
print(type(sys.modules["torch._dynamo"]).__name__, "torch._dynamo.eval_frame" in sys.modules)
"""


def run(program: str, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *(["-c", program] if program else []), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        **more,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of a model of each family and the modules imported by then: of a process that starts
    as the command does, and of one that imports everything.
    """
    place = tmp_path_factory.mktemp("start")
    for family in FAMILIES:
        save_model(tiny_model(family), tiny_tokenizer(template="{{ messages }}"), place / family)
    folders = [place / family for family in FAMILIES]
    return {how: json.loads(run(ANSWER, how, *folders).stdout) for how in ("alone", "not alone")}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_and_a_thousand_modules_fewer_are_imported(
    family: str, answers: dict[str, Any]
) -> None:
    alone, with_all = answers["alone"][family], answers["not alone"][family]
    assert alone["said"] == with_all["said"]
    assert all(len(ids) == 12 for ids in alone["said"].values())
    assert not {"scipy", *HEAVY} & set(alone["modules"])
    assert {"torch._dynamo.eval_frame", "torch.distributed.tensor"} <= set(with_all["modules"])


def test_whoever_compiles_after_all_gets_the_compiler() -> None:
    assert run(COMPILED).stdout.split() == ["module", "True"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model that can be chatted with."""
    tokenizer = tiny_tokenizer(template=load_shipped("chatml_tools"))
    return save_model(tiny_model("llama"), tokenizer, tmp_path / "model")


def test_the_command_starts_so_and_answers_in_a_pipe(folder: Path) -> None:
    program = (
        "import sys; from smollora.cli import main\n"
        f"sys.argv = ['smollora', 'chat', {str(folder)!r}, '--set', 'max_new_tokens=3']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('imported:', [m for m in {HEAVY!r} if sys.modules.get(m)])"
    )
    assert run(program, input="Hello?\n").stdout.splitlines()[-1] == "imported: []"


def test_a_program_that_chats_beside_other_work_keeps_its_libraries(folder: Path) -> None:
    """`smollora.Chat` is used in notebooks, where somebody may need scipy."""
    program = (
        "import sys, smollora\n"
        f"smollora.Chat({str(folder)!r}, max_new_tokens=2).say('Hello?')\n"
        "import torch\n"
        "print(sys.modules.get('scipy', 'absent') is not None, torch.distributed.is_available())"
    )
    assert run(program).stdout.split()[-2:] == ["True", "True"]
