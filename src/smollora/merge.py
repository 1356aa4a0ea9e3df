"""Adapter + base -> one model, with a proof that it is the same model.

In: a base folder, an adapter folder. Out: a folder with the merged weights, tokenizer, template and
generation config, and the numbers of the proof. The surprise: peft's `merge_and_unload` adds a
delta of `embed_tokens` to the tensor that a tied head shares, which changes the logits by 2 and
more and only warns. So a head is untied before such an adapter is loaded, and the proof compares
logits of the live adapter, of the merged model in memory, and of the merged model saved and loaded
again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from smollora.config import MergeSection
from smollora.errors import ConfigError, ModelError
from smollora.models import load_model, ties_embeddings, without_bitsandbytes
from smollora.runs import whole_folder, write_json
from smollora.train.adapter import untie_head
from smollora.train.four_bit import check_four_bit, load_four_bit
from smollora.train.identity import base_identity, read_base_weights, read_identity

WHOLE_UP_TO = 1_000_000_000
"""Parameters up to which a whole model is turned into float64 to compute its logits exactly; larger
ones part by part, in the memory of one part more."""
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files that go from the base folder to the merged one as they are."""


class Compared(NamedTuple):
    """A row of the proof."""

    token_ids: Sequence[int]
    start: int
    """Positions before this one stood in an earlier row, with all that is before them."""


def distinct_rows(rows: Iterable[Sequence[int]], positions: int) -> list[Compared]:
    """The first of the rows that together have so many positions, each counted once: rows begin
    with the same system text, and one near tie there would count as many times as there are rows.
    """
    found: list[Compared] = []
    for row in rows:
        if sum(len(each.token_ids) - each.start for each in found) >= positions:
            break
        start = max((_common(row, each.token_ids) for each in found), default=0)
        if start < len(row):
            found.append(Compared(row, start))
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class Lean:
    """How much more readily the merged model is to open a call than the adapter does."""

    opener_id: int
    nats: float
    """By which the opening token's logit rises, in the mean over `beginnings`."""
    beginnings: Sequence[Sequence[int]]
    """Token ids of prompts, each up to where an answer begins."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What a merge will do."""

    base: Path
    adapter: Path
    out: Path
    unties_head: bool
    """True if the adapter changes one of a tied model's two ends and not the other."""
    dtype: str
    base_weights: str = "full"
    """ "4bit" where the adapter was trained beside rounded weights; the merge is into full ones."""


def plan_merge(base: Path, adapter: Path, out: Path, dtype: str) -> MergePlan:
    """Read what the adapter changes.

    Raises:
        ModelError: no adapter there, or one of another base.
    """
    path = adapter / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
        tied = ties_embeddings(base)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{adapter} holds no readable adapter for {base}: {error}",
            "train first, or check the folders",
        ) from error
    other = read_identity(adapter)
    if other and other != base_identity(base):
        raise ModelError(
            f"the adapter in {adapter} was trained on other weights than those in {base}",
            "merge it with the base that it was trained on, or train again",
        )
    targets = [*(config.get("target_modules") or []), *(config.get("modules_to_save") or [])]
    ends = ("wte", "lm_head", "embed_out")
    embeds = any("embed" in str(target) or target in ends for target in targets)
    return MergePlan(base, adapter, out, embeds and tied, dtype, read_base_weights(adapter))


def load_with_adapter(folder: Path, adapter: Path | None) -> Any:
    """A model that is to be asked, in bfloat16 as it is served; its adapter live on it, if any."""
    if adapter is None:
        return load_model(folder)
    return load_live(plan_merge(folder, adapter, adapter, "bfloat16"), "bfloat16")


def load_live(plan: MergePlan, dtype: str = "float32") -> Any:
    """The base with the live adapter on it, as it was trained."""
    return _put_on(plan, load_model(plan.base, dtype=dtype), dtype)


def _put_on(plan: MergePlan, model: Any, dtype: str) -> Any:
    """The adapter on an open base."""
    import torch

    if plan.unties_head:
        untie_head(model)
    try:
        with without_bitsandbytes():  # 4-bit layers have brought it along
            from peft import PeftModel

            live = PeftModel.from_pretrained(model, plan.adapter, torch_dtype=getattr(torch, dtype))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"the adapter in {plan.adapter} does not fit {plan.base}:"
            f" {str(error).splitlines()[0][:200]}",
            "it was trained on another base",
        ) from error
    return live.eval()


def lean_towards_calls(live: Any, lean: Lean) -> None:
    """Change the opening token's row of the head so that its logit rises by `lean.nats` in the
    mean where answers begin: the smallest change that does, along the mean of what the head is
    given there. Where head and embedding are one, the token is also read a little differently.

    Raises:
        ConfigError: there is no prompt, or the head is not one that has rows.
    """
    import torch

    given: list[Any] = []
    head = live.get_output_embeddings()
    row = _row_of(head, lean.opener_id)
    if row is None or not lean.beginnings:
        what = "a head without rows of tokens" if row is None else "no held-out row with tools"
        raise ConfigError(
            f"merge.open_bias cannot be applied: {what}",
            "leave merge.open_bias at 0, and train with another weight of `open` instead",
        )
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][0, -1].float()))
    try:
        for ids in lean.beginnings:
            live(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        hook.remove()
    mean = torch.stack(given).mean(0)
    row += (lean.nats / mean.dot(mean) * mean).to(row.dtype)


def _row_of(head: Any, token_id: int) -> Any:
    """The row of a token in a live adapter's head, to be changed in place; None without one."""
    trained = getattr(head, "token_adapter", None)
    if trained is not None:
        name = trained.active_adapters[0]
        ids = list(trained.token_indices[name])
        if token_id in ids:
            return trained.trainable_tokens_delta[name][ids.index(token_id)]
        return trained.base_layer.weight[token_id]
    if hasattr(head, "modules_to_save"):
        head = head.modules_to_save[head.active_adapters[0]]
    weight = getattr(head, "weight", None)
    return None if weight is None else weight[token_id]


def apply_merge(
    plan: MergePlan,
    rows: Sequence[Sequence[int]],
    section: MergeSection,
    *,
    stop_ids: Sequence[int] = (),
    lean: Lean | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Merge, save, and prove.

    Args:
        plan: from `plan_merge`.
        rows: token ids of held-out rows; every position is compared, those that rows begin with
            in common once.
        section: tolerances.
        stop_ids: end a turn; the merged model's generation config names them all.
        lean: what the adapter's opening token is changed by first; the rest compares with that.

    Returns:
        The numbers of the merge stage's summary; `passed` says whether they are within tolerance.
        A model may have a position that magnifies rounding (SmolLM2's second token, whose hidden
        state is thousands of times the others'): there, merged weights rounded to float32 move the
        logits as float32 arithmetic does, and `rounding_times` of that passes as well.
    """
    import torch

    say = on_step or (lambda text: None)
    compared = distinct_rows(rows, section.positions)
    say("live adapter, float32")
    live = load_live(plan)
    base = live.get_base_model()
    tied_before = ties_embeddings(plan.base)
    with torch.no_grad():
        if lean is not None:
            lean_towards_calls(live, lean)
        low = _logits(live, compared)
        # adding up in another order moves float32 logits by 1e-4: no fault of the merge
        high = _exact_logits(live, compared)
        rounding = _difference(high, low)
        say("merged in memory")
        merged = live.merge_and_unload()
        noisy = _difference(low, _logits(merged, compared))
        in_memory = _difference(high, _exact_logits(merged, compared))
        say("saved and loaded again")
        with tempfile.TemporaryDirectory(dir=plan.out.parent) as work:
            merged.save_pretrained(work)
            again = load_model(Path(work), dtype="float32")
            reloaded = _difference(high, _exact_logits(again, compared))
            head, embedding = again.get_output_embeddings(), again.get_input_embeddings()
            tied_after = head.weight is embedding.weight
            del again, high
        say(f"saved in {plan.dtype}")
        merged.to(getattr(torch, plan.dtype))
        _save(merged, plan, stop_ids)
        final = load_model(plan.out, dtype=plan.dtype)
        as_served = _compare(low, _logits(final, compared))
        say("the rounding of the weights alone")
        agreement, divergence = _compare(low, _logits(final.float(), compared))
        del base, final
        trained_on = {}
        if plan.base_weights == "4bit":
            say("the 4-bit base that it was trained on")
            trained_on["training_base"] = _from_four_bit(plan, compared, low, lean)
    passed = (
        max(in_memory, reloaded) <= max(section.tolerance, section.rounding_times * rounding)
        and agreement >= section.top1_at_least
        and divergence <= section.kl_at_most
    )
    return {
        "max_logit_difference_in_memory": in_memory,
        "max_logit_difference_reloaded": reloaded,
        "arithmetic": "float64",
        "max_logit_difference_float32_arithmetic": noisy,
        "adapter_logit_rounding_float32_arithmetic": rounding,
        "top1_agreement": round(agreement, 5),
        "mean_kl": divergence,
        f"top1_agreement_{plan.dtype}_arithmetic": round(as_served[0], 5),
        f"mean_kl_{plan.dtype}_arithmetic": as_served[1],
        "positions": int(sum(len(part) for part in low)),
        "dtype": plan.dtype,
        "tied_before": tied_before,
        "tied_after": tied_after,
        "open_bias": lean.nats if lean is not None else 0.0,
        "passed": passed,
        **trained_on,
    }


def _from_four_bit(
    plan: MergePlan, rows: Sequence[Compared], full: Sequence[Any], lean: Lean | None
) -> dict[str, Any]:
    """How far the model as it was trained, on 4-bit weights, stands from the one on full weights
    that is merged. It gates nothing: no merge can undo what the adapter has learned beside them.

    Args:
        plan: of an adapter that was trained so.
        rows: those of the proof.
        full: logits of the adapter on full weights, float32.
        lean: what its opening token was changed by.
    """
    said: dict[str, Any] = {"base_weights": plan.base_weights}
    try:
        check_four_bit("cpu")
    except ConfigError as error:
        reason = error.message.splitlines()[0]
        return {**said, "top1_agreement": None, "mean_kl": None, "reason": reason}
    config = json.loads((plan.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    whole = config.get("modules_to_save") or []
    base = load_four_bit(plan.base, dtype="float32", whole=whole)
    live = _put_on(plan, base, "float32")
    if lean is not None:
        lean_towards_calls(live, lean)
    agreement, divergence = _compare(full, _logits(live, rows))
    return {**said, "top1_agreement": round(agreement, 5), "mean_kl": divergence}


def _exact_logits(model: Any, rows: Sequence[Compared]) -> list[Any]:
    """Logits of float32 weights in float64 arithmetic; the weights are float32 again afterwards."""
    if sum(p.numel() for p in model.parameters()) > WHOLE_UP_TO:
        with _parts_in_float64(model):
            return _logits(model, rows)
    try:
        return _logits(model.double(), rows)
    finally:
        model.float()


@contextmanager
def _parts_in_float64(model: Any) -> Iterator[None]:
    """Embedding, layers, norm and head compute in float64, each turned when its time comes."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = [whole.get_output_embeddings()]
    for child in whole.base_model.children():
        parts += child if type(child).__name__ == "ModuleList" else [child]

    def widen(part: Any, *_: Any) -> None:
        part.double()

    def narrow(part: Any, *_: Any) -> None:
        part.float()

    hooks = [part.register_forward_pre_hook(widen) for part in parts]
    hooks += [part.register_forward_hook(narrow) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.float()


def _save(model: Any, plan: MergePlan, stop_ids: Sequence[int]) -> None:
    """Write the merged folder whole: beside it first, then renamed."""
    with whole_folder(plan.out) as work:
        model.save_pretrained(work)
        carry(plan.base, work, stop_ids)
        if plan.out.exists():
            shutil.rmtree(plan.out)


def carry(base: Path, folder: Path, stop_ids: Sequence[int]) -> None:
    """Put what a server needs beside weights: tokenizer, template, and a generation config that
    stops where the template's turns end.
    """
    for name in CARRIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for place in (base, folder):  # the base's own, else what transformers has written
        path = place / "generation_config.json"
        if path.is_file():
            generation = json.loads(path.read_text(encoding="utf-8"))
            break
    else:
        generation = {}
    found = generation.get("eos_token_id")
    ends = [] if found is None else found if isinstance(found, list) else [found]
    lacking = [token for token in stop_ids if token not in ends]
    if lacking:
        both = [*ends, *lacking]
        generation["eos_token_id"] = both if len(both) > 1 else both[0]
    if generation:
        write_json(folder / "generation_config.json", generation)


def _logits(model: Any, rows: Sequence[Compared]) -> list[Any]:
    """Logits [positions, vocabulary] of what is new in each row, in the type of the model."""
    import torch

    return [
        model(input_ids=torch.tensor([list(row.token_ids)]), use_cache=False).logits[0][row.start :]
        for row in rows
    ]


def _difference(left: Sequence[Any], right: Sequence[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def _compare(expected: Sequence[Any], found: Sequence[Any]) -> tuple[float, float]:
    """(share of positions with the same best token, mean KL divergence in nats)."""
    import torch

    same = count = 0
    divergence = 0.0
    for a, b in zip(expected, found, strict=True):
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
        left, right = torch.log_softmax(a.float(), -1), torch.log_softmax(b.float(), -1)
        divergence += float((left.exp() * (left - right)).sum(-1).sum())
    return same / count, divergence / count
