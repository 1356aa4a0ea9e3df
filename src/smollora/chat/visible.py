"""Text from a model, a tool or a file, made harmless for a terminal.

Control characters could move the cursor, set the title, or hide what a person is about to say yes
to; marks that turn the direction of writing could show arguments in another order. All are shown as
their code point. Spaces of other widths and the joiners of emoji pass.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """`text` with every character that a terminal might obey as ⟨hex⟩; line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else f"⟨{ord(c):04X}⟩" for c in text)


def _is_harmless(character: str) -> bool:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return True
    return unicodedata.category(character) == "Zs"
