"""What a reader says about a row beside the conversation: why it is refused, what was changed."""

from __future__ import annotations

from smollora.types import Change

DETAIL = 300
"""Longest detail, in characters: a ledger is read by people, and a row may hold megabytes."""


class Refused(Exception):
    """A row cannot be used; carries the slug that is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = printable(detail)


class Undecodable:
    """A row that is no record: broken JSON, not UTF-8, or longer than is read."""

    def __init__(self, detail: str, reason: str = "bad_json") -> None:
        self.detail = printable(detail)
        self.reason = reason


class FromArrow(dict[str, object]):
    """A record out of Parquet or a Hub data set, where a key that is missing reads as null."""


class Notes:
    """The changes to one row, collected while it is read."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, reason: str, detail: str) -> None:
        """Note one change; the same one twice counts once a row."""
        details = self.found.setdefault(reason, [])
        if len(details) < 8 and detail not in details:
            details.append(detail)

    def changes(self, source: str, row: int) -> tuple[Change, ...]:
        """One `Change` for each kind of change."""
        return tuple(
            Change(source, row, reason, printable("; ".join(details)))
            for reason, details in self.found.items()
        )


def printable(text: str) -> str:
    """The text cut to the length of a detail, with what UTF-8 cannot hold written out."""
    short = text if len(text) <= DETAIL else text[: DETAIL - 1] + "…"
    return short.encode(errors="backslashreplace").decode()
