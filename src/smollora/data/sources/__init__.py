"""Rows of data sets -> conversations, and what was changed in them; or `Reject`.

In: one record as its file holds it. Out: `Accepted`, or a `Reject` whose reason is counted. Nothing
is repaired in silence. A record form is one small module with a name, a test for its keys and a
reader; the form is told from the keys of each row, or given (`form=`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from smollora.data.checks import check_conversation, settle_arguments
from smollora.data.notes import FromArrow, Notes, Refused, Undecodable
from smollora.data.plain import check_plain
from smollora.data.sources import (
    alpaca,
    glaive,
    hermes,
    messages,
    openai,
    sharegpt,
    swift,
    xlam,
)
from smollora.data.sources.files import read_rows
from smollora.data.sources.tools import read_tools
from smollora.types import Change, Conversation, Reject

__all__ = [
    "FORMS",
    "Accepted",
    "FromArrow",
    "Refused",
    "Undecodable",
    "detect_form",
    "read_conversation",
    "read_row",
    "read_rows",
    "read_tools",
]

FORMS: dict[str, ModuleType] = {
    form.NAME: form for form in (xlam, glaive, sharegpt, swift, openai, messages, hermes, alpaca)
}
"""Record forms; the first whose keys match a row reads it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A row that can be used."""

    conversation: Conversation
    form: str
    changes: tuple[Change, ...] = ()


def read_row(record: Any, source: str, row: int, *, form: str = "auto") -> Accepted | Reject:
    """One record as a conversation with its changes, or why not.

    Args:
        record: the decoded row, or `Undecodable`.
        source: name of the source, for ids and counts.
        row: its number, from 1.
        form: a name in FORMS, or "auto".
    """
    notes = Notes()
    try:
        if isinstance(record, Undecodable):
            raise Refused(record.reason, record.detail)
        if not isinstance(record, Mapping):
            raise Refused(
                "not_an_object", f"a row must be an object, found {type(record).__name__}"
            )
        reader = _reader(record, form)
        turns, tools = reader.read(record, notes)
        check_plain(turns)
        identity = record.get("id")
        name = f"{source}-{row}" if identity is None or identity == "" else str(identity)
        name = name.encode(errors="backslashreplace").decode()
        conversation = Conversation(name, source, tuple(turns), tuple(tools))
        conversation = settle_arguments(conversation, notes)
        check_conversation(conversation)
    except Refused as refused:
        return Reject(source, row, refused.reason, refused.detail)
    except RecursionError:
        return Reject(source, row, "too_deep", "nested too deep to be read")
    return Accepted(conversation, str(reader.NAME), notes.changes(source, row))


def read_conversation(record: Any, source: str, row: int) -> Conversation | Reject:
    """`read_row` for those who need the conversation alone."""
    found = read_row(record, source, row)
    return found.conversation if isinstance(found, Accepted) else found


def detect_form(record: Mapping[str, Any]) -> str | None:
    """Name of the form that the record's keys have; None if none."""
    return next((name for name, form in FORMS.items() if form.matches(record)), None)


def _reader(record: Mapping[str, Any], form: str) -> ModuleType:
    keys = ", ".join(sorted(str(key) for key in record)[:8])[:200] or "none"
    if form == "auto":
        found = detect_form(record)
        if found is None:
            raise Refused("unknown_form", f"no known form has the keys {keys}")
        return FORMS[found]
    if not FORMS[form].matches(record):
        raise Refused("other_form", f"not {form}; its keys: {keys}")
    return FORMS[form]
