"""A step of training as one line of the terminal."""

from __future__ import annotations

from smollora.train.progress import StepReport

SHORT = {"open": "open", "name": "name", "arguments": "args", "close": "close", "text": "text"}


def describe_step(report: StepReport) -> str:
    """Loss, loss by part, rates over the whole training, MFU of the latest steps, memory, and the
    validation and probe of this step, where it had them.
    """
    parts = " ".join(
        f"{SHORT.get(part, part)} {loss:.2f}"
        for part, loss in report.loss_by_part.items()
        if loss is not None
    )
    rate = f"{report.row_tokens_so_far / report.seconds:,.0f} row tokens/s"
    labelled = f"{report.labelled_so_far / report.seconds:,.0f} labelled/s"
    fields = [f"loss {report.loss:.3f} ({parts})", rate, labelled]
    if report.utilisation is not None:
        fields.append(f"MFU {report.utilisation:.0%}")
    fields.append(f"{report.memory / 2**30:.1f} GiB")
    if (loss := report.found.get("validation_loss")) is not None:
        fields.append(f"validation {loss:.3f}")
    for key, word in (("emission", "calls"), ("false_call", "false")):
        if (found := report.found.get(key)) is not None:
            fields.append(f"{word} {found['k']}/{found['n']}")
    return "  ".join(fields)
