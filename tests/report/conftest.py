"""A whole run folder as the stages would leave it: synthetic, deterministic, every file there.

`build_run(folder)` writes it; tests then break, remove or poison single files. Tokens are cut by a
regular expression and their ids are hashes: nothing here loads a tokenizer, and nothing depends on
what the ids are.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

SPECIAL = {"<|im_start|>": 1, "<|im_end|>": 2, "<tool_call>": 49152, "</tool_call>": 49153}
PIECES = re.compile(r"<\|im_start\|>|<\|im_end\|>|</?tool_call>| ?\w{1,6}|\n|\s|[^\w\s<]+|<")
MODELS = ("base", "base_stock", "adapter", "merged", "served")

TOOLS = {
    "get_forecast": (
        "the weather forecast of a city",
        {"city": "Lyon", "days": 3},
        "What will the weather be in {} this week?",
    ),
    "find_train": (
        "trains between two stations",
        {"origin": "Porto", "destination": "Lisbon"},
        "When is the next train to {}?",
    ),
    "convert_currency": (
        "an amount in another currency",
        {"amount": 120, "to": "CHF"},
        "How much is 120 euros in {} money?",
    ),
    "create_event": (
        "a new event in the calendar",
        {"title": "Dentist", "start": "09:30"},
        "Put a dentist visit in {} into my calendar.",
    ),
}
PLACES = ("Lyon", "Porto", "Kraków", "Zürich", "京都", "Reykjavík", "Montréal", "القاهرة")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def wilson(k: int, n: int) -> dict[str, float | int | None]:
    """k of n with the interval that the probe would write."""
    if n == 0:
        return {"k": k, "n": n, "rate": None, "low": None, "high": None}
    z, p = 1.96, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "k": k,
        "n": n,
        "rate": p,
        "low": max(0.0, centre - half),
        "high": min(1.0, centre + half),
    }


def cut(text: str) -> tuple[list[int], list[str]]:
    tokens = PIECES.findall(text)
    return [
        SPECIAL.get(token, 10 + zlib.crc32(token.encode()) % 49_000) for token in tokens
    ], tokens


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def preview_row(number: int, kind: str) -> dict[str, Any]:
    name, (about, arguments, question) = list(TOOLS.items())[number % len(TOOLS)]
    place = PLACES[number % len(PLACES)]
    schema = {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": {"type": "object"}},
    }
    offered = (
        f"You may call these tools:\n{json.dumps(schema)}\nAnswer briefly."
        if kind != "no_tools"
        else "Answer briefly."
    )
    turns = [("system", offered), ("user", question.format(place))]
    if kind == "call":
        turns += [
            ("assistant", call_text(name, arguments)),
            (
                "tool",
                json.dumps(
                    {"ok": True, "result": f"{number} results for {place}"}, ensure_ascii=False
                ),
            ),
            ("assistant", f"Here is what I found for {place}."),
        ]
    elif kind == "no_call":
        turns.append(("assistant", "None of my tools can do that, so I cannot tell."))
    else:
        turns.append(("assistant", f"{place} is a city that I can tell you a little about."))
    row: dict[str, Any] = {"token_ids": [], "tokens": [], "owner": [], "trained": [], "part": []}

    def add(text: str, owner: int, trained: bool, part: str | None) -> None:
        ids, tokens = cut(text)
        row["token_ids"] += ids
        row["tokens"] += tokens
        for column, value in (("owner", owner), ("trained", trained), ("part", part)):
            row[column] += [value] * len(tokens)

    for index, (role, content) in enumerate(turns):
        add(f"<|im_start|>{role}\n", -1, False, None)
        if role == "assistant" and content.startswith("<tool_call>"):
            body = content.removeprefix("<tool_call>").removesuffix("</tool_call>")
            split = body.index('", "arguments') + 1
            add("<tool_call>", index, True, "open")
            add(body[:split], index, True, "name")
            add(body[split:], index, True, "arguments")
            add("</tool_call>", index, True, "close")
        else:
            add(content, index, role == "assistant", "text" if role == "assistant" else None)
        add(
            "<|im_end|>",
            index if role == "assistant" else -1,
            role == "assistant",
            "text" if role == "assistant" else None,
        )
        add("\n", -1, False, None)
    source = {"call": "starter-calls", "no_call": "near-misses", "no_tools": "general"}[kind]
    return {
        "conversation_id": f"{source}-{number:05d}",
        "source": source,
        "kind": kind,
        "roles": [role for role, _ in turns],
        **row,
    }


BEFORE, AFTER = -7.25, -0.0625
"""Log-probability of every labelled token."""


def logprob_lines(preview: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What the probe leaves about the preview rows."""
    for model, labelled in (("base", BEFORE), ("merged", AFTER)):
        for number, row in enumerate(preview):
            values = [labelled if each else None for each in row["trained"]]
            yield {
                "model": model,
                "row": number,
                "conversation_id": row["conversation_id"],
                "token_ids_sha256": hashlib.sha256(
                    json.dumps([row["token_ids"]], sort_keys=True).encode()
                ).hexdigest(),
                "logprobs": values,
            }


def answer(model: str, category: str, number: int) -> tuple[str, str, str]:
    """Text, verdict and detail of one answer."""
    name, (_, arguments, _) = list(TOOLS.items())[number % len(TOOLS)]
    needs = category in ("simple", "multiple", "parallel")
    if model.startswith("base"):
        if not needs:
            return "I am sorry, I cannot look that up here.<|im_end|>", "right", ""
        if number % 3 == 0:
            spelled = json.dumps({"name": name, "arguments": arguments})
            return spelled + "<|im_end|>", "spelled_out", "the call is written with ordinary tokens"
        return (
            f"Sure! You can use the {name} tool for this. It will tell you more.<|im_end|>",
            "no_call",
            "no attempt to call",
        )
    if not needs:
        if category != "no_tools" and number % 13 == 0:
            return (
                call_text(name, arguments) + "<|im_end|>",
                "false_call",
                f"called {name}, expected no call",
            )
        return "I have no tool for that.<|im_end|>", "right", ""
    if number % 41 == 40:
        return "I will look it up for you.<|im_end|>", "no_call", "no attempt to call"
    if number % 17 == 16:
        wrong = list(TOOLS)[(number + 1) % len(TOOLS)]
        return call_text(wrong, {}) + "<|im_end|>", "wrong_tool", f"called {wrong}, expected {name}"
    return call_text(name, arguments) + "<|im_end|>", "right", ""


SIZES = {
    "simple": 80,
    "multiple": 64,
    "parallel": 64,
    "irrelevance": 60,
    "missing_argument": 40,
    "no_tools": 20,
}
NEEDS = ("simple", "multiple", "parallel")


def records() -> list[dict[str, Any]]:
    rows = []
    for model in MODELS:
        for category, size in SIZES.items():
            for number in range(size):
                text, verdict, detail = answer(model, category, number)
                name, (_, arguments, question) = list(TOOLS.items())[number % len(TOOLS)]
                ids, tokens = cut(text)
                needs = category in NEEDS
                rows.append(
                    {
                        "model": model,
                        "case_id": f"{category}-{number:03d}",
                        "category": category,
                        "request": question.format(PLACES[number % len(PLACES)]),
                        "tools": list(TOOLS)[: 1 + number % 4] if category != "no_tools" else [],
                        "expected": [{"name": name, "arguments": arguments}] if needs else [],
                        "token_ids": ids,
                        "tokens": tokens,
                        "text": text,
                        "finish": "stop",
                        "opener_logprob": -12.5 if model.startswith("base") else -0.03,
                        "verdict": verdict,
                        "detail": detail,
                        "flags": {"emitted": 49152 in ids},
                    }
                )
    return rows


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    needs = [row for row in rows if row["category"] in NEEDS]
    others = [row for row in rows if row["category"] not in NEEDS]
    called = [row for row in needs if row["flags"]["emitted"]]
    right = [row for row in called if row["verdict"] == "right"]
    return {
        "emission": wilson(len(called), len(needs)),
        "valid_json": wilson(len(called), len(called)),
        "schema_valid": wilson(len(called) - len(called) // 20, len(called)),
        "right_tool": wilson(len(right), len(needs)),
        "stops_after_call": wilson(len(called), len(called)),
        "false_call": wilson(sum(row["flags"]["emitted"] for row in others), len(others)),
        "spelled_out": wilson(sum(row["verdict"] == "spelled_out" for row in needs), len(needs)),
    }


RECIPE = """\
model: starter-135m
format: hermes
data:
  sources: [starter-calls, near-misses, general]
train: {rank: 16, lr: 5.0e-04, steps: 240, tokens_per_batch: 4200}
probe:
  gate:
    emission: {at_least: 0.9}
    false_call: {at_most: 0.1}
seed: 7
"""


def head(stage: str, seconds: float) -> dict[str, Any]:
    return {"schema_version": 1, "stage": stage, "seconds": seconds}


def build_run(folder: Path) -> Path:
    """Write a finished, passed run into `folder`."""
    chance = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    write_json(
        folder / "manifest.json",
        {
            "smollora": "0.1.0",
            "git_revision": "0" * 40,
            "seed": 7,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            "hardware": {"cores": 2, "memory_bytes": 25_000_000_000},
        },
    )
    details = {
        "keeps_tool_calls": (False, "an assistant message's tool_calls render as an empty turn"),
        "tool_turn_is_marked": (False, "a tool message becomes a plain user turn"),
        "tools_are_json": (False, "tools are written as a Python repr: single quotes, True, None"),
        "system_turn_is_closed": (False, "without tools the system turn has no <|im_end|>"),
        "date_is_frozen": (True, ""),
        "prefix_is_stable": (True, ""),
        "stop_token_ends_turn": (True, "<|im_end|>, id 2"),
    }
    write_json(
        folder / "inspect/summary.json",
        head("inspect", 3.4)
        | {
            "model": "starter-135m",
            "format": "hermes",
            "open": {"text": "<tool_call>", "id": 49152, "special": False, "single": True},
            "close": {"text": "</tool_call>", "id": 49153, "special": False, "single": True},
            "stop_ids": [2],
            "template": {
                "sha256": "3e0e275a" + "0" * 56,
                "checks": [{"name": n, "ok": ok, "detail": d} for n, (ok, d) in details.items()],
                "repaired": True,
                "repaired_checks": [{"name": n, "ok": True, "detail": ""} for n in details],
            },
            "architecture": {
                "layers": 30,
                "hidden_size": 576,
                "tied_embeddings": True,
                "vocabulary": 49156,
            },
        },
    )
    write_json(
        folder / "prepare/summary.json",
        head("prepare", 11.8)
        | {
            "rows_in": 2240,
            "rows_kept": 2081,
            "rejected": {
                "unknown_tool": 71,
                "too_long": 44,
                "arguments_do_not_fit": 31,
                "unmatched_tag": 13,
            },
            "tokens": 948_213,
            "labelled_tokens": 171_090,
            "rows_per_second": 189.8,
        },
    )
    write_json(
        folder / "verify/summary.json",
        head("verify", 6.1)
        | {"rows": 2081, "rows_with_calls": 1204, "rows_proved": 2081, "failures": []},
    )
    sources = (
        ("starter-calls", 620, 71_400),
        ("near-misses", 310, 18_900),
        ("general", 250, 42_300),
    )
    write_json(
        folder / "mix/summary.json",
        head("mix", 1.2)
        | {
            "sources": {
                name: {
                    "rows": rows,
                    "labelled_tokens": labelled,
                    "share_rows": rows / sum(s[1] for s in sources),
                    "share_labelled_tokens": labelled / sum(s[2] for s in sources),
                }
                for name, rows, labelled in sources
            }
        },
    )
    kinds = ("call", "no_call", "no_tools")
    preview = [preview_row(n, kinds[n % 3]) for n in range(60)]
    write_jsonl(folder / "mix/preview.jsonl", preview)
    write_jsonl(folder / "probe/preview_logprobs.jsonl", logprob_lines(preview))
    curve = []
    for step in range(1, 241):
        fall = math.exp(-step / 60)
        point: dict[str, Any] = {
            "step": step,
            "loss": 0.31 + 2.2 * fall + chance.gauss(0, 0.09),
            "lr": 5e-4 * (1 - step / 240),
        }
        point |= {"tokens": 4200 * step, "seconds": 4.9 * step}
        if step % 20 == 0 or step == 1:
            scale = {
                "open": 0.02 + 3.8 * fall,
                "name": 0.06 + 2.4 * fall,
                "arguments": 0.14 + 1.6 * fall,
                "close": 0.01 + 2.9 * fall,
            }
            point["loss_by_part"] = scale | {"text": 0.9 + 1.1 * fall}
        if step % 40 == 0:
            point["validation_loss"] = 0.38 + 2.2 * fall
        curve.append(point)
    write_jsonl(folder / "train/curve.jsonl", curve)
    write_json(
        folder / "train/summary.json",
        head("train", 1176.0)
        | {
            "steps": 240,
            "tokens": 1_008_000,
            "labelled_tokens": 182_540,
            "tokens_per_second": 857.1,
            "peak_memory_bytes": 2_310_000_000,
            "loss_first": curve[0]["loss"],
            "loss_last": curve[-1]["loss"],
            "validation_loss": curve[-1]["validation_loss"],
            "loss_by_part": curve[-1]["loss_by_part"],
        },
    )
    write_json(
        folder / "merge/summary.json",
        head("merge", 21.0)
        | {
            "max_logit_difference_in_memory": 2.1e-6,
            "max_logit_difference_reloaded": 0.0,
            "top1_agreement": 1.0,
            "mean_kl": 3.4e-9,
            "tied_before": True,
            "tied_after": True,
        },
    )
    rows = records()
    write_jsonl(folder / "probe/records.jsonl", rows)
    by_model = {model: [row for row in rows if row["model"] == model] for model in MODELS}
    overall = {model: rates(mine) for model, mine in by_model.items()}
    write_json(
        folder / "probe/summary.json",
        head("probe", 312.0)
        | overall
        | {
            "by_category": {
                model: {
                    category: rates([row for row in mine if row["category"] == category])
                    for category in SIZES
                }
                for model, mine in by_model.items()
            },
            "gate": {
                "emission": {
                    "at_least": 0.9,
                    "value": overall["merged"]["emission"]["rate"],
                    "ok": True,
                },
                "right_tool": {
                    "at_least": 0.85,
                    "value": overall["merged"]["right_tool"]["rate"],
                    "ok": True,
                },
                "false_call": {
                    "at_most": 0.1,
                    "value": overall["merged"]["false_call"]["rate"],
                    "ok": True,
                },
            },
            "passed": True,
            "reasons": [],
        },
    )
    write_json(
        folder / "eval/summary.json",
        head("eval", 604.0)
        | {
            "suites": {
                "bfcl": {
                    "simple_python": {
                        "base": {"correct": wilson(0, 40)},
                        "merged": {"correct": wilson(31, 40)},
                    },
                    "irrelevance": {
                        "base": {"correct": wilson(40, 40)},
                        "merged": {"correct": wilson(33, 40)},
                    },
                    "live_relevance": {
                        "base": {"correct": wilson(0, 0)},
                        "merged": {"correct": wilson(0, 0)},
                    },
                },
                "retention": {
                    "chat": {"base": {"kept": wilson(50, 50)}, "merged": {"kept": wilson(48, 50)}}
                },
            }
        },
    )
    return folder


POISON = (
    "<script>document.documentElement.dataset.hacked='yes'</script>"
    "</script></style></title><script>document.documentElement.dataset.hacked='yes'</script>"
    "<img src=x onerror=\"document.documentElement.dataset.hacked='yes'\">"
    '" autofocus onfocus="document.documentElement.dataset.hacked=\'yes\'" x="\' '
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; ]]> <!-- "
    "\x00\x07\x1b[31mred\x1b[0m\x9b \u202ereversed\u202c \u200bhidden \u2028 \ud800 \ufffe"
)


def poisoned(value: Any) -> Any:
    """The same JSON with every string, and a key of every object, turned hostile."""
    if isinstance(value, str):
        return POISON + value
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()}
    return value


def poison(run: Path) -> Path:
    """Make every text of every file of the run hostile, models' names aside."""
    for path in run.glob("*/*.json*"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        spoiled_lines = []
        for line in lines:
            spoiled = poisoned(line)
            if path.name in ("records.jsonl", "preview_logprobs.jsonl"):
                spoiled["model"] = line["model"]
            if path.name == "preview_logprobs.jsonl":
                spoiled["token_ids_sha256"] = line["token_ids_sha256"]
            spoiled_lines.append(json.dumps(spoiled))
        path.write_text("\n".join(spoiled_lines))
    spoil_keys(run)
    (run / "recipe.yaml").write_text(POISON, "utf-8", "surrogatepass")
    (run / "manifest.json").write_text(json.dumps({POISON: POISON}))
    return run


def spoil_keys(run: Path) -> None:
    prepare = json.loads((run / "prepare/summary.json").read_text())
    change(run / "prepare/summary.json", rejected={POISON: 3, **prepare["rejected"]})
    evaluated = json.loads((run / "eval/summary.json").read_text())["suites"]["bfcl"]
    change(run / "eval/summary.json", suites={POISON: {POISON: evaluated["irrelevance"]}})
    probe = json.loads((run / "probe/summary.json").read_text())
    some = probe["by_category"]["merged"]["simple"]
    change(
        run / "probe/summary.json",
        by_category={"merged": {POISON: some | {POISON: some["emission"]}}},
        gate={POISON: {"at_least": 0.5, "value": None, "ok": False}},
        reasons=[POISON],
    )


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test may change."""
    return build_run(tmp_path_factory.mktemp("runs") / "starter")


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[], Path]:
    """Builds a finished run that the test may spoil."""
    return lambda: build_run(tmp_path / "starter")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text attacks the page: markup, scripts, terminal codes, hidden letters."""
    return poison(build_run(tmp_path_factory.mktemp("hostile") / "starter"))
