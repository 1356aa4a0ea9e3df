"""A grammar of calls as vLLM's structured outputs take it.

In: the facts of a tokenizer, the tools of a prompt. Out: the further key of a request. It is the
grammar of `generate.call_grammar` as a structural tag of xgrammar, which starts at the opening
token's id; outside of it nothing is forbidden. `tool_choice="required"` is not used: vLLM then
asks for a JSON list that is no call in the model's own form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from smollora.cures import NotOffered
from smollora.formats import ToolFormat
from smollora.formats.schema import call_schema, can_be_constrained
from smollora.tokens import TokenFacts
from smollora.types import ToolSpec

SPACE = {"type": "regex", "pattern": "[ \\n]{0,2}"}


def structured_outputs(
    facts: TokenFacts, fmt: ToolFormat, tools: Sequence[ToolSpec], *, required: bool
) -> dict[str, Any]:
    """The key of a request; empty for a prompt without tools.

    Raises:
        NotOffered: the format's calls cannot be written as a structural tag.
    """
    if not can_be_constrained(fmt) or facts.open.id is None or facts.close.id is None:
        raise NotOffered(f"no grammar of calls in the form {fmt.name} is known for a server")
    if not tools:
        return {}
    body = {"type": "json_schema", "json_schema": call_schema(fmt, tools)}
    tag = {
        "type": "tag",
        "begin": {"type": "token", "token": facts.open.id},
        "content": {"type": "sequence", "elements": [SPACE, body, SPACE]},
        "end": {"type": "token", "token": facts.close.id},
    }
    return _key(
        {
            "type": "token_triggered_tags",
            "trigger_tokens": [facts.open.id],
            "tags": [tag],
            "at_least_one": required,
        }
    )


def nothing_but(token: int) -> dict[str, Any]:
    """The key that lets an answer be this token alone."""
    return _key({"type": "token", "token": token})


def _key(form: dict[str, Any]) -> dict[str, Any]:
    whole = {"type": "structural_tag", "format": form}
    return {"structured_outputs": {"structural_tag": json.dumps(whole)}}
