"""Training speed and memory on given rows, beside the rate that matrix products alone would allow.

usage: python bench/train_speed.py rows CONVERSATIONS.jsonl runs/NAME/base OUT.jsonl [--limit N]
       python bench/train_speed.py train MODEL ROWS.jsonl [--steps 10] [--batch-tokens 4096]
       python bench/train_speed.py loss MODEL ROWS.jsonl [--steps 20] [--batch-tokens 2048]

`rows` renders conversations (any form that `prepare` reads) with a run's `base/`, the model with
its delimiters and template, as {"input_ids": [...], "labels": [...]}, -100 where nothing is
trained, so that another trainer can be given the same tokens and labels. `train` trains LoRA
(rank 16, every linear layer; layers compiled unless --no-compile) on rows of that form, at most
--max-length tokens each (--join: joined to just so many; torchrun starts it in several processes),
as `smollora train` does (--no-gate: feed-forward layers by PyTorch's operators), and prints one
JSON object: unpadded tokens a second after the first step, the same of the median step (the first
dozen still ask the system for memory), labelled tokens, peak memory (resident; on a GPU of
tensors), losses, and `share_of_products`: that
rate over the one which the products of the frozen weights would allow (4 x parameters
multiplications a token at the rate of bf16 products on the processor, measured two seconds just
before and two just after).
`loss` compares the loss of each step with a plain float32 reference on the same batches:
full logits, row by row, no tree, no compilation. Run it alone on the machine, in turn with whatever
it is compared with.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from smollora.config import TrainSection
from smollora.data.batch import Row, plan_batches
from smollora.data.sources import read_conversation, read_rows
from smollora.formats import HERMES
from smollora.models import load_model, load_tokenizer, resolve_model
from smollora.render import Renderer
from smollora.tokens import read_token_facts
from smollora.train import StepReport, attach_adapter, loss, train_adapter
from smollora.types import PARTS, Conversation, Rendered

TEXT = PARTS.index("text")


def write_rows(conversations: Path, source: str, out: Path, limit: int | None) -> None:
    """Render conversations to token ids and labels."""
    tokenizer = load_tokenizer(Path(source))
    template = tokenizer.chat_template
    renderer = Renderer(template, tokenizer, read_token_facts(tokenizer, HERMES, template))
    read = (read_conversation(row, "bench", n) for n, row in read_rows(conversations))
    kept = [item for item in islice(read, limit) if isinstance(item, Conversation)]
    with out.open("w", encoding="utf-8") as stream:
        for rendered in renderer.rows(kept):
            for row in rendered:
                if isinstance(row, Rendered):
                    pairs = zip(row.token_ids, row.trained, strict=True)
                    labels = [token if trained else -100 for token, trained in pairs]
                    line = {"input_ids": list(row.token_ids), "labels": labels}
                    stream.write(json.dumps(line) + "\n")


def read_pairs(path: Path, longest: int, joined: bool) -> Iterator[tuple[list[int], list[int]]]:
    """(token ids, labels) of rows cut to `longest` tokens, or joined to just so many."""
    ids: list[int] = []
    labels: list[int] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        ids, labels = ids + values["input_ids"], labels + values["labels"]
        if not joined or len(ids) >= longest:
            yield ids[:longest], labels[:longest]
            ids, labels = [], []


def rows_of(path: Path, longest: int, joined: bool = False) -> Iterator[Row]:
    """Rows as training takes them; every labelled token weighs 1."""
    for number, (ids, labels) in enumerate(read_pairs(path, longest, joined)):
        weights = tuple(float(label != -100) for label in labels)
        if any(weights):
            parts = tuple(TEXT if weight else -1 for weight in weights)
            yield Row(str(number), tuple(ids), weights, parts)


def product_rate(tokens: int, config: Any) -> float:
    """Multiply-adds a second, doubled, of bf16 products as large as the model's."""
    width, inner = config.hidden_size, config.intermediate_size
    left = torch.randn(tokens, width).bfloat16()
    right = torch.randn(width, inner).bfloat16()
    for _ in range(5):
        left @ right
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 2:
        left @ right
        count += 1
    return 2 * tokens * width * inner * count / (time.perf_counter() - start)


def some_rows(rows: list[Row], settings: TrainSection, steps: int) -> list[Row]:
    """A random part of the rows that makes about `steps` steps."""
    random.Random(settings.seed).shuffle(rows)
    low = 1
    while (
        low < len(rows)
        and plan_batches(rows[:low], length=settings.batch_tokens, seed=1).steps < steps
    ):
        low += max(1, low // 20)
    return rows[:low]


def train(
    source: str, rows: Path, steps: int, settings: TrainSection, longest: int, joined: bool
) -> None:
    """Train `steps` steps and print what they took."""
    model = load_model(resolve_model(source))
    config = model.config
    before = product_rate(settings.batch_tokens, config)
    flops = 4 * sum(p.numel() for p in model.parameters())
    chosen = some_rows(list(rows_of(rows, longest, joined)), settings, steps + 1)
    reports: list[StepReport] = []
    with tempfile.TemporaryDirectory() as out:
        made = train_adapter(
            model,
            chosen,
            [],
            settings,
            token_ids=(),
            pad_id=0,
            out=Path(out) / "adapter",
            on_step=reports.append,
        )
    if not reports:
        return  # not the first of several processes
    rate = (before + product_rate(settings.batch_tokens, config)) / 2
    first, rest = reports[0], reports[1:]
    seconds = rest[-1].seconds - first.seconds
    tokens = sum(report.row_tokens for report in rest)
    middle = median((b.seconds - a.seconds) / b.row_tokens for a, b in pairwise(reports))
    print(
        json.dumps(
            {
                "steps": len(rest),
                "processes": made.summary["processes"],
                "tokens": tokens,
                "computed_tokens": sum(report.tokens for report in rest),
                "labelled_tokens": sum(report.labelled for report in rest),
                "seconds": round(seconds, 2),
                "tokens_per_second": round(tokens / seconds, 1),
                "tokens_per_second_median_step": round(1 / middle, 1),
                "peak_memory_bytes": made.summary["peak_memory_bytes"],
                "product_gflops": round(rate / 1e9),
                "share_of_products": round(tokens / seconds * flops / rate, 3),
                "share_of_products_median_step": round(flops / middle / rate, 3),
                "loss_first": first.loss,
                "loss_last": rest[-1].loss,
            }
        )
    )


def reference_losses(model: Any, rows: list[Row], settings: TrainSection) -> list[float]:
    """Losses of the same steps, computed plainly: float32, a row at a time, full logits."""
    torch.manual_seed(settings.seed)
    peft = attach_adapter(model.float(), settings, ())
    peft.train()
    plan = plan_batches(rows, length=settings.batch_tokens, seed=settings.seed)
    optimizer = torch.optim.AdamW(
        [p for p in peft.parameters() if p.requires_grad],
        lr=settings.lr,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
    )
    losses = []
    for place in plan.order(0):
        members = [row for tree in plan.packs[place] for row in tree.rows]
        labelled = sum(weight > 0 for row in members for weight in row.weights)
        total = 0.0
        for row in members:
            ids = torch.tensor([row.token_ids])
            labels = torch.tensor([row.weights]) > 0
            logits = peft(input_ids=ids).logits[0, :-1][labels[0, 1:]]
            loss = torch.nn.functional.cross_entropy(
                logits, ids[0, 1:][labels[0, 1:]], reduction="sum"
            )
            (loss / labelled).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(
            [p for p in peft.parameters() if p.requires_grad], settings.clip
        )
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / labelled)
        print(f"reference step {len(losses)}: {losses[-1]:.4f}", flush=True)
    return losses


def compare_losses(
    source: str, rows: Path, steps: int, settings: TrainSection, longest: int
) -> None:
    """Print the losses of both, step by step, and the largest difference."""
    folder = resolve_model(source)
    chosen = some_rows(list(rows_of(rows, longest)), settings, steps)
    with tempfile.TemporaryDirectory() as out:
        made = train_adapter(
            load_model(folder),
            chosen,
            [],
            settings,
            token_ids=(),
            pad_id=0,
            out=Path(out) / "adapter",
        )
    ours = [entry["loss"] for entry in made.curve]
    plain = reference_losses(load_model(folder), chosen, settings)
    apart = max(abs(a - b) for a, b in zip(ours, plain, strict=True))
    print(json.dumps({"ours": ours, "reference": plain, "largest_difference": apart}))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    rows = verbs.add_parser("rows")
    rows.add_argument("conversations", type=Path)
    rows.add_argument("model")
    rows.add_argument("out", type=Path)
    rows.add_argument("--limit", type=int)
    for name, steps, tokens in (("train", 10, 4096), ("loss", 20, 2048)):
        verb = verbs.add_parser(name)
        verb.add_argument("model")
        verb.add_argument("rows", type=Path)
        verb.add_argument("--steps", type=int, default=steps)
        verb.add_argument("--batch-tokens", type=int, default=tokens)
        verb.add_argument("--max-length", type=int, default=1024)
        verb.add_argument("--join", action="store_true")
        verb.add_argument("--no-compile", action="store_true")
        verb.add_argument("--no-gate", action="store_true")
    given = parser.parse_args()
    if given.verb == "rows":
        write_rows(given.conversations, given.model, given.out, given.limit)
        return
    settings = TrainSection(
        embeddings="frozen",
        lr=2e-4,
        epochs=1,
        warmup=0.0,
        schedule="constant",
        batch_tokens=given.batch_tokens,
        compile="on" if given.verb == "train" and not given.no_compile else "off",
    )
    if given.no_gate:
        loss.fuse_gates = lambda *_: []
    if given.verb == "train":
        train(given.model, given.rows, given.steps, settings, given.max_length, given.join)
    else:
        compare_losses(given.model, given.rows, given.steps, settings, given.max_length)


if __name__ == "__main__":
    main()
