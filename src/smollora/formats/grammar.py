"""What the formats share: strict JSON, blocks between delimiter ids, and what cannot be written.

In: token ids, a tokenizer, text. Out: `Block`s with the text between two delimiters, JSON values,
statuses. The surprise: `json.loads` takes NaN, Infinity and 1e999, which no server can send on;
here they are bad syntax.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from smollora.types import CallStatus, ParsedCall, ToolCall

if TYPE_CHECKING:
    from smollora.formats import Tokenizer


class CannotShow(ValueError):
    """This format has no way to write that call."""


class CutShort(ValueError):
    """The text ends in the middle of a value."""


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is no finite number")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def first_json(text: str) -> tuple[Any, int]:
    """The JSON value that `text` begins with, and where it ends; spaces before it are skipped.

    Raises:
        CutShort: the text ends before the value does.
        ValueError: it is no JSON, or nested deeper than can be read.
    """
    start = len(text) - len(text.lstrip())
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        raise (CutShort if at_end else ValueError)(str(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value, end


def whole_json(text: str) -> Any:
    """The JSON value that `text` is, spaces around it aside.

    Raises:
        ValueError: it is not one JSON value and nothing else.
    """
    value, end = first_json(text)
    if text[end:].strip():
        raise ValueError(f"text after the value: {text[end : end + 20]!r}")
    return value


def show_json(value: Any, tokens: Sequence[str] = ()) -> str:
    """`value` as JSON in which none of `tokens` occurs: their first letter becomes \\uXXXX.

    A delimiter can only occur inside a string of the JSON, where that escape means the same letter.

    Raises:
        CannotShow: it holds NaN or an infinity.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CannotShow(str(error)) from error
    for token in tokens:
        if token:
            text = text.replace(token, f"\\u{ord(token[0]):04x}{token[1:]}")
    return text


def read_call(
    value: Any, arguments_key: Sequence[str] = ("arguments",)
) -> tuple[CallStatus, ToolCall | None]:
    """A decoded JSON object as (status, call); strict: nothing is repaired."""
    if not isinstance(value, Mapping):
        return "bad_syntax", None
    name = value.get("name")
    arguments = next((value[key] for key in arguments_key if key in value), None)
    if not isinstance(name, str) or not name:
        return "no_name", None
    if not isinstance(arguments, Mapping):
        return "bad_syntax", None
    call_id = value.get("id")
    return "ok", ToolCall(name, arguments, call_id if isinstance(call_id, str) else None)


# ── ids ───────────────────────────────────────────────────────────────────────────────────────


def single_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of `text` if it is one token here, else None (many tokenizers answer unk for what they
    do not know).
    """
    if not text:
        return None
    token = tokenizer.convert_tokens_to_ids(text)
    return token if token is not None and tokenizer.decode([token]) == text else None


def end_of_text(token_ids: Sequence[int], tokenizer: Tokenizer, keep: Sequence[int | None]) -> int:
    """Where the special tokens at the end begin (stop tokens, padding); `keep` are not cut off."""
    end = len(token_ids)
    while end and token_ids[end - 1] not in keep:
        last = [token_ids[end - 1]]
        if not tokenizer.decode(last) or tokenizer.decode(last, skip_special_tokens=True):
            break
        end -= 1
    return end


@dataclass(frozen=True, slots=True)
class Block:
    """What stands after an opening delimiter, up to the closing one, the next or the end."""

    start: int
    """Position of the opening token; 0 where there is none."""
    inside: tuple[int, int]
    """Token positions between the delimiters."""
    stop: int
    """Position after the closing token."""
    closed: bool


def blocks(token_ids: Sequence[int], open_id: int | None, close_id: int | None) -> Iterator[Block]:
    """The blocks that open with `open_id`, in order; one that is opened inside another ends it."""
    position = 0
    while position < len(token_ids):
        if open_id is None or token_ids[position] != open_id:
            position += 1
            continue
        end = position + 1
        while end < len(token_ids) and token_ids[end] not in (open_id, close_id):
            end += 1
        closed = end < len(token_ids) and token_ids[end] == close_id
        stop = end + 1 if closed else end
        yield Block(position, (position + 1, end), stop, closed)
        position = stop


def outside(token_ids: Sequence[int], found: Sequence[Block]) -> list[int]:
    """The tokens that belong to no block."""
    inside = {place for block in found for place in range(block.start, block.stop)}
    return [token for place, token in enumerate(token_ids) if place not in inside]


def place_of(token_ids: Sequence[int], tokenizer: Tokenizer, characters: int) -> int:
    """How many of `token_ids` it takes to write the first `characters` characters."""
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(list(token_ids[:middle]))) < characters:
            low = middle + 1
        else:
            high = middle
    return low


def spelled_out(text: str, opening: str, bare: bool = False) -> list[ParsedCall]:
    """Attempts in `text`, which holds no delimiter ids: a spelled opening, or the call without."""
    if opening and opening in text:
        return [ParsedCall(opening + piece, "spelled_out") for piece in text.split(opening)[1:]]
    return [ParsedCall(text.strip(), "spelled_out")] if bare else []


def looks_like_json_call(text: str, arguments_key: str = "arguments") -> bool:
    """True if an answer is the bare JSON of a call, fenced or not."""
    stripped = text.strip().removeprefix("```json").strip("`\n ")
    keys = '"name"' in stripped and f'"{arguments_key}"' in stripped
    return stripped.startswith(("{", "[{")) and keys
