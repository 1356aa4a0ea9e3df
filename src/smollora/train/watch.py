"""After a step: is training to end here, what goes into the curve, is it still training at all?"""

from __future__ import annotations

import math
from typing import Any

from smollora.errors import SmolloraError
from smollora.train import checkpoint
from smollora.train.decisions import Counts
from smollora.train.hardware import peak_memory
from smollora.train.progress import Best, StepReport
from smollora.train.session import Session


def is_last(session: Session, step: int) -> bool:
    """Validate and probe where this step asks for it; True if training is to end here."""
    steps, progress = session.steps, session.progress
    most, planned = steps.total, session.planned
    every = session.settings.probe_every
    epoch_ends = step % steps.per_epoch == 0 or step == planned
    ends_early = False
    if session.validate is not None and most > planned and epoch_ends:
        ends_early = progress.pace.note_validation(step, _validate(session))
    if session.probe is not None and (step % every == 0 or ends_early or step == most):
        _validate(session)
        counts = session.probe()
        progress.found.update(counts.as_dict())
        keep_if_best(session, step, counts)
        if counts.holds(session.settings.probe_gate):
            progress.pace.events.append(
                {"step": step, "event": "the probe's gate holds: training ends", **counts.as_dict()}
            )
            ends_early = True
    return ends_early


def _validate(session: Session) -> float | None:
    """The validation loss of this step, computed once."""
    found = session.progress.found
    if session.validate is not None and "validation_loss" not in found:
        evaluation = session.validate()
        found["validation_loss"] = evaluation.loss
        found["validation_accuracy_by_part"] = evaluation.accuracy_by_part
    return found.get("validation_loss")


def keep_if_best(session: Session, step: int, counts: Counts) -> None:
    """Keep the adapter of this step if the probe likes it better than those before."""
    progress = session.progress
    score = counts.score(progress.found.get("validation_loss"))
    if progress.best is not None and score <= progress.best.score:
        return
    progress.best = Best(step, score)
    if session.first:
        checkpoint.write_best(session.checkpoints, step, session.loss_of.model)


def enter(session: Session, step: int, logs: dict[str, float]) -> dict[str, Any]:
    """Put a step into the curve and tell whoever watches."""
    progress, totals = session.progress, session.totals
    assert totals is not None
    before = progress.curve[-1]["seconds"] if progress.curve else 0.0
    seconds = progress.seconds
    entry: dict[str, Any] = {
        "step": step,
        "loss": float(logs["loss"]),
        "lr": float(logs["learning_rate"]),
        "tokens": totals.tokens,
        "row_tokens": totals.row_tokens,
        "labelled": totals.labelled,
        "seconds": round(seconds, 2),
        "loss_by_part": totals.loss_by_part,
        "accuracy_by_part": totals.accuracy_by_part,
        **progress.found,
    }
    progress.add(entry)
    session.recent.append((totals.tokens, totals.labelled, seconds - before))
    if session.on_step and math.isfinite(entry["loss"]):
        session.on_step(
            StepReport(
                step=step,
                steps=session.planned if step <= session.planned else session.steps.total,
                loss=entry["loss"],
                lr=entry["lr"],
                tokens=totals.tokens,
                row_tokens=totals.row_tokens,
                labelled=totals.labelled,
                seconds=seconds,
                loss_by_part=totals.loss_by_part,
                accuracy_by_part=totals.accuracy_by_part,
                tokens_so_far=progress.tokens,
                row_tokens_so_far=progress.row_tokens,
                labelled_so_far=progress.labelled,
                memory=peak_memory(session.loss_of.device),
                utilisation=session.utilisation(),
                resumed_at=progress.resumed_at,
                found=dict(progress.found),
            )
        )
    return entry


def raise_if_lost(session: Session, entry: dict[str, Any]) -> None:
    """Stop a training that computes nonsense.

    Raises:
        SmolloraError: the loss is not a number, or has risen far above where it began.
    """
    pace, step, loss = session.progress.pace, entry["step"], entry["loss"]
    ids = session.steps.row_ids(step - 1)
    rows = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    where = f"at step {step} (lr {entry['lr']:.3g}, rows {rows})"
    if not math.isfinite(loss):
        raise SmolloraError(
            f"the loss is not a number {where}", "lower train.lr, or set train.dtype=float32"
        )
    pace.note_loss(step, loss)
    if pace.diverged is not None:
        first, latest = pace.diverged
        raise SmolloraError(
            f"training diverges: the loss began at {first:.3g} and stands at {latest:.3g} {where}",
            "lower train.lr, or raise train.warmup",
        )
