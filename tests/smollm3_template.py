"""The chat template that SmolLM3-3B was published with, where it is at hand.

Its text is not part of this project. It is looked for in the folder that `SMOLLORA_SMOLLM3` names
and in the Hugging Face cache, and taken only if it is the file of that sha256; nothing is fetched.
Where it is absent, tests of it are skipped, and a small likeness with the same faults
(`STOCK_LIKE` in `templates/test_audit.py`) is what the audit is tested on.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache

PUBLISHED_SHA256 = "3e0e275a527f249670056e0078e474eadbdd007c134b4fdfae5a7b3089702814"


def stock_smollm3_template() -> str:
    """The published text; skips the test that asks for it where the file is not here."""
    folder = os.environ.get("SMOLLORA_SMOLLM3")
    cached = try_to_load_from_cache("HuggingFaceTB/SmolLM3-3B", "chat_template.jinja")
    places = [Path(folder) / "chat_template.jinja"] if folder else []
    places += [Path(cached)] if isinstance(cached, str) else []
    for place in places:
        if place.is_file():
            source = place.read_bytes()
            if hashlib.sha256(source).hexdigest() == PUBLISHED_SHA256:
                return source.decode()
    pytest.skip("SmolLM3's own chat_template.jinja is not here; set SMOLLORA_SMOLLM3 to its folder")
