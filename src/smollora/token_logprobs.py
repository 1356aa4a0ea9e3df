"""How probable a model finds each token of rows that it did not write: log-probabilities in nats.

In: a loaded causal model and token ids. Out: one value a token, None for the first, which nothing
predicts. Negated, the value of a labelled token is its loss before any weight of the recipe. The
surprise: a row goes through the model in stretches with a key-value cache, so that the logits of
`STRETCH` positions are in memory at once, whatever the row's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from smollora.runs import hash_of

STRETCH = 512
"""Tokens a forward pass: with a vocabulary of 152k, 311 MB of float32 logits."""


def score_rows(
    model: Any,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    on_done: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """One line of `preview_logprobs.jsonl` for each row of `preview.jsonl`.

    Args:
        model: in eval mode.
        name: what the report calls it: "base", "merged".
        rows: with `conversation_id` and `token_ids`.
        on_done: told how many rows are scored.
    """
    for index, row in enumerate(rows):
        yield {
            "model": name,
            "row": index,
            "conversation_id": row["conversation_id"],
            "token_ids_sha256": hash_of(row["token_ids"]),
            "logprobs": token_logprobs(model, row["token_ids"]),
        }
        if on_done:
            on_done(index + 1)


def token_logprobs(model: Any, token_ids: Sequence[int]) -> list[float | None]:
    """Log-probability (nats, four decimals) of each token after those before it."""
    import torch

    if not token_ids:
        return []
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    found: list[float | None] = [None]
    cache = None
    with torch.no_grad(), _exact_head(model):
        for start in range(0, len(token_ids) - 1, STRETCH):
            end = min(start + STRETCH, len(token_ids) - 1)
            output = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            scores = torch.log_softmax(output.logits[0].float(), dim=-1)
            chosen = scores.gather(1, ids[0, start + 1 : end + 1, None])[:, 0]
            found.extend(round(value, 4) for value in chosen.tolist())
    return found


@contextmanager
def _exact_head(model: Any) -> Iterator[None]:
    """The output head in float32: a logit of 20 rounded to bfloat16 is off by up to 0.06, which is
    more than the loss of a token that was learned.
    """
    import torch

    head = model.get_output_embeddings()
    if head is None or head.weight.dtype == torch.float32 or not isinstance(head, torch.nn.Linear):
        yield
        return
    weight = head.weight.detach().float()
    bias = None if head.bias is None else head.bias.detach().float()

    def again(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return torch.nn.functional.linear(inputs[0].float(), weight, bias)

    hook = head.register_forward_hook(again)
    try:
        yield
    finally:
        hook.remove()
