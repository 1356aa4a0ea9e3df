"""What smollora raises when a person must act.

Every error is one message: what was found, where, what was expected, what to type next. The command
line prints it without a traceback and exits with 2 (`GateFailed`: 1). Bad rows and bad model output
are never exceptions: they are values with a reason.
"""

from __future__ import annotations


class SmolloraError(Exception):
    """A problem that the person at the keyboard can solve.

    Args:
        message: what was found and where; the first line is the headline.
        hint: what to do next, in the imperative.
    """

    exit_code = 2
    label = "error"
    """The word that the command line puts in front."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message + (f"\n  hint: {self.hint}" if self.hint else "")


class ConfigError(SmolloraError):
    """A recipe, an override or a flag is wrong."""


class DataError(SmolloraError):
    """A data file cannot be used at all (single bad rows are rejected and counted instead)."""


class ModelError(SmolloraError):
    """A model folder, tokenizer or adapter cannot be used."""


class TemplateError(SmolloraError):
    """A chat template is absent, refuses to render, or runs past its limits."""


class VerifyError(SmolloraError):
    """Training would teach the wrong tokens; it is refused."""


class GateFailed(SmolloraError):
    """The stage ran to its end and its gate fell short."""

    exit_code = 1
    label = "fell short"


class Interrupted(SmolloraError):
    """The person stopped it, and it says where it goes on."""

    exit_code = 130
    label = "interrupted"
