"""Whether calls open where they are due: counted on ids, gated, and how the best is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smollora.errors import ConfigError
from smollora.train import TreeLoss
from smollora.train.decisions import Counts, ask_prompts, plan_prompts
from tiny_models import tiny_model
from tiny_training import ENDS, OPEN, ROWS, train


def test_prompts_end_where_the_answer_begins_half_of_each_kind() -> None:
    prompts = plan_prompts(ROWS, 6)
    assert [prompt.calls for prompt in prompts] == [True] * 3 + [False] * 3
    for prompt in prompts:
        row = next(
            r for r in ROWS if tuple(r.token_ids[: len(prompt.token_ids)]) == prompt.token_ids
        )
        assert (row.token_ids[len(prompt.token_ids)] == OPEN) is prompt.calls


def test_without_a_row_that_calls_there_is_nothing_to_ask() -> None:
    with pytest.raises(ConfigError, match="none of the 6 opens a call"):
        plan_prompts(ROWS[1::2], 6)


def test_the_model_is_asked_as_transformers_generates() -> None:
    """And trains on afterwards: tree attention is back, its mode too."""
    model = tiny_model("qwen3")
    plain = tiny_model("qwen3")
    loss_of = TreeLoss(model, "float32")
    model.train()
    prompts = plan_prompts(ROWS, 12)
    counts = ask_prompts(loss_of, prompts, ENDS, new_tokens=5)
    opened = []
    for prompt in prompts:
        ids = torch.tensor([prompt.token_ids])
        out = plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=ENDS.stop_ids[0],
            pad_token_id=ENDS.pad_id,
        )
        opened.append(OPEN in out[0, ids.shape[1] :].tolist())
    assert counts.emitted == sum(opened[:6])
    assert counts.wrong == sum(opened[6:])
    assert model.training
    assert model.config._attn_implementation == "smollora_tree"


@pytest.mark.parametrize(
    ("counts", "gate", "holds"),
    [
        (Counts(10, 10, 0, 10), {"emission": 0.95, "false_call": 0.05}, True),
        (Counts(9, 10, 0, 10), {"emission": 0.95, "false_call": 0.05}, False),
        (Counts(10, 10, 1, 10), {"emission": 0.95, "false_call": 0.05}, False),
        (Counts(10, 10, 0, 0), {"false_call": 0.05}, False),
        (Counts(10, 10, 0, 10), {}, False),
    ],
)
def test_a_gate_holds_if_all_its_rates_do_and_none_is_over_no_cases(
    counts: Counts, gate: dict[str, float], holds: bool
) -> None:
    assert counts.holds(gate) is holds


def test_better_is_more_due_calls_fewer_others_then_less_loss() -> None:
    in_order = [
        Counts(0, 4, 0, 4).score(0.1),
        Counts(4, 4, 2, 4).score(0.1),
        Counts(3, 4, 0, 4).score(0.9),
        Counts(4, 4, 0, 4).score(2.0),
        Counts(4, 4, 0, 4).score(1.0),
    ]
    assert in_order == sorted(in_order)


def scripted(monkeypatch: pytest.MonkeyPatch, answers: list[Counts]) -> None:
    """The probe finds these, one after the other."""
    left = iter(answers)
    monkeypatch.setattr("smollora.train.trainer.ask_prompts", lambda *given, **more: next(left))


GOOD, FAIR, BAD = Counts(2, 2, 0, 2), Counts(1, 2, 0, 2), Counts(0, 2, 0, 2)


def trained_weights(made: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters() if p.requires_grad]


def test_training_ends_once_the_gate_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [BAD, FAIR, GOOD])
    made = train(tmp_path, probe_every=2, epochs=10)
    assert made.summary["steps"] == 6
    assert made.summary["best_step"] == 6
    assert [event["step"] for event in made.summary["events"]] == [6]
    probed = [entry["step"] for entry in made.curve if "emission" in entry]
    assert probed == [2, 4, 6]
    assert made.curve[3]["emission"] == {"k": 1, "n": 2}


def test_the_best_adapter_is_saved_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = train(tmp_path / "length", epochs=2).summary["steps"]
    assert steps >= 4
    never = {"probe_gate": {}, "epochs": 2, "schedule": "constant", "warmup": 0.0}
    at_two = train(tmp_path / "short", **{**never, "epochs": 4 / steps})
    assert at_two.summary["steps"] == 2
    scripted(monkeypatch, [GOOD] + [FAIR] * steps)
    found = train(tmp_path / "best", probe_every=2, **never)
    assert found.summary["best_step"] == 2
    for ours, theirs in zip(trained_weights(found), trained_weights(at_two), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "best" / "checkpoints").exists()


def test_accuracy_by_part_is_the_share_of_tokens_that_were_the_most_likely(tmp_path: Path) -> None:
    from smollora.train import evaluate_loss
    from smollora.types import PARTS
    from tiny_training import PAD, section

    model = tiny_model("llama")
    plain = tiny_model("llama")
    right, count = [0] * len(PARTS), [0] * len(PARTS)
    for row in ROWS:
        best = plain(input_ids=torch.tensor([row.token_ids])).logits[0].argmax(-1).tolist()
        for index in range(1, len(row.token_ids)):
            if row.weights[index] > 0:
                count[row.parts[index]] += 1
                right[row.parts[index]] += best[index - 1] == row.token_ids[index]
    found = evaluate_loss(TreeLoss(model, "float32"), ROWS, section(), PAD)
    expected = {part: round(right[i] / count[i], 4) for i, part in enumerate(PARTS)}
    assert found.accuracy_by_part == pytest.approx(expected, abs=1e-4)
