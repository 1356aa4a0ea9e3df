"""docs/audit.md says what the audit is."""

from __future__ import annotations

import re
from pathlib import Path

from smollora.templates.audit import CHECKS

PAGE = (Path(__file__).parent.parent / "docs" / "audit.md").read_text(encoding="utf-8")


def test_the_page_lists_every_check_in_order() -> None:
    table = PAGE[PAGE.index("## The checks") : PAGE.index("Some checks hold")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [c.__name__ for c in CHECKS]


def test_the_table_of_families_is_there_beside_its_command() -> None:
    before, _, table = PAGE.partition("<!-- families: written by bench/audit_families.py -->")
    assert "python bench/audit_families.py --write" in before
    rows = re.findall(r"^\| (\w+) \| [\w ]+ \|", table, re.MULTILINE)[1:]
    assert len(rows) == 41
    assert rows == sorted(rows)
