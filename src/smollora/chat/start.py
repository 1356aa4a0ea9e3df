"""What no answer needs is not imported: a quarter of the time to the first letter.

For a process that does nothing but chat. Importing a model class of transformers brings along
torch's compiler, which is only asked what is *not* to be compiled, tensors that are spread over
machines, and scipy, for losses of object detection. transformers runs without the last two where
they are not installed, and is told so here. The surprise: the compiler cannot be missing, so a
stand-in answers those questions and becomes the compiler when anything else is asked of it.
"""

from __future__ import annotations

import sys
from copy import copy
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
STANDS_ALONE = f"{COMPILER}._trace_wrapped_higher_order_op"
"""The part that transformers imports for its masks; it does not ask for the rest."""


def skip_what_no_answer_needs() -> None:
    """Call it before transformers is imported, which has looked around otherwise: then it does
    nothing.
    """
    if "transformers" in sys.modules:
        return
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]  # Python's way: not installed
    import torch

    torch.distributed.is_available = lambda: False  # as in a torch that is built without it
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _NothingIsCompiled()
        sys.meta_path.insert(0, _PartsWantTheWhole())


def _itself(fn: Any) -> Any:
    return fn


class _NothingIsCompiled(ModuleType):
    """Stands for `torch._dynamo` until more is asked of it than to leave a function alone."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.__spec__ = find_spec(COMPILER)
        assert self.__spec__ is not None and self.__spec__.submodule_search_locations is not None
        self.__path__ = list(self.__spec__.submodule_search_locations)

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        """The function itself, or what decorates one."""
        return _itself if fn is None else fn

    assume_constant_result = allow_in_graph = staticmethod(_itself)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_give_way(), name)


class _PartsWantTheWhole(MetaPathFinder):
    """A part of the compiler that is imported wants the whole of it first; by then it is there."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if not fullname.startswith(f"{COMPILER}.") or fullname == STANDS_ALONE:
            return None
        _give_way()
        found = sys.modules.get(fullname)
        if found is None or found.__spec__ is None:
            return None
        spec = copy(found.__spec__)
        spec.loader = _AsItIs(found)
        return spec


def _give_way() -> ModuleType:
    """The compiler itself, in the place of what stood for it."""
    if isinstance(sys.modules.get(COMPILER), _NothingIsCompiled):
        del sys.modules[COMPILER]
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, _PartsWantTheWhole)]
    return import_module(COMPILER)


class _AsItIs(Loader):
    """Loads a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass
