"""What the C++ kernel of attention over trees saves, and where the rest of a step goes.

usage: python bench/attention_speed.py layer ROWS.jsonl [--batch-tokens 2048]
       python bench/attention_speed.py step MODEL ROWS.jsonl [--steps 12] [--batch-tokens 2048]
       python bench/attention_speed.py profile MODEL ROWS.jsonl [--steps 1] [--batch-tokens 2048]

ROWS are those of `bench/train_speed.py rows`. `layer` times attention of one layer with the heads
of SmolLM2-135M (9 of 64 over 3 of keys) on packs of those rows, with the kernel and with PyTorch's
operators in turn, and prints the mean over packs of the best of 8 rounds. `step` trains, two steps
with the kernel and two without in turn, and prints tokens computed a second of either; `profile`
prints what a step's time goes to, by a clock around each call (torch's profiler makes some calls
three times as slow). OMP_NUM_THREADS says how many threads.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch._inductor.codecache import PyCodeCache
from torch._inductor.select_algorithm import extern_kernels
from train_speed import rows_of, some_rows

from smollora import native
from smollora.attention import kernel, tree_attention, tree_attention_backward
from smollora.config import TrainSection
from smollora.data.batch import build_batch, plan_batches
from smollora.memory import keep_freed_memory
from smollora.models import load_model, resolve_model
from smollora.train import StepReport, gate, loss, train_adapter
from smollora.train.fused_lora import FusedLora

ROUNDS = 8
PACKS = 8
WARM = 12
"""Steps before those that are profiled: until then memory grows."""
SERVES = kernel.serves


def use_kernel(wanted: bool) -> None:
    """With attention's kernel or without, from now on; that of the gate stays."""
    kernel.serves = SERVES if wanted else lambda *_: False  # type: ignore[assignment]


def time_layer(rows: Path, tokens: int) -> None:
    """Milliseconds forward and backward, with and without the kernel."""
    keep_freed_memory()
    torch.set_float32_matmul_precision("medium")
    made = list(rows_of(rows, 1024))
    random.Random(7).shuffle(made)
    packs = plan_batches(made[:600], length=tokens, seed=1).packs[:PACKS]
    tables = [build_batch(pack, tokens, 0).segments for pack in packs]
    torch.manual_seed(0)
    query, key, value, grad = (
        torch.randn(1, tokens, n, 64).bfloat16().transpose(1, 2) for n in (9, 3, 3, 9)
    )
    best: dict[tuple[bool, int], tuple[float, float]] = {}
    for _ in range(ROUNDS):
        for place, table in enumerate(tables):
            for wanted in (False, True):
                use_kernel(wanted)
                start = time.perf_counter()
                out, sums = tree_attention(query, key, value, table, 0.125)
                middle = time.perf_counter()
                tree_attention_backward(grad, query, key, value, out, sums, table, 0.125)
                took = middle - start, time.perf_counter() - middle
                before = best.get((wanted, place), took)
                best[wanted, place] = min(took[0], before[0]), min(took[1], before[1])
    for wanted in (False, True):
        each = [best[wanted, place] for place in range(len(tables))]
        forward, backward = (1e3 * sum(one[i] for one in each) / len(each) for i in (0, 1))
        print(f"{'kernel' if wanted else 'PyTorch'}: {forward:.1f} + {backward:.1f} ms")


def train(
    source: str, rows: Path, steps: int, tokens: int, on_step: Callable[[StepReport], None]
) -> None:
    """Train some steps, layers compiled."""
    settings = TrainSection(batch_tokens=tokens, compile="on", epochs=1)
    chosen = some_rows(list(rows_of(rows, 1024)), settings, steps + 2)
    with tempfile.TemporaryDirectory() as out:
        train_adapter(
            load_model(resolve_model(source)),
            chosen,
            [],
            settings,
            token_ids=(),
            pad_id=0,
            out=Path(out) / "adapter",
            on_step=on_step,
        )


def time_steps(source: str, rows: Path, steps: int, tokens: int) -> None:
    """Tokens a second with and without the kernel; the first two steps compile and warm up."""
    seen: list[tuple[float, int, bool]] = []

    def on_step(report: StepReport) -> None:
        seen.append((report.seconds, report.tokens, kernel.serves is SERVES))
        use_kernel(len(seen) // 2 % 2 == 0)

    native.find_kernels()
    train(source, rows, steps, tokens, on_step)
    taken = [(b[0] - a[0], b[1], b[2]) for a, b in pairwise(seen[1:])]
    for wanted in (False, True):
        ours = [(seconds, count) for seconds, count, used in taken if used is wanted]
        rate = sum(count for _, count in ours) / sum(seconds for seconds, _ in ours)
        each = " ".join(f"{seconds:.2f}" for seconds, _ in ours)
        print(f"{'kernel' if wanted else 'PyTorch'}: {rate:.0f} tokens/s; seconds a step: {each}")


class Watch:
    """Adds up the seconds of calls by what they are for; no call of one is inside another."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, float]] = {}
        self.on = False

    def put_on(self, owner: Any, name: str, what: Callable[..., str]) -> None:
        """Watch a function; `what` is given its arguments."""
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            made = function(*args, **kwargs)
            taken = time.perf_counter() - start
            if self.on:
                purpose = what(*args)
                count, seconds = self.found.get(purpose, (0, 0.0))
                self.found[purpose] = count + 1, seconds + taken
            return made

        setattr(owner, name, watched)


def watch_all(watch: Watch) -> None:
    """Watch what a step of compiled layers consists of."""

    def product(*args: Any) -> str:
        sides = [side for each in args for side in each.shape]
        narrow = min(sides) <= native.WIDEST
        return "adapters: products with a narrow side" if narrow else "products of frozen weights"

    for name in ("mm", "addmm"):
        watch.put_on(extern_kernels, name, product)
    for compiled in PyCodeCache.modules:
        for name in [each for each in vars(compiled) if each.startswith("cpp_fused")]:
            watch.put_on(compiled, name, lambda *_: "fused elementwise kernels")
    watch.put_on(kernel, "_call", lambda name, *_: f"attention: {name}")
    watch.put_on(gate, "_call", lambda name, *_: f"gates: {name}")
    watch.put_on(loss, "head_loss", lambda *_: "head and loss")
    watch.put_on(torch.nn.utils, "clip_grad_norm_", lambda *_: "clipping")
    watch.put_on(torch.optim.AdamW, "step", lambda *_: "AdamW")
    watch.put_on(FusedLora, "refresh", lambda *_: "second factors written")


def profile_steps(source: str, rows: Path, steps: int, tokens: int) -> None:
    """What takes the time of some steps: calls by what they are for, and what is between them."""
    watch, seconds = Watch(), [0.0]

    def on_step(report: StepReport) -> None:
        seconds.append(report.seconds)
        if len(seconds) == WARM:
            watch_all(watch)
        watch.on = len(seconds) > WARM

    train(source, rows, steps + WARM, tokens, on_step)
    total, count = seconds[-1] - seconds[WARM], len(seconds) - 1 - WARM
    known = sum(taken for _, taken in watch.found.values())
    watch.found["between: Python, calls of compiled layers, memory"] = 0, total - known
    print(f"{total / count:.3f} s a step, {count} steps")
    for what, (calls, taken) in sorted(watch.found.items(), key=lambda item: -item[1][1]):
        each = f"{1e3 * taken / count:7.1f} ms {calls / count:6.0f} calls"
        print(f"{taken / total:6.1%} {each}  {what}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, steps in (("layer", 0), ("step", 12), ("profile", 12)):
        verb = verbs.add_parser(name)
        if steps:
            verb.add_argument("model")
            verb.add_argument("--steps", type=int, default=steps)
        verb.add_argument("rows", type=Path)
        verb.add_argument("--batch-tokens", type=int, default=2048)
    given = parser.parse_args()
    if given.verb == "layer":
        time_layer(given.rows, given.batch_tokens)
        return
    run = time_steps if given.verb == "step" else profile_steps
    run(given.model, given.rows, given.steps, given.batch_tokens)


if __name__ == "__main__":
    main()
