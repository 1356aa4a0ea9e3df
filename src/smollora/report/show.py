"""How single values read on the page: numbers, shares, times, and text that nobody may trust.

Text comes from data sets and models. Escaping is Jinja's work (autoescape); this module makes
visible what escaping lets through: control characters (a terminal's escape codes), characters that
reorder or hide text (U+202E, zero-width spaces), and lone surrogates, which no file can hold. The
surprise: `visible` runs over every string of the page, as the template environment's `finalize`.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from smollora.report.contents import Rate

NOT_RECORDED = "not recorded"
NO_CASES = "no cases"
LONGEST_TEXT = 20_000
"""Characters of any one string on the page; what is left out is counted."""

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories without a glyph: controls, formats, surrogates, line separators."""

MODEL_NOTES = {
    "base": "the model before training",
    "base_stock": "before training, stock template",
    "adapter": "with the adapter",
    "merged": "adapter merged in",
    "served": "merged, from the server",
}
FIELD_NAMES = {"gqa_ratio": "GQA ratio", "lora_memory_bytes_bf16": "LoRA memory, bf16"}
"""Where the field's own words would not do."""
RATE_NOTES = {
    "emission": ("Opens a call", "of prompts that need a tool"),
    "opens_first": ("Opens at once", "the opening token is the first token"),
    "valid_json": ("Valid JSON", "the call can be read"),
    "schema_valid": ("Fits the schema", "its arguments are those the tool takes"),
    "right_tool": ("Right tool", "the call names the expected tool"),
    "right_call": ("Right call", "the tool and its arguments are as expected"),
    "stops_after_call": ("Stops after the call", "nothing follows it"),
    "false_call": ("False call", "calls where none was wanted"),
    "false_call_irrelevant": ("False call, irrelevant tools", "where foreign tools were offered"),
    "false_call_near": ("False call, near miss", "where a tool sounded right and was not"),
    "false_call_no_tools": ("False call, no tools", "where no tool was offered"),
    "spelled_out": ("Spelled out", "a call typed with ordinary tokens"),
}
LOWER_IS_BETTER = frozenset(
    {*(rate for rate in RATE_NOTES if rate.startswith("false_call")), "spelled_out"}
)


def visible(value: Any) -> Any:
    """Strings with hidden characters made visible and far too long ones clipped; the rest as is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(map(_visible_character, clip(value, LONGEST_TEXT)))


def _visible_character(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(character) in HIDDEN or code & 0xFFFE == 0xFFFE:
        return f"\u27e8U+{code:04X}\u27e9"
    return character


def token_text(token: str) -> str:
    """A token as the token view prints it: line ends and tabs get a mark of their own."""
    if token == "":
        return "\u2205"
    return token.replace("\t", "\u21e5\t").replace("\n", "\u21b5\n")


def clip(text: str, longest: int) -> str:
    """`text`, or its beginning and how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}\u2026 ({len(text) - longest:,} more characters)"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number: counts with separators, fractions to `digits` significant digits."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.{digits}g}"
    if abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{decimals}f}"


def percent(share: float | None) -> str:
    """A share in percent; 100% and 0% are printed only where they are exact."""
    if share is None:
        return NOT_RECORDED
    if share in (0, 1):
        return f"{share:.0%}"
    text = f"{share:.1%}"
    if text == "0.0%" and share > 0:
        return "<0.1%"
    if text == "100.0%" and share < 1:
        return ">99.9%"
    return text


def threshold(share: float) -> str:
    """A share as people ask for it: "90%", "92.5%"."""
    return f"{round(share * 100, 6):g}%"


def of(rate: Rate | None) -> str:
    """ "203 of 208", or "no cases"."""
    if rate is None or not rate.has_cases:
        return NO_CASES
    return f"{rate.k:,} of {rate.n:,}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "6 min 54 s"."""
    if seconds is None:
        return NOT_RECORDED
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(size: float | None) -> str:
    """Bytes in decimal units, as in "2.3 GB"."""
    if size is None:
        return NOT_RECORDED
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


def yes_no(claim: bool | None) -> str:
    """A claim in words."""
    return NOT_RECORDED if claim is None else "yes" if claim else "no"


def call(expected: Mapping[str, Any]) -> str:
    """An expected call as one line: `get_weather({"city": "Paris"})`."""
    arguments = json.dumps(expected.get("arguments", {}), ensure_ascii=False, default=str)
    return f"{expected.get('name', '?')}({arguments})"


def pretty(value: Any) -> str:
    """A JSON value over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def field_name(field: str) -> str:
    """What a field of a summary is called on the page."""
    return FIELD_NAMES.get(field) or field.replace("_", " ").capitalize()


def rate_name(rate: str) -> str:
    """What a rate is called on the page."""
    return RATE_NOTES[rate][0] if rate in RATE_NOTES else rate.replace("_", " ").capitalize()


def rate_note(rate: str) -> str:
    """What a rate counts, where the report knows it."""
    return RATE_NOTES[rate][1] if rate in RATE_NOTES else ""
