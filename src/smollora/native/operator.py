"""Functions that call a kernel, as operators of PyTorch's.

In: a function of CPU tensors, and one that says what its results look like. Out: an operator that
`torch.compile` leaves whole. What differs from `torch.library.custom_op`: it has no gradient of its
own (it stands in an autograd function that has) and nothing looks at each call's results, which
took a tenth of a millisecond, four times a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(shapes: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make `smollora::NAME` of a function NAME, whose results have the form of `shapes`'.

    Args:
        shapes: takes the same arguments; may call nothing but PyTorch, and reads no values.

    The function must change no argument and return none, nor a view of one.
    """

    def make(function: Callable[..., Any]) -> Any:
        name = f"smollora::{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "cpu")(function)
        torch.library.register_fake(name)(shapes)
        made = getattr(torch.ops.smollora, function.__name__).default
        made.__doc__ = function.__doc__
        return made

    return make
