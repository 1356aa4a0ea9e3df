"""What transformers is told: attention over packed trees under a name of its own.

In: a function that attends. Out: the same in the form of transformers' attention interface, with
what no tree computes refused in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from smollora.errors import ModelError

Attend = Callable[[Tensor, Tensor, Tensor, Any, float], Tensor]
"""Queries, keys, values, what each token sees, factor on the scores -> output like queries."""
Interface = Callable[..., tuple[Tensor, None]]


def as_interface(attend: Attend) -> Interface:
    """`attend` as transformers calls it; the model's forward then needs `seen=`.

    A decorator of functions of a module, once each: another function is another reason to compile
    the layers again.
    """

    def interface(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        seen: Any,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Raises ModelError: the layer wants what a tree does not compute."""
        if softcap is not None or s_aux is not None:
            raise ModelError(
                "this model's attention has soft caps or sinks, which packed trees do not compute",
                "train it with another trainer; inspect, prepare, verify and probe serve it as"
                " well",
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        low = value.dtype  # rotation leaves float32 under autocast
        out = attend(query.to(low), key.to(low), value, seen, scale)
        return out.transpose(1, 2).contiguous(), None

    return interface


def set_attention(model: Any, name: str, interface: Interface) -> None:
    """Set a transformers model to an attention of ours."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, interface)
    model.set_attn_implementation(name)
