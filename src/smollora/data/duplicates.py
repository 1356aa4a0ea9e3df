"""Repeated conversations, found when every shard is there, and taken out of them.

In: shards with a digest a row. Out: the shards without conversations that render to the same tokens
and labels as an earlier one, and a reject for each that went. Memory: some bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollora.data.prepared import shard_paths
from smollora.data.shards import drop_rows
from smollora.runs import read_jsonl, write_jsonl


def drop_duplicates(rows: Path, listed: Path) -> list[dict[str, Any]]:
    """Take repeated conversations out of the shards in the folder `rows`; what went, as lines of
    `find_duplicates`.

    What goes is written to the file `listed` before the first shard is rewritten, so that a second
    call after a kill takes out the same rows.
    """
    if not listed.is_file():
        write_jsonl(listed, find_duplicates(shard_paths(rows)))
    found = read_jsonl(listed)
    by_shard: dict[str, list[int]] = {}
    for item in found:
        by_shard.setdefault(item["shard"], []).append(item["row"])
    for name, numbers in by_shard.items():
        drop_rows(rows / name, numbers)
    return found


def find_duplicates(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Records whose conversation renders to the same tokens and labels as an earlier one
    (compared by 64-bit digests), in order.
    """
    import numpy as np
    import pyarrow.parquet as pq

    names = ["row", "built", "digest", "length", "labelled", "source"]
    shards = [pq.read_table(path, columns=names, memory_map=True) for path in paths]
    digest = np.concatenate([table["digest"].to_numpy() for table in shards])
    built = np.concatenate([table["built"].to_numpy() for table in shards])
    row = np.concatenate([table["row"].to_numpy() for table in shards])
    shard = np.repeat(np.arange(len(shards)), [table.num_rows for table in shards])
    record = shard.astype(np.int64) * (int(row.max()) + 1) + row
    own = np.flatnonzero(~built)
    _, earliest, group = np.unique(digest[own], return_index=True, return_inverse=True)
    first = own[earliest[group]]  # of each read row: where its digest stands first
    again = record[first] != record[own]
    origin = dict(zip(record[own[again]].tolist(), first[again].tolist(), strict=True))
    found = []
    for key, where in sorted(origin.items()):
        number, at = divmod(key, int(row.max()) + 1)
        table = shards[number]
        mine = np.flatnonzero(table["row"].to_numpy() == at)
        named = shards[shard[where]]["source"][0].as_py()
        found.append(
            {
                "source": table["source"][int(mine[0])].as_py(),
                "row": at,
                "reason": "duplicate",
                "detail": f"the same tokens as row {row[where]} of {named}",
                "shard": paths[number].name,
                "rows": len(mine),
                "tokens": int(table["length"].to_numpy()[mine].sum()),
                "labelled_tokens": int(table["labelled"].to_numpy()[mine].sum()),
                "built": int(table["built"].to_numpy()[mine].sum()),
            }
        )
    return found
