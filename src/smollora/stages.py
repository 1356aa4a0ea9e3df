"""The stages of a run: what each reads, does and writes. `pipeline.py` decides which of them run.

Every stage is a function `(Run) -> summary values`; it reads the files of earlier stages and writes
its own under `Run.folder / STAGE`. Stages meet through files only, so any of them can be run alone
and again.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from smollora.config import PrepareSection, Recipe
from smollora.errors import (
    ConfigError,
    DataError,
    GateFailed,
    ModelError,
    TemplateError,
    VerifyError,
)
from smollora.formats import ToolFormat, get_format, tokens_of
from smollora.launch import is_first
from smollora.models import (
    equip,
    load_model,
    load_tokenizer,
    on_gpu,
    read_architecture,
    read_stop_ids,
    resolve_model,
)
from smollora.progress import meter
from smollora.render import Renderer
from smollora.runs import (
    code_version,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_whole,
)
from smollora.templates import audit as template_audit
from smollora.templates import repair as template_repair
from smollora.templates.audit import choose_template
from smollora.templates.engine import load_shipped
from smollora.templates.repair.own_words import set_value
from smollora.tokens import RESULT_TAGS, TokenFacts, read_token_facts
from smollora.types import Check, EvalCase

if TYPE_CHECKING:
    from smollora.data.mix import MixPlan
    from smollora.data.overlap import Overlap
    from smollora.data.prepared import PreparedSet
    from smollora.data.shards import RowTable
    from smollora.merge import Lean
    from smollora.train import StepReport

PREVIEW_ROWS = 39
SHOWS_CALLS = "chatml_tools"
"""The shipped template that can show tools as calls."""


@dataclass(frozen=True)
class Run:
    """One run: its recipe, its folder, where it talks."""

    recipe: Recipe
    folder: Path
    console: Console

    @property
    def base(self) -> Path:
        """The model that training starts from: equipped, with the repaired template."""
        return self.folder / "base"

    @property
    def merged(self) -> Path:
        """The model that a run is for."""
        return self.folder / "merge" / "model"

    @property
    def format(self) -> ToolFormat:
        """The tool-call format that is taught."""
        return get_format(self.recipe.model.format)

    def read(self, stage: str) -> dict[str, Any]:
        """The summary of an earlier stage."""
        summary: dict[str, Any] = read_json(self.folder / stage / "summary.json")
        return summary


def load_renderer(run: Run) -> Renderer:
    """The renderer of the base: training, probing and serving use the same template."""
    files = [(p.name, p.stat()) for p in sorted(run.base.glob("*")) if p.suffix != ".safetensors"]
    tokenizer = _tokenizer_of(
        run.base,
        run.recipe.model.trust_remote_code,
        tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in files),
    )
    template = choose_template(tokenizer.chat_template)
    if template is None:
        raise ModelError(f"{run.base} has no chat template", "run `smollora inspect` again")
    facts = read_token_facts(tokenizer, run.format, template, read_stop_ids(run.base))
    return Renderer(template, tokenizer, facts)


@lru_cache(maxsize=1)
def _tokenizer_of(base: Path, trust_remote_code: bool, files: tuple[object, ...]) -> Any:
    """Read once for six stages, as long as the files are the same: one of 128,000 tokens takes two
    seconds. Nobody changes it.
    """
    return load_tokenizer(base, trust_remote_code=trust_remote_code)


def _as_dicts(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]


# ── inspect ──────────────────────────────────────────────────────────────────────────────────────


def inspect(run: Run) -> dict[str, Any]:
    """What this model is, what its template loses; makes `base/`: delimiters and a template that
    loses nothing.
    """
    section = run.recipe.model
    source = resolve_model(section.source, sha256=section.sha256)
    tokenizer = load_tokenizer(source, trust_remote_code=section.trust_remote_code)
    stock = choose_template(tokenizer.chat_template)
    if stock is None and section.template == "auto":
        raise ModelError(
            f"{section.source} has no chat template",
            "give one: model.template=FILE.jinja or model.template=shipped:chatml_tools",
        )
    before = template_audit.audit(stock, tokenizer, fmt=run.format)
    found = read_token_facts(tokenizer, run.format, stock or "")
    if found.lacking and not section.equip:
        raise ModelError(
            f"{found.lacking[0].text} is {len(found.lacking[0].ids)} tokens in {section.source},"
            " not one",
            "set model.equip=true to add the delimiters as tokens",
        )
    run.base.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=run.folder, prefix=".base."))
    try:
        added: tuple[int, ...] = ()
        if not found.lacking:
            _link_weights(source, work)
        else:
            model = load_model(source, trust_remote_code=section.trust_remote_code)
            added = equip(model, tokenizer, (*tokens_of(run.format), *RESULT_TAGS))
            model.save_pretrained(work)
        template, repaired = _choose_template(run, stock, tokenizer, new_to_it=bool(added))
        after = template_audit.audit(template, tokenizer, fmt=run.format)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(work)
        if not (work / "chat_template.jinja").is_file():
            write_whole(work / "chat_template.jinja", template)
        work.chmod(0o755)
        shutil.rmtree(run.base, ignore_errors=True)
        work.rename(run.base)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_whole(run.folder / "inspect" / "stock_template.jinja", stock or "")
    facts = read_token_facts(tokenizer, run.format, template, read_stop_ids(run.base))
    return {
        "model": section.source,
        "format": facts.format,
        "open": _delimiter(facts, "open"),
        "close": _delimiter(facts, "close"),
        "stock_open_ids": list(found.open.ids),
        "stop_ids": list(facts.stop_ids),
        "pad_id": facts.pad_id,
        "added_ids": list(added),
        "template": {
            "sha256": facts.template_sha256,
            "checks": _as_dicts(before),
            "repaired": repaired,
            "repaired_checks": _as_dicts(after),
        },
        "architecture": read_architecture(run.base),
    }


def _delimiter(facts: TokenFacts, which: str) -> dict[str, Any]:
    delimiter = getattr(facts, which)
    return {
        "text": delimiter.text,
        "id": delimiter.id,
        "special": delimiter.special,
        "single": delimiter.single,
    }


def _choose_template(
    run: Run, stock: str | None, tokenizer: Any, *, new_to_it: bool
) -> tuple[str, bool]:
    """(template to train with, whether it differs from the stock one)."""
    section = run.recipe.model
    wanted, tools_as, shipped = section.template, section.tools_as, ""
    if wanted == "auto":
        result = template_repair.repair(stock or "", tokenizer, fmt=run.format)
        source, changed, shipped = result.source, bool(result.changes), result.shipped
    elif wanted.startswith("shipped:"):
        shipped = wanted.removeprefix("shipped:")
        source, changed = load_shipped(shipped), True
    else:
        source, changed = _read_template(wanted), True
    shows_calls = shipped == SHOWS_CALLS
    if tools_as == "auto":
        tools_as = "calls" if shows_calls and new_to_it and wanted == "auto" else "json"
    elif not shows_calls:
        raise TemplateError(
            f"model.tools_as={tools_as} wants the shipped template {SHOWS_CALLS}, and this run's is"
            f" {f'the shipped {shipped}' if shipped else 'another'}",
            f"set model.tools_as=auto, or model.template=shipped:{SHOWS_CALLS}",
        )
    if shows_calls:
        source = set_value(source, "tools_as_calls", tools_as == "calls")
    return source, changed


def _read_template(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise TemplateError(f"template file {path} is not there", "check model.template")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(
            f"template file {path} is not UTF-8: {error}", "save it as UTF-8"
        ) from error


def _link_weights(source: Path, folder: Path) -> None:
    """A model folder over `source`'s weights, without copying gigabytes."""
    files = [*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")]
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{source} holds no safetensors weights",
            "smollora reads no pickled weights; convert the model to safetensors",
        )
    for path in files:
        os.symlink(path.resolve(), folder / path.name)
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


# ── prepare, verify, mix ─────────────────────────────────────────────────────────────────────────


def prepare(run: Run) -> dict[str, Any]:
    """Sources -> shards of rendered rows; every row kept or counted as rejected."""
    renderer = load_renderer(run)
    section, folder = run.recipe.prepare, run.folder / "prepare"
    given: dict[str, Any] = {
        "seed": run.recipe.mix.seed,
        "code": code_version(),
        "overlap": load_overlap(section),
    }
    if section.engine == "in_process":
        from smollora.data.tasks import prepare_set

        with meter(run.console, "prepare", unit="rows") as shown:
            counts = prepare_set(section, renderer, folder, **given, on_rows=shown.to)
    else:
        prepare_on_engine = import_scale(section.engine).prepare_on_engine
        with meter(run.console, f"prepare on {section.engine}", unit="tasks") as shown:

            def on_tasks(done: int, tasks: int) -> None:
                shown.total(tasks)
                shown.to(done)

            counts = prepare_on_engine(section, renderer, folder, **given, on_tasks=on_tasks)
    rejected = counts.rejected or {}
    return {
        "rows_in": counts.rows_in,
        "rows_kept": counts.rows_in - sum(rejected.values()),
        "rows_rendered": counts.rows_rendered,
        "rows_built": counts.built,
        "built_left_out": counts.built_left_out,
        "rejected": rejected,
        "changed": counts.changed or {},
        "forms": counts.forms or {},
        "shortened": counts.shortened,
        "tokens": counts.tokens,
        "labelled_tokens": counts.labelled_tokens,
    }


def load_overlap(section: PrepareSection) -> Overlap | None:
    """What training rows must not hold; None if the recipe does not ask. `bfcl` downloads a wheel,
    once.

    Raises:
        ConfigError: an evaluation that is not known.
        DataError: one that cannot be read.
    """
    if section.overlap == "off" or not section.overlap_with:
        return None
    from smollora.data.overlap import Overlap

    cases = [case for name in section.overlap_with for case in _evaluation_cases(name)]
    return Overlap(cases, remove=section.overlap == "remove")


def _evaluation_cases(name: str) -> list[EvalCase]:
    from smollora.evaluate.cases import starter_cases
    from smollora.evaluate.suites import load_suite

    if name == "starter:heldout":
        return starter_cases()
    return [question.case for question in load_suite(name)]


def import_scale(engine: str) -> Any:
    """The module of datatrove pipelines.

    Raises:
        ConfigError: datatrove is not installed.
    """
    try:
        from smollora.data import scale
    except ImportError as error:
        raise ConfigError(
            f"prepare.engine={engine} needs datatrove ({error.name} is not installed)",
            "pip install 'smollora[scale]', or take prepare.engine=in_process",
        ) from error
    return scale


def open_rows(run: Run) -> PreparedSet:
    """The prepared set of the run."""
    from smollora.data.prepared import read_prepared

    return read_prepared(run.folder / "prepare" / "rows")


def verify(run: Run) -> dict[str, Any]:
    """Proof that the labelled region holds what must be learned; refuses to go on otherwise."""
    from smollora.verify import check_row

    renderer = load_renderer(run)
    rows = open_rows(run)
    failures: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()
    proved = calling = 0
    with meter(run.console, "verify", len(rows)) as shown:
        for number, row in enumerate(rows, 1):
            checks = check_row(
                row.rendered, row.calls, renderer.facts, run.format, renderer.tokenizer
            )
            bad = [check for check in checks if not check.ok]
            notes.update({c.detail for c in checks if c.name == "served" and c.ok and c.detail})
            calling += row.kind == "call"
            proved += row.kind == "call" and not bad
            failures.extend(
                {
                    "conversation_id": row.rendered.conversation_id,
                    "check": check.name,
                    "detail": check.detail,
                    "at": check.at,
                }
                for check in bad
            )
            if number % 256 == 0:
                shown.to(number)
    values = {
        "rows": len(rows),
        "rows_with_calls": calling,
        "rows_proved": proved,
        "failures": failures[:200],
        "failures_in_all": len(failures),
        "notes": dict(notes.most_common()),
    }
    for note, count in notes.most_common():
        run.console.print(f"  note on {count} rows: {note}", markup=False, highlight=False)
    if failures:
        write_json(run.folder / "verify" / "summary.json", {"stage": "verify", **values})
        first = failures[0]
        where = f" (first bad token at position {first['at']})" if first["at"] is not None else ""
        raise VerifyError(
            f"{len(failures)} checks failed; training would teach the wrong tokens\n"
            f"  row {first['conversation_id']}: {first['check']}: {first['detail']}{where}",
            "`smollora inspect` shows what the template loses; model.template=auto repairs it",
        )
    return values


def plan_rows(run: Run, table: RowTable) -> tuple[MixPlan, list[str]]:
    """The mix of the prepared rows, and the same as lines to read; nothing is written."""
    from smollora.data.mix import plan_mix, show_plan

    section, held = run.recipe.mix, run.recipe.prepare.validation_share
    plan = plan_mix(table, section, validation_share=held)
    return plan, show_plan(plan, section)


def mix(run: Run) -> dict[str, Any]:
    """Which rows are trained, and what the shares come to; the plan is printed first."""
    from smollora.data.mix import shares

    rows = open_rows(run)
    table = rows.table
    plan, lines = plan_rows(run, table)
    for line in lines:
        run.console.print(line, highlight=False, markup=False, soft_wrap=True)
    folder = run.folder / "mix"
    write_json(folder / "rows.json", {"train": plan.train, "validation": plan.validation})
    write_jsonl(folder / "preview.jsonl", _preview(run, rows, plan.train))
    return {
        **shares(table, plan.train),
        "rows": len(plan.train),
        "validation_rows": len(plan.validation),
        "rows_left_out": len(rows) - len(plan.train) - len(plan.validation),
        "strata": [asdict(line) for line in plan.strata],
    }


def _preview(run: Run, rows: PreparedSet, train: Sequence[int]) -> list[dict[str, Any]]:
    from smollora.data.parts import parts_of

    renderer = load_renderer(run)
    tokenizer = renderer.tokenizer
    chosen: list[int] = []
    for kind in ("call", "no_call", "no_tools"):
        of_kind = [index for index in train if rows.table.kind[index] == kind]
        random.Random(0).shuffle(of_kind)
        chosen.extend(of_kind[: PREVIEW_ROWS // 3])
    found = dict(rows.take(chosen))
    return [
        {
            "conversation_id": row.rendered.conversation_id,
            "source": row.source,
            "kind": row.kind,
            "token_ids": list(row.rendered.token_ids),
            "tokens": [tokenizer.decode([token]) for token in row.rendered.token_ids],
            "owner": list(row.rendered.owner),
            "trained": list(row.rendered.trained),
            "part": list(parts_of(row.rendered, renderer.facts, tokenizer)),
            "roles": list(row.roles),
        }
        for row in (found[index] for index in chosen)
    ]


# ── train, merge ─────────────────────────────────────────────────────────────────────────────────


def check_machine(run: Run) -> None:
    """Find before the long stages what training would refuse after them.

    Raises:
        ConfigError: a GPU is asked for and absent, a tracker is not installed, or a 4-bit base does
            not go here.
    """
    section = run.recipe.train
    four_bit = section.base_weights == "4bit"
    if not section.report_to and section.device != "cuda" and not four_bit:
        return  # without importing torch
    from smollora.train.four_bit import check_four_bit
    from smollora.train.hardware import choose_device
    from smollora.train.reporting import check_trackers

    check_trackers(section.report_to)
    device = choose_device(section.device)
    if four_bit:
        check_four_bit(device)


def train(run: Run) -> dict[str, Any]:
    """LoRA on the mixed rows; goes on where a training was cut off."""
    from smollora.data.parts import training_row
    from smollora.merge import carry
    from smollora.train import Ends, train_adapter
    from smollora.train.four_bit import base_weights_summary, describe_saving, load_for_training
    from smollora.train.hardware import choose_device, compute_dtype
    from smollora.train.line import describe_step

    renderer = load_renderer(run)
    prepared = open_rows(run)
    chosen = read_json(run.folder / "mix" / "rows.json")
    settings = run.recipe.train

    def rows_of(name: str) -> list[Any]:
        made = {
            index: training_row(
                row.rendered,
                renderer.facts,
                renderer.tokenizer,
                settings.weights,
                has_tools=row.kind != "no_tools",
            ).compact()
            for index, row in prepared.take(chosen[name])
        }
        return [made[index] for index in chosen[name]]

    facts = renderer.facts
    rows_ids = [renderer.tokenizer.convert_tokens_to_ids(text) for text in RESULT_TAGS]
    added = run.read("inspect")["added_ids"]
    token_ids = added or [i for i in (*facts.ids, *rows_ids) if i is not None]
    device = choose_device(settings.device)
    dtype = compute_dtype(settings.dtype, device)
    model = load_for_training(
        run.base,
        settings,
        device=device,
        dtype=dtype,
        trust_remote_code=run.recipe.model.trust_remote_code,
    )
    if said := describe_saving(base_weights_summary(model, dtype)):
        run.console.print(f"  {said}", markup=False, highlight=False)
    folder = run.folder / "train"
    folder.mkdir(parents=True, exist_ok=True)
    with meter(run.console, "train", unit="steps") as shown:

        def on_step(report: StepReport) -> None:
            shown.total(report.steps)
            shown.start_from(report.resumed_at)
            shown.to(report.step, describe_step(report))

        made = train_adapter(
            model,
            rows_of("train"),
            rows_of("validation"),
            settings,
            token_ids=token_ids,
            pad_id=facts.padding_id,
            out=folder / "adapter",
            base=run.base,
            ends=Ends(facts.open.id, facts.stop_ids, facts.padding_id),
            on_step=on_step,
        )
    if is_first():
        carry(run.base, folder / "adapter", facts.stop_ids)
        write_jsonl(folder / "curve.jsonl", made.curve)
    return made.summary


def merge(run: Run) -> dict[str, Any]:
    """Adapter + base -> model, proved to be the same model."""
    from smollora.merge import apply_merge, plan_merge

    section = run.recipe.merge
    (run.folder / "merge").mkdir(parents=True, exist_ok=True)
    plan = plan_merge(run.base, run.folder / "train" / "adapter", run.merged, section.dtype)
    facts = load_renderer(run).facts
    prepared = open_rows(run)
    held = read_json(run.folder / "mix" / "rows.json")["validation"] or range(len(prepared))
    length = prepared.table.length
    short: list[int] = []
    for index in sorted(held, key=lambda index: length[index]):
        if sum(length[i] for i in short) >= 2 * section.positions:  # many begin alike
            break
        short.append(index)
    found = dict(prepared.take(short))
    rows = [found[index].rendered.token_ids for index in short]
    lean = _lean(section.open_bias, facts.open.id, prepared, held) if section.open_bias else None
    steps = 5 if plan.base_weights == "full" else 6
    with meter(run.console, "merge and prove", steps, "steps") as shown:
        count = iter(range(1, steps + 1))
        values = apply_merge(
            plan,
            rows,
            section,
            stop_ids=facts.stop_ids,
            lean=lean,
            on_step=lambda text: shown.to(next(count), text),
        )
    return values


MOST_BEGINNINGS = 16
"""Held-out rows over which merge.open_bias is measured."""


def _lean(nats: float, opener_id: int | None, rows: PreparedSet, held: Sequence[int]) -> Lean:
    """What `merge.open_bias` asks for, with the first held-out rows that have tools, each up to
    where its first answer begins.

    Raises:
        ConfigError: calls do not open with one token.
    """
    from smollora.merge import Lean

    if opener_id is None:
        raise ConfigError(
            "merge.open_bias: calls of this format do not open with one token", "leave it at 0"
        )
    asked = sorted(index for index in held if rows.table.kind[index] != "no_tools")
    chosen = [row.rendered for _, row in rows.take(asked[:MOST_BEGINNINGS])]
    return Lean(opener_id, nats, [row.token_ids[: row.trained.index(True)] for row in chosen])


# ── probe, report ────────────────────────────────────────────────────────────────────────────────


def load_cases(run: Run) -> list[EvalCase]:
    """The cases of the recipe's probe section."""
    from smollora.evaluate.cases import limit_per_category, read_cases, starter_cases

    section = run.recipe.probe
    if section.cases == "starter:heldout":
        return limit_per_category(starter_cases(), section.limit)
    path = Path(section.cases).expanduser()
    if not path.is_file():
        raise DataError(f"the file of cases {path} is not there", "check probe.cases")
    return limit_per_category(read_cases(path), section.limit)


def probe(run: Run) -> dict[str, Any]:
    """The same questions to base and merged model, answered in token ids."""
    from smollora.generate import local_generator
    from smollora.probe import (
        ask,
        by_category,
        by_language,
        by_system,
        judge,
        reasons,
        summarise,
    )

    section = run.recipe.probe
    renderer = load_renderer(run)
    facts = renderer.facts
    cases = load_cases(run)
    if not cases:
        raise DataError("the probe has no cases", "check probe.cases")
    stock = (run.folder / "inspect" / "stock_template.jinja").read_text(encoding="utf-8")
    stock_cases = [c for c in cases if c.category == "single"][: section.stock_prompt_cases]
    plan: list[tuple[str, Path, Renderer, list[EvalCase], int]] = [
        ("base", run.base, renderer, cases, section.base_max_new_tokens),
        ("merged", run.merged, renderer, cases, section.max_new_tokens),
    ]
    values: dict[str, Any] = {
        **{key: {} for key in ("by_category", "by_language", "by_system")},
        "cases": len(cases),
    }
    if stock and stock_cases:
        try:
            under_stock = Renderer(stock, renderer.tokenizer, facts)
            for case in stock_cases:
                under_stock.prompt_text(case.messages, case.tools)
            plan.insert(
                1, ("base_stock", run.base, under_stock, stock_cases, section.base_max_new_tokens)
            )
        except TemplateError as error:
            values["stock_template_refuses"] = error.message
    records: list[dict[str, Any]] = []
    preview: list[dict[str, Any]] = []
    loaded: tuple[Path, Any] | None = None
    for name, folder, used, asked_cases, limit in plan:
        if loaded is None or loaded[0] != folder:
            loaded = None
            loaded = (folder, on_gpu(load_model(folder)))
        generator = local_generator(loaded[1], facts, section.batch_tokens)
        with meter(run.console, f"probe {name}", len(asked_cases), "prompts") as shown:
            asked = ask(
                name,
                asked_cases,
                generator,
                used,
                run.format,
                max_new_tokens=limit,
                on_done=shown.to,
            )
        records.extend(item.record for item in asked)
        values[name] = summarise(asked)
        values["by_category"][name] = by_category(asked)
        values["by_language"][name] = by_language(asked)
        values["by_system"][name] = by_system(asked)
        if name in ("base", "merged"):
            preview.extend(_preview_logprobs(run, name, loaded[1]))
    values["gate"] = judge(values["merged"], section.gate)
    values["reasons"] = reasons(values["gate"])
    values["passed"] = not values["reasons"]
    write_jsonl(run.folder / "probe" / "records.jsonl", records)
    write_jsonl(run.folder / "probe" / "preview_logprobs.jsonl", preview)
    return values


def _preview_logprobs(run: Run, name: str, model: Any) -> list[dict[str, Any]]:
    """What the model makes of the training rows that the report shows, token by token."""
    from smollora.likelihood import score_rows

    rows = read_jsonl(run.folder / "mix" / "preview.jsonl")
    with meter(run.console, f"preview {name}", len(rows), "rows") as shown:
        return list(score_rows(model, name, rows, on_done=shown.to))


def report(run: Run) -> dict[str, Any]:
    """One self-contained page from the files of the run."""
    from smollora.report import write_report

    path = write_report(run.folder)
    return {"path": path.name, "bytes": path.stat().st_size}


def raise_if_short(run: Run, stages: Sequence[str]) -> None:
    """Raise what the finished ones among `stages` say fell short.

    Raises:
        GateFailed: the merge proof or the probe's gate did not hold.
    """
    short = []
    if "merge" in stages and (run.folder / "merge" / "summary.json").is_file():
        merged = run.read("merge")
        if not merged["passed"]:
            short.append(
                f"merge: logits differ by {merged['max_logit_difference_reloaded']:.2g},"
                f" top-1 agreement {merged['top1_agreement']:.2%}, KL {merged['mean_kl']:.2g}"
            )
    if "probe" in stages and (run.folder / "probe" / "summary.json").is_file():
        short.extend(run.read("probe")["reasons"])
    if short:
        raise GateFailed(
            "; ".join(short), f"the report shows every case: {run.folder / 'report.html'}"
        )
