"""`smollora run --dry-run`: the whole plan of a run, with estimated tokens, memory and time;
nothing is trained or written.

The estimate reads the first rows of every source through the real template and tokenizer, packs
them as training would, and scales up. Speed comes from a matrix product timed for a moment on this
machine.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from smollora.config import PrepareSection, Recipe, dump_recipe
from smollora.models import read_architecture
from smollora.stages import Run, inspect, load_renderer

SAMPLE_ROWS = 1500
"""Rows of each source that the estimate reads."""
SHARE_OF_PRODUCTS = 0.24
"""Share of the bare matrix-product speed that training reaches on two cores (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What training will cost."""

    rows: int
    row_tokens: int
    computed_tokens: int
    """Shared prompts counted once."""
    steps: int
    memory_bytes: int
    seconds: float
    saved_bytes: int = 0
    """Of memory, by `train.base_weights=4bit`; not in `memory_bytes` any more."""


def estimate(recipe: Recipe, parameters: int, run: Run) -> Estimate:
    """Read a sample and scale up."""
    from smollora.data.batch import Row, pack_tokens, plan_batches
    from smollora.data.mix import plan_mix
    from smollora.data.prepare import prepare_rows

    sources = recipe.prepare.sources
    starter = all(source.path.startswith("starter:") for source in sources)
    limits = {} if starter else {"limit": SAMPLE_ROWS}
    section = PrepareSection.model_validate(
        {**recipe.prepare.model_dump(), "sources": [{**s.model_dump(), **limits} for s in sources]}
    )
    made = prepare_rows(section, load_renderer(run), seed=recipe.mix.seed)
    mixed = plan_mix(made.rows, recipe.mix, validation_share=recipe.prepare.validation_share)
    rows = [
        Row(r.conversation_id, r.token_ids, tuple(map(float, r.trained)), (0,) * len(r.token_ids))
        for r in (made.rows[index].rendered for index in mixed.train)
    ]
    plan = plan_batches(rows, length=recipe.train.batch_tokens, seed=recipe.train.seed)
    computed = sum(pack_tokens(pack) for pack in plan.packs) * recipe.train.epochs
    flops = 4 * parameters * computed
    saved = four_bit_saving(recipe, run)
    return Estimate(
        len(rows),
        round(sum(len(row.token_ids) for row in rows) * recipe.train.epochs),
        round(computed),
        round(plan.steps * recipe.train.epochs),
        round(parameters * 2.6 + recipe.train.batch_tokens * parameters * 0.013 + 1.1e9) - saved,
        flops / (product_speed() * SHARE_OF_PRODUCTS),
        saved,
    )


def four_bit_saving(recipe: Recipe, run: Run) -> int:
    """Bytes that the recipe's 4-bit base takes less than one in bfloat16; 0 for a full one."""
    if recipe.train.base_weights == "full":
        return 0
    from smollora.train.four_bit import plan_four_bit

    trusted = recipe.model.trust_remote_code
    plan = plan_four_bit(run.base, recipe.train.modules_to_save, trust_remote_code=trusted)
    return plan.saved_bytes("bfloat16")


def product_speed() -> float:
    """Floating-point operations per second of a bf16 matrix product on this machine."""
    import torch

    left = torch.randn(2048, 1536).bfloat16()
    right = torch.randn(1536, 1536).bfloat16()
    left @ right
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < 0.3:
        left @ right
        count += 1
    return count * 2 * 2048 * 1536 * 1536 / (time.perf_counter() - start)


def show_plan(recipe: Recipe, folder: Path, console: Console) -> None:
    """Print the recipe as resolved, the stages, and the estimate."""
    from smollora.pipeline import STAGES, stage_keys
    from smollora.runs import is_done

    console.print(dump_recipe(recipe), markup=False, highlight=False)
    keys = stage_keys(recipe)
    fresh = True
    for name in STAGES:
        fresh = fresh and is_done(folder / name, keys[name])
        console.print(f"{name:8s} {'unchanged, would be skipped' if fresh else 'would run'}")
    with tempfile.TemporaryDirectory() as work:
        run = Run(recipe, Path(work), Console(quiet=True))
        inspect(run)
        parameters = read_architecture(run.base)["parameters"] or 0
        found = estimate(recipe, parameters, run)
    saved = f"{found.saved_bytes / 2**30:.2f} GiB less by the 4-bit base"
    less = f" ({saved})" if found.saved_bytes else ""
    console.print(
        f"\ntraining: {found.rows:,} rows, {found.row_tokens:,} tokens,"
        f" of which {found.computed_tokens:,} are computed (shared prompts once),"
        f" {found.steps:,} steps, about {found.memory_bytes / 2**30:.1f} GiB"
        f"{less}, about {found.seconds / 60:.0f} minutes on this machine",
        highlight=False,
    )
