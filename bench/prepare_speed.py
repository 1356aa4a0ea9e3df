"""How fast rows become token ids and labels: smollora, TRL's way and bare tokenisation, in turn.

usage: python bench/prepare_speed.py ROWS.jsonl TOKENIZER_FOLDER [--rows 10000] [--rounds 3]
       python bench/prepare_speed.py ROWS.jsonl TOKENIZER_FOLDER --memory 200000

ROWS.jsonl: records in any form that smollora reads. Rows that convert are repeated until there are
--rows of them, under other tool names each time, for equal tools are tokenised once. Every way gets
the same conversations with the same template and tokenizer:

  smollora    `prepare` as a run does it: JSON decoded, checked, rendered, labelled, written as
              Parquet shards; in one process (in_process) and on --workers processes (local)
  TRL         `datasets.map` of `apply_chat_template(return_assistant_tokens_mask=True)` with the
              template's generation markers, as trl's SFTTrainer prepares conversations (needs
              datasets); in one process, its default
  bare        `encode_batch` of the rendered text, nothing else: the floor of any tokenisation

--memory: peak memory of the in-process way, told on the way through so many rows.

Prints one JSON object a line; the last one holds the medians and ratios. Wall time means something
on a machine that does nothing else; processor time does on a busy one as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollora.config import PrepareSection, SourceSection
from smollora.data.prepare import convert
from smollora.data.records import read_records
from smollora.data.tasks import prepare_set
from smollora.formats import get_format
from smollora.render import Renderer, as_openai
from smollora.templates.engine import load_shipped
from smollora.tokens import read_token_facts
from smollora.types import Conversation, Reject

MARKED = (
    "{%- if message.role == 'assistant' -%}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{ '\\n<tool_call>\\n' }}{{ call.function | tojson }}{{ '\\n</tool_call>' }}"
    "{%- endfor -%}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif -%}"
)
TRL_TEMPLATE = (
    "{%- if tools -%}{{ '<|im_start|>system\\n# Tools\\n<tools>' }}"
    "{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}"
    "{{ '\\n</tools><|im_end|>\\n' }}{%- endif -%}"
    "{%- for message in messages -%}" + MARKED + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""ChatML with generation markers, as the trl wheel's *_training.jinja files carry them: about the
text of the shipped template. It is given to TRL's way alone, which needs the markers.
"""


def repeated(path: Path, rows: int, folder: Path) -> Path:
    """The usable rows of a file again and again until there are `rows` of them; from the second
    time on the tools have other names and the user says something else, so that what is remembered
    of a row helps a repetition no more than it helps other rows.
    """
    talks = conversations_of(path)
    target = folder / f"rows-{rows}.jsonl"
    with target.open("w", encoding="utf-8") as stream:
        for index in range(rows):
            again, place = divmod(index, len(talks))
            stream.write(json.dumps(renamed(talks[place], again)) + "\n")
    return target


def renamed(talk: Conversation, again: int) -> dict[str, Any]:
    """A conversation as a record in OpenAI form, marked as the repetition that it is."""
    mark = f"_{again}" if again else ""
    messages = as_openai(talk.messages)
    tools = [tool.as_openai() for tool in talk.tools]
    called = [call for message in messages for call in message.get("tool_calls", ())]
    for named in (*tools, *called):
        named["function"]["name"] += mark
    for message in messages:
        if message["role"] == "user":
            message["content"] += mark
        if message["role"] == "tool" and "name" in message:
            message["name"] += mark
    return {"id": f"{talk.id}{mark}", "messages": messages, "tools": tools}


def section_of(path: Path, engine: str = "in_process", workers: int = 1) -> PrepareSection:
    """A recipe's prepare section over one file."""
    source = SourceSection(name="rows", path=str(path), kind="tool")
    return PrepareSection.model_validate(
        {
            "sources": [source.model_dump()],
            "engine": engine,
            "workers": workers,
            "shard_rows": 1024,
            "duplicates": "off",  # the rows are repeated on purpose
            "near_duplicates": "off",
            "overlap": "off",
        }
    )


def renderer_of(folder: Path, template: str) -> Renderer:
    """The shipped template over the tokenizer of a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = load_shipped(template)
    return Renderer(source, tokenizer, read_token_facts(tokenizer, get_format("hermes"), source))


def conversations_of(path: Path) -> list[Conversation]:
    """Those rows of a file that convert."""
    source = SourceSection(name="rows", path=str(path), kind="tool")
    read = (convert(number, record, source) for number, record in read_records(source, 7))
    return [item.conversation for item in read if not isinstance(item, Reject)]


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall time of one call, and processor time of this process and those it waited for."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def smollora_way(path: Path, renderer: Renderer, engine: str, workers: int, out: Path) -> int:
    """Rows in."""
    shutil.rmtree(out, ignore_errors=True)
    section = section_of(path, engine, workers)
    if engine == "in_process":
        return prepare_set(section, renderer, out, seed=7).rows_in
    from smollora.data.scale import prepare_on_engine

    return prepare_on_engine(section, renderer, out, seed=7).rows_in


def trl_way(dataset: Any, tokenizer: Any) -> None:
    """What trl's SFTTrainer does to conversational rows."""

    def encode(record: dict[str, str]) -> dict[str, Any]:
        row = json.loads(record["row"])
        encoded = tokenizer.apply_chat_template(
            row["messages"],
            tools=row["tools"] or None,
            chat_template=TRL_TEMPLATE,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}

    dataset.map(encode, load_from_cache_file=False)


def measure_speed(arguments: argparse.Namespace, folder: Path) -> None:
    """Every way in turn, `rounds` times."""
    import datasets
    from datasets import Dataset

    datasets.disable_progress_bars()
    path = repeated(arguments.rows_file, arguments.rows, folder)
    renderer = renderer_of(arguments.tokenizer, arguments.template)
    talks = conversations_of(path)
    texts = [
        item.text
        for result in (renderer.text(talk) for talk in talks)
        if isinstance(result, tuple)
        for item in result
    ]
    shown = [
        {
            "row": json.dumps(
                {
                    "messages": as_openai(talk.messages),
                    "tools": [tool.as_openai() for tool in talk.tools],
                }
            )
        }
        for talk in talks
    ]
    dataset = Dataset.from_list(shown)
    backend = renderer.tokenizer.backend_tokenizer

    def bare() -> None:
        for start in range(0, len(texts), 512):
            backend.encode_batch(texts[start : start + 512], add_special_tokens=False)

    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "bare": (len(texts), bare),
        "in_process": (
            arguments.rows,
            lambda: smollora_way(path, renderer, "in_process", 1, folder / "one"),
        ),
        "local": (
            arguments.rows,
            lambda: smollora_way(path, renderer, "local", arguments.workers, folder / "more"),
        ),
        "trl": (len(talks), lambda: trl_way(dataset, renderer.tokenizer)),
    }
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    found: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways if name != "local"}
    for number in range(arguments.rounds):
        for name, (count, work) in ways.items():
            wall, processor = seconds(work)
            found[name].append(count / wall)
            line = {"round": number, "way": name, "rows_per_second": round(count / wall, 1)}
            if name in spent:  # the workers of `local` are not waited for by this process
                spent[name].append(1000 * processor / count)
                line["processor_ms_per_row"] = round(spent[name][-1], 3)
            print(json.dumps(line), flush=True)
    median = {name: statistics.median(rates) for name, rates in found.items()}
    size = megabytes / len(texts)
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "converted": len(talks),
                "megabytes_of_text": round(megabytes, 1),
                "cores": os.cpu_count(),
                "rows_per_second": {name: round(rate, 1) for name, rate in median.items()},
                "megabytes_per_second": {
                    name: round(rate * size, 2) for name, rate in median.items()
                },
                "processor_ms_per_row": {
                    name: round(statistics.median(each), 3) for name, each in spent.items()
                },
                "local_over_trl": round(median["local"] / median["trl"], 2),
                "local_over_bare": round(median["local"] / median["bare"], 2),
                "in_process_over_trl": round(median["in_process"] / median["trl"], 2),
                "in_process_over_bare": round(median["in_process"] / median["bare"], 2),
            }
        )
    )


def measure_memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Peak resident memory of this process, told on the way through so many rows."""
    path = repeated(arguments.rows_file, arguments.memory, folder)
    renderer = renderer_of(arguments.tokenizer, arguments.template)
    step = max(arguments.memory // 20, 1)
    told = -step

    def tell(rows: int) -> None:
        nonlocal told
        if rows - told >= step:
            told = rows
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"rows": rows, "peak_mb": round(peak, 1)}), flush=True)

    tell(0)
    counts = prepare_set(section_of(path), renderer, folder / "set", seed=7, on_rows=tell)
    told = -step
    tell(counts.rows_in)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows_file", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--template", default="smollm3", help="a shipped template")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", type=int, metavar="ROWS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            measure_memory(arguments, Path(folder))
        else:
            measure_speed(arguments, Path(folder))


if __name__ == "__main__":
    main()
