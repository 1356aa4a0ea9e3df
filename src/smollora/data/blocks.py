"""The row functions of `prepare` as datatrove blocks: read, convert, render and verify, write.

In: a task (the rank of the pipeline says which). Out: its shard, its counts, its rejects and what
the proof of its rows found. Converting and rendering are datatrove filters, so that rejects leave
through exclusion writers and are counted in its statistics under their reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from smollora.config import PrepareSection, SourceSection
from smollora.data.negatives import Negatives
from smollora.data.overlap import Overlap
from smollora.data.prepare import (
    BATCH,
    RowOutcome,
    batched,
    convert,
    raise_at_first,
    render_batch,
)
from smollora.data.stretches import ShardTask, read_task
from smollora.data.tasks import Workplace, write_task
from smollora.data.worker import RendererFiles
from smollora.formats import get_format
from smollora.render import Renderer
from smollora.runs import write_json
from smollora.types import Reject
from smollora.verify import check_row


class RecordReader(PipelineStep):  # type: ignore[misc]
    """The records of one task, one document each."""

    type = "📖 - READER"
    name = "smollora records"

    def __init__(self, tasks: Sequence[ShardTask], folder: Path) -> None:
        super().__init__()
        self.tasks, self.folder = tuple(tasks), folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """One document a record; how many there were is written down at the end."""
        place = Workplace(self.folder)
        count = 0
        for number, record in read_task(self.tasks[rank], place.work):
            count += 1
            self.stat_update("documents")
            yield Document("", str(number), metadata={"number": number, "record": record})
        write_json(place.work / "read" / f"{rank:05d}.json", {"rows_in": count})


class RejectWriter(DiskWriter):  # type: ignore[misc]
    """Rejected records as lines of JSON."""

    name = "smollora rejects"

    def __init__(self, folder: Path, block: str) -> None:
        super().__init__(str(folder), f"${{rank}}-{block}.jsonl", adapter=_as_reject)

    def _write(self, document: dict[str, Any], file_handler: Any, _: str) -> None:
        file_handler.write(json.dumps(document) + "\n")


def _as_reject(writer: Any, document: Any) -> dict[str, Any]:
    return asdict(document.metadata["reject"])


class Convert(BaseFilter):  # type: ignore[misc]
    """Records that are a conversation pass."""

    name = "smollora convert"

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        section: PrepareSection,
        overlap: Overlap | None,
        rejects: Path,
    ) -> None:
        super().__init__(RejectWriter(rejects, "convert"), batch_size=BATCH)
        self.tasks, self.section, self.overlap = tuple(tasks), section, overlap

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Converts with the settings of the task's source."""
        self.source: SourceSection = self.section.sources[self.tasks[rank].source]
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """True, or the slug of the reason why not."""
        number = doc.metadata["number"]
        found = convert(number, doc.metadata.pop("record"), self.source, self.overlap)
        if not isinstance(found, Reject):
            doc.metadata["accepted"] = found
            return True
        if self.section.strict:
            raise_at_first([RowOutcome(number, reject=found)])
        doc.metadata["reject"] = found
        return False, found.reason

    def filter_batch(self, batch: list[Any]) -> list[bool | tuple[bool, str]]:
        """The same for each record; datatrove keeps time by the batch."""
        return [self.filter(doc) for doc in batch]


class Render(BaseFilter):  # type: ignore[misc]
    """Conversations that render and fit pass; what the proof of a row finds goes with it."""

    name = "smollora render and verify"

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        section: PrepareSection,
        files: RendererFiles,
        negatives: Negatives | None,
        rejects: Path,
    ) -> None:
        super().__init__(RejectWriter(rejects, "render"), batch_size=BATCH)
        self.tasks, self.section, self.files = tuple(tasks), section, files
        self.negatives = negatives

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Renders with the settings of the task's source."""
        self.source: SourceSection = self.section.sources[self.tasks[rank].source]
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Any) -> bool | tuple[bool, str]:
        """One conversation."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Any]) -> list[bool | tuple[bool, str]]:
        """True, or the slug of the reason why not, for each conversation."""
        renderer = self.files.load()
        asked = [(doc.metadata["number"], doc.metadata.pop("accepted")) for doc in batch]
        outcomes = list(render_batch(asked, self.source, self.section, renderer, self.negatives))
        if self.section.strict:
            raise_at_first(outcomes)
        results: list[bool | tuple[bool, str]] = []
        for doc, outcome in zip(batch, outcomes, strict=True):
            doc.metadata["outcome"] = outcome
            doc.metadata["failures"] = _failures(outcome, renderer)
            if outcome.reject:
                doc.metadata["reject"] = outcome.reject
            results.append((False, outcome.reject.reason) if outcome.reject else True)
        return results


def _failures(outcome: RowOutcome, renderer: Renderer) -> list[dict[str, Any]]:
    """What `smollora verify` would say of these rows."""
    fmt = get_format(renderer.facts.format)
    return [
        {"conversation_id": row.rendered.conversation_id, **asdict(check)}
        for row in (*outcome.rows, *outcome.built)
        for check in check_row(row.rendered, row.calls, renderer.facts, fmt, renderer.tokenizer)
        if not check.ok
    ]


class WriteShard(PipelineStep):  # type: ignore[misc]
    """The task's shard and its counts."""

    type = "💽 - WRITER"
    name = "smollora shard"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Takes every document; nothing comes after."""
        place = Workplace(self.folder)
        failures: list[dict[str, Any]] = []

        def batches() -> Iterator[list[RowOutcome]]:
            for documents in batched(data, BATCH):
                for document in documents:
                    failures.extend(document.metadata["failures"])
                self.stat_update("documents", value=len(documents))
                yield [document.metadata["outcome"] for document in documents]

        write_task(place, rank, batches())
        write_json(
            place.work / "unproved" / f"{rank:05d}.json",
            {"failures_in_all": len(failures), "failures": failures[:20]},
        )
        yield from ()
