"""What a training was started with; which base an adapter belongs to, told from the weights
themselves.

Names and paths change and shapes are shared by whole families; so the first bytes of every tensor
are hashed. Reads a few hundred KiB of a folder of any size.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollora.config import TRAIN_SIDE_KEYS, TrainSection
from smollora.data.batch import BatchPlan, Row

READ = 1024
"""Bytes of each tensor that are hashed."""
FILE = "smollora.json"
"""What lies beside an adapter: {"base": identity, "base_weights": full or 4bit}."""


def base_identity(folder: Path) -> str:
    """sha256 (hex) over the names, types, shapes and first bytes of a folder's tensors; "" where it
    holds no safetensors. Does not depend on how they are spread over files.
    """
    tensors: list[tuple[str, str, str]] = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                stream.seek(8 + size + start)
                first = hashlib.sha256(stream.read(min(READ, end - start))).hexdigest()
                tensors.append((name, f"{entry['dtype']} {entry['shape']}", first))
    return hashlib.sha256(json.dumps(sorted(tensors)).encode()).hexdigest() if tensors else ""


def read_identity(adapter: Path) -> str:
    """The identity of the base that an adapter was trained on; "" where it does not say."""
    return str(_read_marks(adapter).get("base", ""))


def read_base_weights(adapter: Path) -> str:
    """ "4bit" or "full": how the base lay in memory while an adapter was trained."""
    return str(_read_marks(adapter).get("base_weights", "full"))


def _read_marks(adapter: Path) -> dict[str, Any]:
    path = adapter / FILE
    if not path.is_file():
        return {}
    marks: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return marks


def describe_origin(
    settings: TrainSection,
    base: Path | None,
    rows: Sequence[Row],
    validation: Sequence[Row],
    plan: BatchPlan,
    packs: int,
    dtype: str,
) -> dict[str, Any]:
    """What a training is started with; one that was cut off goes on only with the same."""
    values = settings.model_dump(mode="json")
    for key in (*TRAIN_SIDE_KEYS, "packs_per_step", "device", "dtype"):
        del values[key]
    order = [row.conversation_id for pack in plan.packs for tree in pack for row in tree.rows]
    return {
        "recipe": values,
        "base model": base_identity(base) if base is not None else "",
        "training rows": _hash_rows(rows),
        "validation rows": _hash_rows(validation),
        "packing of the rows": hashlib.sha256(json.dumps(order).encode()).hexdigest(),
        "packs a step": packs,
        "compute type": dtype,
    }


def _hash_rows(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.conversation_id.encode())
        digest.update(array("i", row.token_ids).tobytes())
        digest.update(array("f", row.weights).tobytes())
        digest.update(repr(row.refusals).encode())
    return digest.hexdigest()
