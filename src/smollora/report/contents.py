"""What a report holds: one frozen value per stage, as `collect` read it and `html` shows it.

Numbers are the stages' own. None means "not recorded" for a single value and "not run" for a stage;
a rate over no cases stays None all the way to the page, which prints "no cases".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smollora.types import Check

if TYPE_CHECKING:
    from smollora.report.steps import Step

STAGES = ("inspect", "prepare", "verify", "mix", "train", "merge", "probe", "eval")
MODELS = ("base", "base_stock", "adapter", "merged", "served")
"""Columns of every before/after table, in this order; models that were not asked are left out."""
RATES = (
    "emission",
    "opens_first",
    "valid_json",
    "schema_valid",
    "right_tool",
    "right_call",
    "stops_after_call",
    "false_call",
    "spelled_out",
)
RIGHT = "right"
"""The verdict on a right answer; every other slug names a failure."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the run folder that could not be used."""

    file: str
    """Relative to the run folder."""
    detail: str


@dataclass(frozen=True, slots=True)
class Rate:
    """k of n cases, with the Wilson 95% interval that the stage computed."""

    k: int
    n: int
    rate: float | None
    """Share between 0 and 1; None over no cases."""
    low: float | None = None
    high: float | None = None

    @property
    def has_cases(self) -> bool:
        return self.n > 0 and self.rate is not None


Rates = Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class Delimiter:
    """The opening or closing token of a call."""

    text: str
    id: int | None
    special: bool | None
    single: bool | None


@dataclass(frozen=True, slots=True)
class Inspect:
    """What this tokenizer and template do with tool calls."""

    model: str
    format: str
    open: Delimiter | None
    close: Delimiter | None
    stop_ids: tuple[int, ...]
    template_sha256: str
    checks: tuple[Check, ...]
    """On the template as it came."""
    repaired: bool | None
    repaired_checks: tuple[Check, ...]
    """On the repaired template; empty where nothing was repaired."""
    architecture: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepare:
    """What became of the data rows."""

    rows_in: int | None
    rows_kept: int | None
    rejected: Mapping[str, int]
    tokens: int | None
    labelled_tokens: int | None
    rows_per_second: float | None


@dataclass(frozen=True, slots=True)
class Verify:
    """Whether the labels are where they must be."""

    rows: int | None
    rows_with_calls: int | None
    rows_proved: int | None
    failures: tuple[Mapping[str, str], ...]
    """Each {conversation_id, check, detail}."""


@dataclass(frozen=True, slots=True)
class MixSource:
    """One source's part of the training mix."""

    name: str
    rows: int | None
    labelled_tokens: int | None
    share_rows: float | None
    share_labelled_tokens: float | None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A training row as the model sees it: columns of equal length."""

    conversation_id: str
    source: str
    kind: str
    """call, no_call or no_tools."""
    roles: tuple[str, ...]
    """The role of each message."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    owner: tuple[int, ...]
    """Index of the message; -1 = the template's own tokens."""
    trained: tuple[bool, ...]
    part: tuple[str | None, ...]
    logprobs: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """For each model that scored the row, a value a token in nats; None for unlabelled tokens."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The losses at one logged training step."""

    step: int
    loss: float | None
    """None where none was written, or where it was not a finite number."""
    lr: float | None
    validation_loss: float | None
    loss_by_part: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Train:
    """What the training run cost and reached."""

    steps: int | None
    tokens: int | None
    labelled_tokens: int | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    loss_first: float | None
    loss_last: float | None
    validation_loss: float | None
    loss_by_part: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Merge:
    """The evidence that the merged model is the adapter."""

    max_logit_difference_in_memory: float | None
    max_logit_difference_reloaded: float | None
    top1_agreement: float | None
    mean_kl: float | None
    tied_before: bool | None
    tied_after: bool | None
    trained_beside: str = ""
    """Weights of the base while the adapter was trained, where they were rounded: "4bit"."""
    from_training_top1: float | None = None
    """Agreement of the best token of the model as it was trained with the merged one."""
    from_training_kl: float | None = None
    open_bias: float | None = None
    """Nats by which the merged model's opening token is likelier than the adapter's."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One rate that the run promised to reach."""

    rate: str
    at_least: float | None
    at_most: float | None
    value: float | None
    """None over no cases."""
    ok: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """What each model emitted, counted."""

    models: Mapping[str, Rates]
    by_category: Mapping[str, Mapping[str, Rates]]
    """Model, category, rate."""
    gates: tuple[Gate, ...]
    passed: bool | None
    reasons: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    """Between neighbouring columns."""

    @property
    def before(self) -> str | None:
        return _first(("base", "base_stock"), self.models)

    @property
    def after(self) -> str | None:
        return _first(("merged", "adapter", "served"), self.models)


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of one model, raw beside judged."""

    source: str
    """Who asked: "probe", or the suite of an evaluation."""
    model: str
    case_id: str
    category: str
    request: str
    """The user's last message."""
    tools: tuple[str, ...]
    expected: tuple[Mapping[str, Any], ...]
    """Each {name, arguments}; empty: the right answer is to call nothing."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    finish: str
    opener_logprob: float | None
    verdict: str
    detail: str
    flags: Mapping[str, bool]

    @property
    def is_right(self) -> bool:
        return self.verdict == RIGHT


Suites = Mapping[str, Mapping[str, Mapping[str, Rates]]]
"""Suite, category, model, rate."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that the page shows; a stage that left no summary is None."""

    run: str
    inspect: Inspect | None = None
    prepare: Prepare | None = None
    verify: Verify | None = None
    mix: tuple[MixSource, ...] | None = None
    preview: tuple[TokenRow, ...] = ()
    train: Train | None = None
    curve: tuple[CurvePoint, ...] = ()
    merge: Merge | None = None
    probe: Probe | None = None
    records: tuple[Record, ...] = ()
    suites: Suites | None = None
    recipe: str | None = None
    manifest: Mapping[str, Any] | None = None
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    """Per finished stage, in the order of the work."""
    started: frozenset[str] = frozenset()
    """Stages that left files and no summary."""
    problems: tuple[Problem, ...] = ()

    def sections(self) -> dict[str, str]:
        """What each section of the page says: "shown", "not run", or "started, not finished"."""
        there = {
            "verdict": ("probe", self.probe is not None),
            "rates": ("probe", self.probe is not None),
            "suites": ("eval", self.suites is not None),
            "template": ("inspect", self.inspect is not None),
            "prepare": ("prepare", self.prepare is not None),
            "verify": ("verify", self.verify is not None),
            "mix": ("mix", self.mix is not None),
            "training": ("train", self.train is not None or bool(self.curve)),
            "merge": ("merge", self.merge is not None),
            "tokens": ("mix", bool(self.preview)),
            "examples": ("probe", bool(self.records)),
            "recipe": ("", self.recipe is not None),
            "manifest": ("", self.manifest is not None),
        }
        return {
            section: "shown" if is_there else self.absence(stage)
            for section, (stage, is_there) in there.items()
        }

    def absence(self, stage: str) -> str:
        """Why a stage has nothing to show."""
        return "started, not finished" if stage in self.started else "not run"


def _first(names: Sequence[str], there: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in there), None)
