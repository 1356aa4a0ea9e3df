"""Wrapping a model with the recipe's LoRA, and what is made cheaper about peft's layers.

In: a causal language model, the recipe's train section. Out: a peft model whose trainable
parameters are float32. The surprise: LoRA on `embed_tokens` of a tied model trains the input side
only, and a merge would change the head as well; so the head is untied first (merge.py proves it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from smollora.config import TrainSection
from smollora.errors import ConfigError
from smollora.models import without_bitsandbytes
from smollora.train.four_bit import refuse_other_weights
from smollora.train.head import head_with_rows


def attach_adapter(model: Any, settings: TrainSection, token_ids: Sequence[int]) -> Any:
    """Wrap a model with the recipe's LoRA.

    Args:
        model: causal language model.
        settings: rank, targets and the `embeddings` mode.
        token_ids: rows that `embeddings: tool_tokens` trains.

    Raises:
        ConfigError: target names that match nothing; a model whose weights are not those that
            `base_weights` names.
    """
    import torch

    refuse_other_weights(model, settings)
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    unknown = [target for target in settings.targets if target not in leaves]
    if unknown:
        raise ConfigError(
            f"train.targets: {', '.join(unknown)} match nothing in {type(model).__name__}",
            f"linear layers there: {', '.join(sorted(leaves))}",
        )
    _check_whole_modules(model, settings)
    targets = list(settings.targets)
    extra: dict[str, Any] = {}
    embedding = _leaf(model, model.get_input_embeddings())
    if settings.modules_to_save:
        extra["modules_to_save"] = list(settings.modules_to_save)
        if set(settings.modules_to_save) & {embedding, _leaf(model, model.get_output_embeddings())}:
            untie_head(model)
    if settings.embeddings == "lora":
        untie_head(model)
        targets.append(embedding)
    elif settings.embeddings == "tool_tokens" and token_ids:
        extra["trainable_token_indices"] = {embedding: list(token_ids)}
    with without_bitsandbytes():  # 4-bit layers have brought it along
        from peft import LoraConfig, get_peft_model

        peft = get_peft_model(
            model,
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=targets,
                use_rslora=settings.rslora,
                use_dora=settings.dora,
                task_type="CAUSAL_LM",
                **extra,
            ),
        )
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.base_weights == "4bit":
        from smollora.train.fused_four_bit import fuse_four_bit

        fuse_four_bit(peft)
    return peft


def parameter_groups(peft: Any, settings: TrainSection) -> list[dict[str, Any]]:
    """What is trained, for an optimizer: first factors and modules trained whole with `lr`, second
    factors with `loraplus_lr_ratio` times that (LoRA+: Hayou et al. 2024), delimiter rows with
    `token_lr` and without weight decay. Groups without parameters are left out.
    """
    decayed = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": [], **decayed},
        {"params": [], **decayed, "lr": settings.lr * settings.loraplus_lr_ratio},
        {"params": [], "lr": settings.token_lr or settings.lr, "weight_decay": 0.0},
    ]
    for name, parameter in peft.named_parameters():
        if not parameter.requires_grad:
            continue
        second = ".lora_B." in name and settings.loraplus_lr_ratio != 1
        place = 2 if "trainable_tokens" in name else int(second)
        groups[place]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _leaf(model: Any, module: Any) -> str:
    """The last part of a module's name: "embed_tokens"."""
    path: str = next(n for n, m in model.named_modules() if m is module)
    return path.rsplit(".", 1)[-1]


def _check_whole_modules(model: Any, settings: TrainSection) -> None:
    """Raise where a module that is to be trained whole is absent, or trained otherwise as well."""
    if not settings.modules_to_save:
        return
    leaves = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    unknown = [name for name in settings.modules_to_save if name not in leaves]
    if unknown:
        raise ConfigError(
            f"train.modules_to_save: {', '.join(unknown)} match nothing in {type(model).__name__}",
            f"modules there: {', '.join(sorted(n for n in leaves if not n.isdigit()))}",
        )
    twice = sorted(set(settings.modules_to_save) & set(settings.targets))
    if twice:
        raise ConfigError(
            f"{', '.join(twice)} stands in train.targets and in train.modules_to_save",
            "take it out of one of them",
        )
    ends = {_leaf(model, model.get_input_embeddings()), _leaf(model, model.get_output_embeddings())}
    if settings.embeddings != "frozen" and ends & set(settings.modules_to_save):
        raise ConfigError(
            f"train.modules_to_save={list(settings.modules_to_save)} beside"
            f" train.embeddings={settings.embeddings}: both would train the embedding's rows",
            "set train.embeddings=frozen",
        )


def untie_head(model: Any) -> None:
    """Give a tied model a head of its own, so that a change of the embedding does not change it."""
    import torch

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def compute_rows_apart(peft: Any) -> None:
    """Let peft's trainable token rows be looked up and multiplied apart from the embedding matrix.

    peft (0.21.2) copies the whole matrix at every forward pass to put a few rows into it, and its
    gradient is as large; this gives the same values (a test holds them equal) from the rows alone,
    which stay in float32.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    for module in peft.modules():
        if isinstance(module, TrainableTokensLayer):
            module.forward = partial(_forward_rows, module)


def _forward_rows(layer: Any, inputs: Any) -> Any:
    """What a `TrainableTokensLayer` around an embedding or a tied head computes."""
    import torch

    name = layer.active_adapters[0]
    rows, ids = layer.trainable_tokens_delta[name], layer.token_indices[name]
    if isinstance(layer.base_layer, torch.nn.Embedding):
        out = layer.base_layer(inputs)
        scale = layer._get_embed_scale()
        values = rows if scale is None else rows * scale
        for place, token in enumerate(ids):
            out = torch.where((inputs == token)[..., None], values[place].to(out.dtype), out)
        return out
    index = torch.tensor(ids, device=inputs.device)
    return head_with_rows(layer.base_layer, inputs, rows, index)


def leave_casting_to_autocast(peft: Any) -> None:
    """Stop peft from casting every activation to the adapters' fp32 (14% of the time); autocast
    casts the small weights instead.

    What `peft.helpers.disable_input_dtype_casting` does, which fails on trainable token layers
    (peft 0.21.2).
    """
    for module in peft.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
