"""A diagnosis for a terminal: the verdict first, then the evidence, the fix and the table.

In: a `Diagnosis`. Out: lines of text. Whatever a model or a server wrote goes through `printable`:
it comes from strangers and may hold control characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from smollora.doctor.answers import WORDS
from smollora.doctor.asking import WAYS, Way
from smollora.doctor.diagnosis import Diagnosis
from smollora.doctor.findings import Finding
from smollora.doctor.tallies import Counts
from smollora.endpoint.wire import printable

WIDTH = 13


def lines(found: Diagnosis) -> Iterator[str]:
    """The whole report."""
    yield f"verdict: {found.verdict}"
    if not found.findings:
        yield (
            f"  {found.conversations} conversations, {found.wanting} of which want a call:"
            " prompts, answers, calls and streams agree"
        )
    for number, finding in enumerate(found.findings):
        yield from _finding(finding, first=not number)
    yield ""
    yield from _table(f"what {found.conversations} conversations came to", found.counts)
    for name, counts in found.groups.items():
        yield from _table(f"{name}", counts, head=False)
    yield ""
    for label, pair in (
        ("prompts served as rendered", found.parity),
        ("chat answers equal to those by ids", found.same_ids),
        ("next turns with the server's own call and a result", found.follow_ups),
    ):
        if pair is not None and pair[1]:
            yield f"{label}: {pair[0]} of {pair[1]}"
    if found.pieces is not None:
        yield f"a streamed call's arguments came in {found.pieces:g} pieces (median)"
    if found.failures:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.failures.items())
        yield f"harness errors, in no rate: {kinds}; unanswered: {found.unanswered}"
    for note in found.notes:
        yield f"note: {printable(note, 400)}"


def _finding(finding: Finding, *, first: bool) -> Iterator[str]:
    if not first:
        yield f"also {finding.blame}:"
    shown = f" ({finding.cases} of {finding.of} conversations)" if finding.of else ""
    yield f"  {printable(finding.says, 400)}{shown}"
    where = f"conversation {finding.case_id}" if finding.case_id else ""
    at = f"token {finding.at}" if finding.at is not None else ""
    if place := ", ".join(each for each in (where, at) if each):
        yield f"  at: {printable(place)}"
    if finding.evidence:
        yield f"  evidence: {printable(finding.evidence)}"
    if finding.instead:
        yield f"       and: {printable(finding.instead)}"
    if finding.token_ids:
        yield f"  ids: {' '.join(map(str, finding.token_ids))}"
    yield f"  fix: {finding.fix}"


def _table(title: str, counts: Mapping[Way, Counts], *, head: bool = True) -> Iterator[str]:
    if head:
        yield f"{title:<44}" + "".join(f"{way:>{WIDTH}}" for way in WAYS)
    else:
        yield f"{title}:"
    for word in WORDS:
        row = [counts.get(way, {}).get(word, 0) for way in WAYS]
        if any(row):
            yield f"  {word:<42}" + "".join(f"{count or '-':>{WIDTH}}" for count in row)
    if head:
        yield from (
            f"    {word}: {means}"
            for word, means in WORDS.items()
            if any(counts.get(way, {}).get(word) for way in WAYS)
        )
