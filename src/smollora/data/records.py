"""The records of a source: shipped starter rows, a file or folder, or a data set of the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smollora.config import SourceSection
from smollora.data.notes import FromArrow
from smollora.data.sources.files import read_rows
from smollora.errors import DataError


def read_records(source: SourceSection, seed: int) -> Iterator[tuple[int, Any]]:
    """(row number, record) of a source, from 1; at most `source.limit`.

    Raises:
        DataError: the source cannot be read at all.
    """
    for count, row in enumerate(_records(source, seed)):
        if source.limit is not None and count >= source.limit:
            break
        yield row


def _records(source: SourceSection, seed: int) -> Iterator[tuple[int, Any]]:
    from smollora.data.starter import build_general_rows, build_rows

    if source.path == "starter:tools":
        yield from enumerate(build_rows("train", seed=seed, share=source.share), 1)
    elif source.path == "starter:general":
        yield from enumerate(build_general_rows("train", seed=seed), 1)
    elif source.path.startswith("starter:"):
        raise DataError(
            f"source {source.name}: there is no {source.path}",
            "use starter:tools or starter:general",
        )
    elif source.path.startswith("hub:"):
        yield from enumerate(_hub_rows(source), 1)
    else:
        yield from read_rows(Path(source.path).expanduser())


def _hub_rows(source: SourceSection) -> Iterator[FromArrow]:
    """Rows of hub:OWNER/NAME[:CONFIG], streamed: nothing is kept but what the library caches."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"reading {source.path} needs the package datasets",
            "pip install 'smollora[hub]'; or download the files and give their folder",
        ) from error
    name, _, config = source.path.removeprefix("hub:").partition(":")
    try:
        rows = load_dataset(name, config or None, split=source.split, streaming=True)
        yield from map(FromArrow, rows)
    except Exception as error:  # the client raises a dozen kinds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot read {name} ({config or 'default'}, split {source.split}) from the Hub:"
            f" {type(error).__name__}: {first[:200]}",
            "check name, config and split (key `split` of the source) and the connection;"
            " or download the files and give their folder",
        ) from error
