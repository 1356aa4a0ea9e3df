"""Whose fault is it when a served model does not call: prompt, template, model, parser, streaming?

`diagnose` sends the same conversations to a server in every way that it can be asked and compares
on token ids: the prompt that it renders with ours (`prompts`), what the model wrote with what the
client got (`answers`), a stream with a complete answer. `show` prints the verdict first.
"""

from smollora.doctor.conversations import choose_cases, require_askable
from smollora.doctor.diagnosis import Diagnosis, diagnose
from smollora.doctor.reference import Reference, read_reference

__all__ = [
    "Diagnosis",
    "Reference",
    "choose_cases",
    "diagnose",
    "read_reference",
    "require_askable",
]
