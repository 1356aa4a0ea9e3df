"""The losses of three small trainings are what they were, and what a plain loop computes.

`goldens/losses.json` was recorded at revision 5d499b8, before training became a package with
checkpoints, several processes and probes, by training there what `CASES` says:
curve [loss, learning rate, tokens, row tokens, labelled tokens] of each step, and the summary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from smollora.config import TrainSection
from smollora.data.batch import plan_batches
from smollora.train import attach_adapter, train_adapter
from test_merge import ROWS, TAGS, TOKENIZER
from tiny_models import tiny_model

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "losses.json").read_text())
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smollm3-tool_tokens": ("smollm3", "tool_tokens", {}),
    "llama-lora": ("llama", "lora", {}),
    "qwen3-frozen-dropout": (
        "qwen3",
        "frozen",
        {"dropout": 0.1, "epochs": 3, "max_epochs": 5, "schedule": "linear"},
    ),
}


def settings(case: str) -> TrainSection:
    return TrainSection.model_validate(
        {
            **{"embeddings": CASES[case][1], "lr": 2e-3, "token_lr": 4e-3, "epochs": 6},
            **{"rank": 4, "alpha": 8, "batch_tokens": 48, "dtype": "float32", "compile": "off"},
            **{"weights": {"open": 4.0}, **CASES[case][2]},
        }
    )


@pytest.mark.parametrize("case", CASES)
def test_a_seed_gives_the_losses_that_it_gave_before(case: str, tmp_path: Path) -> None:
    made = train_adapter(
        tiny_model(CASES[case][0]),
        ROWS,
        ROWS[:2],
        settings(case),
        token_ids=TAGS,
        pad_id=TOKENIZER.pad_token_id,
        out=tmp_path / "adapter",
    )
    golden = GOLDEN[case]
    assert made.summary["steps"] == golden["steps"] == len(golden["curve"])
    for entry, (loss, lr, tokens, row_tokens, labelled) in zip(
        made.curve, golden["curve"], strict=True
    ):
        assert entry["loss"] == pytest.approx(loss, abs=1e-4), entry["step"]
        assert entry["lr"] == pytest.approx(lr, rel=1e-9)
        assert (entry["tokens"], entry["row_tokens"], entry["labelled"]) == (
            *(tokens, row_tokens, labelled),
        )
    for key in ("validation_loss", "loss_by_part", "validation_losses"):
        assert made.summary[key] == pytest.approx(golden[key], abs=2e-4), key


def test_the_first_steps_are_those_of_a_plain_loop_with_full_logits() -> None:
    """Rows one by one, all logits, torch's AdamW and cosine written out: no packing, no tree."""
    case, chosen = "llama-lora", settings("llama-lora")
    base = tiny_model("llama")
    torch.manual_seed(chosen.seed)
    model = attach_adapter(base, chosen, TAGS).train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=chosen.lr,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    plan = plan_batches(ROWS, length=chosen.batch_tokens, seed=chosen.seed)
    total = round(plan.steps * chosen.epochs)
    warmup = round(chosen.warmup * total)
    losses = []
    for step in range(20):
        epoch, place = divmod(step, plan.steps)
        weighed, weights = torch.zeros(()), 0.0
        for row in (r for tree in plan.packs[plan.order(epoch)[place]] for r in tree.rows):
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, :-1]
            each = functional.cross_entropy(
                logits, torch.tensor(row.token_ids[1:]), reduction="none"
            )
            by_token = torch.tensor(row.weights[1:])
            weighed, weights = weighed + (each * by_token).sum(), weights + by_token.sum()
        loss = weighed / weights
        done = (step - warmup) / (total - warmup)
        factor = (
            (step + 1) / warmup
            if step < warmup
            else 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)))
        )
        for group in optimizer.param_groups:
            group["lr"] = chosen.lr * float(factor)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], chosen.clip
        )
        optimizer.step()
        losses.append(loss.item())
    golden = [entry[0] for entry in GOLDEN[case]["curve"][:20]]
    assert losses == pytest.approx(golden, abs=1e-3)
