"""The page's two lists, training rows and cases: what fits, and the choices of their filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from smollora.report import island
from smollora.report.cases import Case
from smollora.report.contents import RIGHT, Inspect, TokenRow

ROWS_BYTES = 1_200_000
CASES_BYTES = 1_500_000


@dataclass(frozen=True, slots=True)
class Lists:
    """What of both lists is on the page."""

    island: Markup
    """JSON for the script that draws them."""
    rows: int
    rows_total: int
    row_sources: tuple[str, ...]
    scored_by: tuple[str, ...]
    """Models whose log-probabilities the training rows hold."""
    cases: int
    cases_total: int
    case_sources: tuple[str, ...]
    categories: tuple[str, ...]
    models: tuple[str, ...]
    verdicts: tuple[str, ...]


def lists(
    rows: Sequence[TokenRow], cases: Sequence[Case], inspect: Inspect | None, share: float = 1.0
) -> Lists:
    """As many rows and cases, from the front, as fit into `share` of the room that they have."""
    vocabulary = island.Vocabulary()
    packed_rows = island.pack(
        rows, ROWS_BYTES * share, vocabulary, island.row_tokens, island.row_payload
    )
    packed_cases = island.pack(
        cases, CASES_BYTES * share, vocabulary, island.case_tokens, island.case_payload
    )
    shown_rows, shown = rows[: len(packed_rows)], cases[: len(packed_cases)]
    answers = [answer for case in shown for answer in case.answers]
    verdicts = _once(answer.record.verdict for answer in answers)
    return Lists(
        island=island.island(packed_rows, packed_cases, vocabulary, inspect),
        rows=len(shown_rows),
        rows_total=len(rows),
        row_sources=_once(row.source for row in shown_rows),
        scored_by=_once(model for row in shown_rows for model in row.logprobs),
        cases=len(shown),
        cases_total=len(cases),
        case_sources=_once(case.question.source for case in shown),
        categories=_once(case.question.category for case in shown),
        models=_once(model for answer in answers for model in answer.models),
        verdicts=tuple(sorted(verdicts, key=lambda verdict: (verdict != RIGHT, verdict))),
    )


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
