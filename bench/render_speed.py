"""How fast conversations become token ids and labels, beside the two ways to compare with.

usage: python bench/render_speed.py [ROWS.jsonl] [--tokenizer DIR] [--pair NAME] [--rounds N]
           [--limit N]

ROWS.jsonl holds one conversation a line, in any form that `prepare` reads; without it the rows are
the starter data. In turn, round after round, in one process:

- ours: `Renderer.rows` on a model's own template, as `prepare` calls it, by a renderer that has
  seen none of the rows before;
- mask: transformers' `apply_chat_template(return_assistant_tokens_mask=True)`, row by row, on trl's
  copy of the template, in which `{% generation %}` is set by hand;
- bare: `tokenizers` encoding the same texts in one batch, without rendering or labels.

Labels are compared on every row: trl's, from the end of the generation prompt to the first stop
token, against ours. Prints one JSON object: rows a second of each round, ratios of their medians,
and the processor time of all threads a row. Run it alone on the machine, with
TOKENIZERS_PARALLELISM unset; on a busy one only the processor times say anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from smollm3_tokenizer import smollm3_tokenizer
from smollora.data.sources import read_conversation, read_rows
from smollora.data.starter import build_rows
from smollora.formats.hermes import HERMES
from smollora.render import Renderer, as_openai
from smollora.tokens import read_token_facts
from smollora.types import Conversation, Message, Reject, Rendered
from trl_pairs import Pair, pairs


def conversations(path: Path | None) -> Iterator[Conversation]:
    """The rows that can be used."""
    records = read_rows(path) if path else enumerate(build_rows("train"), 1)
    for number, record in records:
        made = read_conversation(record, "bench", number)
        if isinstance(made, Conversation):
            yield made


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the wall, seconds of processor time in all threads, and what was made."""
    wall, processor = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - wall, time.process_time() - processor, made


def with_mask(tokenizer: Any, pair: Pair, conversation: Conversation) -> tuple[Any, Any]:
    """Ids and mask by transformers from the template that is marked by hand."""
    out = tokenizer.apply_chat_template(
        as_openai(conversation.messages),
        tools=[tool.as_openai() for tool in conversation.tools] or None,
        chat_template=pair.marked,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    return out["input_ids"], out["assistant_masks"]


def agrees(
    renderer: Renderer, conversation: Conversation, ours: Any, theirs: tuple[Any, Any]
) -> bool:
    """Whether the only row of ours has trl's ids, and its labels after trimming."""
    ids, mask = theirs
    labels = [0] * len(ids)
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            at = len(renderer.prompt_ids(conversation.messages[:index], conversation.tools))
            while at < len(ids) and mask[at]:
                labels[at] = 1
                at += 1
                if ids[at - 1] in renderer.facts.stop_ids:
                    break
    if not isinstance(ours, tuple) or len(ours) != 1 or not isinstance(ours[0], Rendered):
        return False
    return list(ours[0].token_ids) == ids and [int(t) for t in ours[0].trained] == labels


def main() -> None:
    """Measures, compares, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path, nargs="?")
    parser.add_argument("--tokenizer", help="a folder; SmolLM3's is built if left out")
    parser.add_argument("--pair", default="qwen2_5", help="a template pair of the trl wheel")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use only so many rows")
    arguments = parser.parse_args()
    if arguments.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    else:
        tokenizer = smollm3_tokenizer()
    pair = next((pair for pair in pairs() if pair.name == arguments.pair), None)
    if pair is None:
        parser.error(f"no pair {arguments.pair}; there are {', '.join(p.name for p in pairs())}")
    facts = read_token_facts(tokenizer, HERMES, pair.stock)

    def fresh() -> Renderer:
        """A renderer that remembers none of the rows."""
        made = Renderer(pair.stock, tokenizer, facts)
        made.row(
            Conversation("warm-up", "bench", (Message("user", "?"), Message("assistant", ".")))
        )
        return made

    renderer = fresh()
    rows = list(islice(conversations(arguments.rows), arguments.limit))
    texts = [
        text.text
        for row in rows
        if not isinstance(made := renderer.text(row), Reject)
        for text in made
    ]
    backend = tokenizer.backend_tokenizer
    ways: dict[str, Callable[[Renderer], Any]] = {
        "ours": lambda renderer: list(renderer.rows(rows)),
        "mask": lambda _: [with_mask(tokenizer, pair, row) for row in rows],
        "bare": lambda _: backend.encode_batch(texts, add_special_tokens=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    times: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Any] = {}
    backend.encode_batch(texts[:64], add_special_tokens=False)
    for _ in range(arguments.rounds):
        for name, work in ways.items():
            wall, processor, made[name] = timed(partial(work, fresh()))
            rates[name].append(round(len(rows) / wall, 1))
            times[name].append(round(1000 * processor / len(rows), 3))
    median = {name: statistics.median(found) for name, found in rates.items()}
    same = sum(
        agrees(renderer, row, ours, theirs)
        for row, ours, theirs in zip(rows, made["ours"], made["mask"], strict=True)
    )
    refused = sum(isinstance(row, Reject) for row in made["ours"])
    print(
        json.dumps(
            {
                "rows": len(rows),
                "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
                "rows_per_second": rates,
                "processor_ms_per_row": times,
                "ours_over_mask": round(median["ours"] / median["mask"], 2),
                "ours_over_bare": round(median["ours"] / median["bare"], 2),
                "labels_agree": same,
                "refused": refused,
            }
        )
    )


if __name__ == "__main__":
    main()
