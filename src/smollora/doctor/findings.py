"""What was found wrong: whose fault, why, with evidence, and what to type.

In: nothing of its own. Out: the values that the three kinds of blame (`of_prompts`, `of_delivery`,
`of_model`) share: a `Finding`, and a `Reading` of one exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smollora.doctor.answers import Outcome
from smollora.doctor.asking import Exchange, Way
from smollora.doctor.prompts import PromptFault

Blame = Literal["prompt", "template", "model", "parser", "streaming"]

EXCERPT = 400
"""Characters of evidence."""
IDS = 32
"""Token ids of evidence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault."""

    blame: Blame
    cause: str
    """A slug that is counted: "calls_lost"."""
    says: str
    fix: str
    cases: int = 0
    """Conversations that show it."""
    of: int = 0
    """Conversations that could have shown it."""
    case_id: str = ""
    """The one that the evidence is from."""
    at: int | None = None
    """Token position of the evidence, in the prompt or in the answer."""
    token_ids: tuple[int, ...] = ()
    evidence: str = ""
    instead: str = ""
    """What should stand there."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "blame": self.blame,
            "cause": self.cause,
            "says": self.says,
            "fix": self.fix,
            "cases": self.cases,
            "of": self.of,
            "case_id": self.case_id,
            "at": self.at,
            "token_ids": list(self.token_ids),
            "evidence": self.evidence,
            "instead": self.instead,
        }


@dataclass(slots=True)
class Reading:
    """One exchange with its outcomes and what is wrong with its prompt."""

    exchange: Exchange
    outcomes: dict[Way, Outcome]
    prompt: tuple[PromptFault, ...] = ()
    own_prompt_loses: bool = False
    """Whether our own rendering of the conversation, with the model's template, loses something."""

    @property
    def fair(self) -> Outcome | None:
        """An answer to a prompt that loses nothing, by which the model may be judged."""
        if "by ids" in self.outcomes and not self.own_prompt_loses:
            return self.outcomes["by ids"]
        lossless = self.exchange.served is not None and not any(
            fault.cause != "other_template" for fault in self.prompt
        )
        same = not self.own_prompt_loses and not self.prompt
        return self.outcomes.get("complete") if lossless or same else None
