"""smollora: finds out why a chat model calls no tools, teaches it its native tool-call tokens, and
proves it on token ids.
"""

from __future__ import annotations

__version__ = "0.1.0"
