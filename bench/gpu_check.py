"""What a GPU computes beside what the processor computes: loss and gradients of packs, and time.

usage: python bench/gpu_check.py MODEL ROWS.jsonl [--batch-tokens 2048] [--packs 8]
       [--base-weights 4bit]

ROWS.jsonl as bench/train_speed.py writes it. The reference is the processor in float32; the
adapters' second factors are drawn, so that no gradient is zero. For each compute type and way of
attention it prints the largest relative differences of two packs, then milliseconds a pack forward
and backward (twice, the better one) and peak memory; in bfloat16 also with compiled layers. A
4-bit base is held against the same 4-bit base on the processor; it needs bitsandbytes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from train_speed import rows_of

from smollora.config import TrainSection
from smollora.data.batch import Batch, build_batch, plan_batches
from smollora.models import resolve_model
from smollora.train import attach_adapter
from smollora.train.adapter import leave_casting_to_autocast
from smollora.train.four_bit import load_for_training
from smollora.train.loss import TreeLoss

Gradients = dict[str, torch.Tensor]


def open_loss(model: Path, dtype: str, device: str, way: str, weights: str) -> TreeLoss:
    """The model with an adapter, ready to compute losses."""
    torch.manual_seed(0)
    settings = TrainSection(embeddings="frozen", base_weights=weights)
    base = load_for_training(model, settings, device=device, dtype=dtype, trust_remote_code=False)
    peft = attach_adapter(base, settings, ())
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    loss_of = TreeLoss(peft.to(device), dtype, device, attention=way)
    if dtype != "float32":
        leave_casting_to_autocast(peft)
    peft.train()
    return loss_of


def compute(loss_of: TreeLoss, batch: Batch) -> tuple[float, Gradients]:
    """Loss and gradients of one pack."""
    loss_of.model.zero_grad()
    total = loss_of(batch).total
    total.backward()
    named = loss_of.model.named_parameters()
    return total.item(), {n: p.grad.double().cpu() for n, p in named if p.grad is not None}


def apart(found: Gradients, wanted: Gradients) -> float:
    """Norm of the difference over norm."""
    over = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((over / sum(each.square().sum() for each in wanted.values())).sqrt())


def compare(loss_of: TreeLoss, packs: Sequence[Batch], wanted: Sequence[Any]) -> str:
    """The largest differences from the reference."""
    pairs = [(compute(loss_of, pack), each) for pack, each in zip(packs, wanted, strict=False)]
    loss = max(abs(found[0] / each[0] - 1) for found, each in pairs)
    gradient = max(apart(found[1], each[1]) for found, each in pairs)
    return f"loss {loss:.1e}  gradients {gradient:.1e}"


def timed(loss_of: TreeLoss, packs: Sequence[Batch]) -> str:
    """Milliseconds a pack and peak memory, after one round that compiles."""
    taken = []
    for _ in range(3):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for pack in packs:
            loss_of(pack).total.backward()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30
    each = min(taken[1:]) / len(packs) * 1000
    return f"{each:.0f} ms a pack  {peak:.2f} GiB  (first round {taken[0]:.0f} s)"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--packs", type=int, default=8)
    parser.add_argument("--base-weights", choices=("full", "4bit"), default="full")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "torch sees no GPU here\n")
    model = resolve_model(given.model)
    plan = plan_batches(list(rows_of(given.rows, 1024)), length=given.batch_tokens, seed=1)
    packs = [build_batch(pack, given.batch_tokens, 0) for pack in plan.packs[: given.packs]]
    if not packs:
        parser.exit(2, f"{given.rows} holds no rows as `bench/train_speed.py rows` writes them\n")
    reference = open_loss(model, "float32", "cpu", "trees", given.base_weights)
    wanted = [compute(reference, pack) for pack in packs[:2]]
    for dtype in ("float32", "bfloat16"):
        for way in ("blocks", "mask"):
            loss_of = open_loss(model, dtype, "cuda", way, given.base_weights)
            print(f"{dtype} {way}: {compare(loss_of, packs, wanted)}  {timed(loss_of, packs)}")
            if dtype == "bfloat16":
                for layer in loss_of.decoder.layers:
                    layer.compile(dynamic=False)
                speed = timed(loss_of, packs)
                print(f"{dtype} {way}, compiled: {compare(loss_of, packs, wanted)}  {speed}")


if __name__ == "__main__":
    main()
