"""Blame for prompts: the template's and the prompt's own faults.

In: readings with their prompt faults, the audit of the model's template. Out: a `Finding` a cause.
One conversation is enough: a template is a program, and does the same again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smollora.doctor.findings import EXCERPT, Finding, Reading
from smollora.doctor.prompts import TEMPLATE_CAUSES, PromptCause, PromptFault
from smollora.doctor.reference import Reference

CRITICAL_CHECKS = {
    "tools_reach_prompt": "tools_lost",
    "calls_rendered": "calls_lost",
    "results_rendered": "results_lost",
    "results_unlike_user": "result_as_user",
}
"""Checks of the audit without which calling cannot work, and the cause that each stands for."""


def prompt_findings(reference: Reference, readings: Sequence[Reading]) -> Iterator[Finding]:
    """What is wrong with the served prompts, a finding a cause."""
    told = [each for each in readings if each.exchange.served is not None]
    found: dict[PromptCause, list[tuple[Reading, PromptFault]]] = {}
    for reading in told:
        for cause in dict.fromkeys(each.cause for each in reading.prompt):
            fault = next(each for each in reading.prompt if each.cause == cause)
            found.setdefault(cause, []).append((reading, fault))
    for cause, shown in found.items():
        reading, fault = shown[0]
        if cause == "other_template" and unfit(reference):
            continue  # the server's loses nothing, and is better than the model's own
        own = not any(each.differs for _, each in shown)
        template = cause in TEMPLATE_CAUSES
        yield Finding(
            "template" if template else "prompt",
            cause,
            fault.says + (" (the model's own template does this)" if own and template else ""),
            _template_fix(reference, own) if template else _prompt_fix(reference, cause),
            len(shown),
            len(told),
            reading.exchange.case.id,
            fault.at,
            fault.served_ids,
            fault.served[:EXCERPT],
            fault.ours[:EXCERPT],
        )


def template_findings(reference: Reference, seen: Sequence[Finding]) -> Iterator[Finding]:
    """Critical faults of the model's own template that no conversation has shown."""
    causes = {finding.cause for finding in seen}
    for check in reference.checks:
        if check.ok or CRITICAL_CHECKS.get(check.name, "") in {"", *causes}:
            continue
        yield Finding(
            "template",
            CRITICAL_CHECKS[check.name],
            f"the model's own template fails the check {check.name}",
            _template_fix(reference, True),
            at=check.at,
            evidence=check.detail[:EXCERPT],
        )


def _template_fix(reference: Reference, own: bool) -> str:
    if own or unfit(reference):
        return (
            f"smollora repair {reference.source} --out repaired; then start the server with"
            " --chat-template repaired/chat_template.jinja"
        )
    return f"start the server with --chat-template {reference.template_file}"


def unfit(reference: Reference) -> bool:
    """True if the model's own template loses what calling needs: no yardstick for a server's."""
    return any(not c.ok and c.name in CRITICAL_CHECKS for c in reference.checks)


def _prompt_fix(reference: Reference, cause: str) -> str:
    if cause == "other_tokens":
        return f"start the server with --tokenizer {reference.folder}"
    if cause == "added_tokens":
        return "send add_special_tokens: false, or take the token out of one of the two places"
    return "raise --max-model-len, or send no truncate_prompt_tokens"
