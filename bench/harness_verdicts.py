"""Loads our task files in the real lm-eval and lighteval and scores canned answers through them.

In: a folder that `smollora eval --export` wrote. Out: for each harness that is installed beside
this Python its version, what it made of the task, and on how many canned answers it agrees with our
own verdict on the same text. Give each harness an environment of its own; smollora must be
importable.

    smollora eval MODEL --suite bfcl:multiple --suite bfcl:irrelevance --limit 20 --export cases
    python bench/harness_verdicts.py cases
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from smollora.evaluate.harness import score_text

HARNESSES = Path(__file__).resolve().parent.parent / "src/smollora/evaluate/harnesses"


def canned(row: dict[str, Any]) -> list[str]:
    """Answers to one exported case: right, wrong, none, broken."""
    case = json.loads(row["case"])
    calls = []
    for call in case["expected"]:
        arguments = {
            name: next((each for each in given if each != ""), None)
            for name, given in call["arguments"].items()
        }
        kept = {name: value for name, value in arguments.items() if value is not None}
        calls.append(
            f"<tool_call>\n{json.dumps({'name': call['name'], 'arguments': kept})}\n</tool_call>"
        )
    name = case["tools"][0]["function"]["name"]
    return [
        "\n".join(calls) or "I cannot do that.",
        f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>',
        f'<tool_call>\n{{"name": "{name}"\n</tool_call>',
        "Let me think about it.",
    ]


def with_lm_eval(folder: Path, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(answers, those scored as we score them) in lm-eval's own task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(HARNESSES / "lm_eval"),
        include_defaults=False,
        metadata={"cases": str(folder)},
    )
    loaded = manager.load(["smollora_calls"])
    task = loaded["tasks"]["smollora_calls"] if "tasks" in loaded else loaded["smollora_calls"]
    docs = list(task.test_docs())
    assert [task.doc_to_text(doc) for doc in docs] == [row["prompt"] for row in rows]
    print(f"  lm-eval asks {len(docs)} prompts; metrics: {', '.join(task.aggregation())}")
    pairs = [
        (task.process_results(doc, [text]), score_text(row, text))
        for doc, row in zip(docs, rows, strict=True)
        for text in canned(row)
    ]
    return len(pairs), sum(theirs == ours for theirs, ours in pairs)


def with_lighteval(folder: Path, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(answers, those scored as we score them) in lighteval's own task.

    Its registry imports every task of its own first. In lighteval 0.13.0 two of these go to the
    network as they are imported (a pickle from GitHub; a list of models from the Hub, with an
    argument that huggingface_hub 2 no longer takes), so only our file is loaded here.
    """
    os.environ["SMOLLORA_CASES"] = str(folder)
    from lighteval.tasks.registry import Registry

    Registry._load_from_files = staticmethod(lambda files, prefix: {})
    Registry._load_from_subdirs = staticmethod(lambda folders: {})
    registry = Registry(
        tasks="smollora_calls|0", custom_tasks=str(HARNESSES / "lighteval_calls.py")
    )
    (task,) = registry.load_tasks().values()
    docs = task.eval_docs()
    assert [doc.query for doc in docs] == [row["prompt"] for row in rows]
    names = [name for metric in task.metrics for name in metric.metric_name]
    print(f"  lighteval asks {len(docs)} prompts; metrics: {', '.join(names)}")
    (metric,) = task.metrics
    pairs = []
    for doc, row in zip(docs, rows, strict=True):
        for text in canned(row):
            answer = SimpleNamespace(final_text=[text], text=[text])
            theirs = metric.compute_sample(doc=doc, model_response=answer)
            pairs.append((theirs, score_text(row, text)))
    return len(pairs), sum(theirs == ours for theirs, ours in pairs)


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    text = (folder / "test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    for package, check in (("lm_eval", with_lm_eval), ("lighteval", with_lighteval)):
        if importlib.util.find_spec(package) is None:
            print(f"{package}: not installed here")
            continue
        print(f"{package} {importlib.metadata.version(package)}")
        answers, same = check(folder, rows)
        print(f"  {same} of {answers} canned answers scored as smollora scores them")


if __name__ == "__main__":
    main()
