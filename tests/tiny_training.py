"""Trainings that take seconds: rows with parts, a tiny model, and the command in a process of its
own that can be killed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import smollora
from smollora.config import TrainSection
from smollora.data.batch import Row
from smollora.train import Ends, Trained, train_adapter
from smollora.types import PARTS
from tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer(template="{{ messages }}")
OPEN, CLOSE = TOKENIZER.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
STOP = TOKENIZER.eos_token_id
PAD = TOKENIZER.pad_token_id
ENDS = Ends(OPEN, (STOP,), PAD)
CITIES = ("Oslo", "Lima", "Rome", "Cairo", "Quito", "Bern")


def answer(pieces: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and parts of an answer written as (part, text)."""
    token_ids: list[int] = []
    parts: list[int] = []
    for part, text in pieces:
        ids = TOKENIZER.encode(text)
        token_ids += ids
        parts += [PARTS.index(part)] * len(ids)
    return token_ids, parts


def decision_rows() -> list[Row]:
    """Weather questions are answered by a call, the others in words."""
    rows = []
    for city in CITIES:
        call = [
            ("open", "<tool_call>"),
            ("name", '\n{"name": "get_weather"'),
            ("arguments", f', "arguments": {{"city": "{city}"}}}}\n'),
            ("close", "</tool_call><|im_end|>"),
        ]
        words = [("text", "It rains; take an umbrella with you.<|im_end|>")]
        asked = ((f"What is the weather in {city}?", call), (f"Say find {city} assistant.", words))
        for question, pieces in asked:
            prompt = TOKENIZER.encode(f"<|im_start|>user\n{question}<|im_end|>\n")
            said, parts = answer(pieces)
            rows.append(
                Row(
                    f"{city}-{len(rows)}",
                    (*prompt, *said),
                    (0.0,) * len(prompt) + (1.0,) * len(said),
                    (-1,) * len(prompt) + tuple(parts),
                )
            )
    return rows


ROWS = decision_rows()


def section(**more: Any) -> TrainSection:
    """Settings of a tiny training in float32."""
    return TrainSection.model_validate(
        {
            **{"embeddings": "tool_tokens", "lr": 5e-3, "epochs": 4, "rank": 4, "alpha": 8},
            **{"batch_tokens": 96, "dtype": "float32", "compile": "off"},
            **more,
        }
    )


def train(folder: Path, family: str = "smollm3", *, model: Any = None, **more: Any) -> Trained:
    """Train a tiny model on `ROWS` into `folder`/adapter."""
    return train_adapter(
        model if model is not None else tiny_model(family),
        ROWS,
        ROWS[:4],
        section(**more),
        token_ids=[OPEN, CLOSE],
        pad_id=PAD,
        out=folder / "adapter",
        ends=ENDS,
    )


# ── the command in a process of its own ───────────────────────────────────────────────────────


def environment(**more: str) -> dict[str, str]:
    """That of this process, with the code under test to be imported and one thread."""
    source = str(Path(smollora.__file__).parent.parent)
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**plain, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **more}


def start(
    *arguments: object,
    launcher: tuple[str, ...] = ("-m", "smollora"),
    packages: Path | None = None,
) -> Any:
    """`python -m smollora ARGUMENTS`, running; `packages` is a folder to import from first."""
    found = environment()
    if packages is not None:
        found["PYTHONPATH"] = os.pathsep.join((str(packages), found["PYTHONPATH"]))
    return subprocess.Popen(
        [sys.executable, *launcher, *(str(argument) for argument in arguments)],
        env=found,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(processes: int) -> tuple[str, ...]:
    """The start of a command line, with a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    return (
        *("-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"),
        *("--master-addr=127.0.0.1", f"--master-port={port}", "-m", "smollora"),
    )


def last_checkpoint(run: Path) -> int:
    """Step of the newest checkpoint of a run; 0 if there is none."""
    names = [path.name for path in (run / "train" / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def wait_for_checkpoint(process: Any, run: Path, step: int, seconds: float = 300) -> int:
    """Return once a checkpoint of `step` or later is there: its step."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := last_checkpoint(run)) >= step:
            return found
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"no checkpoint of step {step} within {seconds} s")


def curve(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's curve.jsonl."""
    lines = (run / "train" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
