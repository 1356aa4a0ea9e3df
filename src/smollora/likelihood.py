"""How likely a model finds given text: the loss of rows that are already written, nothing
generated.

In: a transformers model, rows of token ids with the positions that count. Out: for each row the sum
of its losses. Only those positions go through the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from smollora.types import Rendered


def row_losses(
    model: Any, rows: Sequence[Rendered], on_done: Callable[[int], None] | None = None
) -> list[tuple[float, int]]:
    """For each row (sum of the losses of its trained tokens in nats, number of them).

    Shapes inside: token ids [1, tokens], logits [1, trained, vocabulary]. A row is computed alone:
    padding would cost more than it saves, and the sums do not depend on what else is asked.
    """
    import torch

    device = next(model.parameters()).device
    found = []
    for number, row in enumerate(rows, 1):
        at = [place for place, trained in enumerate(row.trained) if trained and place > 0]
        ids = torch.tensor([row.token_ids], device=device)
        wanted = torch.tensor(at, device=device)
        with torch.no_grad():
            output = model(input_ids=ids, logits_to_keep=wanted - 1, use_cache=False)
            loss = torch.nn.functional.cross_entropy(
                output.logits[0].float(), ids[0, wanted], reduction="sum"
            )
        found.append((round(float(loss), 4), len(at)))
        if on_done:
            on_done(number)
    return found
