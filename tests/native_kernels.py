"""The C++ kernels of this machine, for tests of what they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from smollora import native

UNITS = ("AMX", "AVX512-BF16")


def kernels_with(units: str) -> native.Kernels:
    """The kernels that multiply with these; skips where the processor has none."""
    flags = native.VECTORS + (native.MATRIX_UNITS if units == "AMX" else ())
    if missing := set(flags) - native.processor_flags():
        pytest.skip(f"this processor has no {sorted(missing)}: only the way around is tested")
    return native.Kernels(native._load(flags), units)


@pytest.fixture(params=UNITS)
def kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[native.Kernels]:
    """Either kernel, in use; afterwards as many threads as before."""
    found, before = kernels_with(request.param), torch.get_num_threads()
    monkeypatch.setattr(native, "find_kernels", lambda: found)
    yield found
    torch.set_num_threads(before)
