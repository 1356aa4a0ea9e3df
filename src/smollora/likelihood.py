"""How probable a model finds text that is already written: log-probabilities in nats, nothing
generated.

In: a loaded causal model, token ids, which of them count. Out: one value a token, None for those
that do not count and for the first, which nothing predicts. Negated, it is the token's loss before
any weight of the recipe. The surprise: a row goes through the model in stretches with a key-value
cache, and the head runs on labelled positions only, so that a long prompt costs no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from smollora.runs import hash_of
from smollora.types import Rendered

STRETCH = 512
"""Tokens a forward pass: at most 311 MB of float32 logits with a vocabulary of 152k."""


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
        rows: with `conversation_id`, `token_ids` and `trained`.
        on_done: told how many rows are scored.
    """
    with exact_head(model):
        for index, row in enumerate(rows):
            yield {
                "model": name,
                "row": index,
                "conversation_id": row["conversation_id"],
                "token_ids_sha256": hash_of(row["token_ids"]),
                "logprobs": _logprobs(model, row["token_ids"], row["trained"]),
            }
            if on_done:
                on_done(index + 1)


def row_losses(
    model: Any, rows: Sequence[Rendered], on_done: Callable[[int], None] | None = None
) -> list[tuple[float, int]]:
    """For each row (sum of the losses of its trained tokens in nats, number of them)."""
    found = []
    with exact_head(model):
        for number, row in enumerate(rows, 1):
            values = _logprobs(model, row.token_ids, row.trained)
            losses = [-value for value in values if value is not None]
            found.append((round(sum(losses), 4), len(losses)))
            if on_done:
                on_done(number)
    return found


def token_logprobs(
    model: Any, token_ids: Sequence[int], counts: Sequence[bool]
) -> list[float | None]:
    """Log-probability (nats, four decimals) of each token that counts, after those before it."""
    with exact_head(model):
        return _logprobs(model, token_ids, counts)


def _logprobs(model: Any, token_ids: Sequence[int], counts: Sequence[bool]) -> list[float | None]:
    """The same, under `exact_head`: for many rows the head is converted once."""
    import torch

    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    found: list[float | None] = [None] * len(token_ids)
    last = max((place for place, wanted in enumerate(counts) if wanted), default=0)
    cache = None
    with torch.no_grad():
        for start in range(0, last, STRETCH):
            end = min(start + STRETCH, last)
            places = [place for place in range(start + 1, end + 1) if counts[place]]
            before = torch.tensor([p - 1 - start for p in places] or [0], device=ids.device)
            output = model(
                input_ids=ids[:, start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=before,
            )
            cache = output.past_key_values
            if places:
                logits = output.logits[0].float()  # [places, vocabulary]
                chosen = logits.gather(1, ids[0, places, None])[:, 0] - logits.logsumexp(-1)
                for place, value in zip(places, chosen.tolist(), strict=True):
                    found[place] = round(min(value, 0.0), 4)
    return found


@contextmanager
def exact_head(model: Any) -> Iterator[None]:
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
