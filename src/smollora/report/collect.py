"""Reads a run folder for its report: every stage's files in, one `ReportData` out.

Only files are read: nothing is loaded, measured or repaired, and numbers are passed on as the
stages wrote them. The surprise: a bad stage never raises. A stage without a summary is None ("not
run"), a missing key is None ("not recorded"), and a file, line or value that cannot be used becomes
a `Problem`, which the page prints; a report is wanted most when something went wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from smollora.errors import DataError
from smollora.report.contents import (
    MODELS,
    STAGES,
    Delimiter,
    Gate,
    Inspect,
    Merge,
    MixSource,
    Prepare,
    Probe,
    Problem,
    Rate,
    Rates,
    ReportData,
    Suites,
    Train,
    Verify,
)
from smollora.report.fields import Fields, built, json_object, rows_of, text_file
from smollora.report.lines import curve_point, record, token_row, with_logprobs
from smollora.report.steps import read_steps
from smollora.runs import SCHEMA_VERSION
from smollora.types import Check


def collect(run_folder: Path) -> ReportData:
    """Read what a run left.

    Raises:
        DataError: there is no such folder.
    """
    if not run_folder.is_dir():
        raise DataError(f"{run_folder} is not a run folder", "name a folder under runs/")
    found: list[Problem] = []
    summaries = {stage: _summary(run_folder, stage, found) for stage in _stages(run_folder)}

    def of(stage: str) -> Fields | None:
        return summaries.get(stage)

    def rows(file: str) -> Iterator[Fields]:
        return rows_of(run_folder, file, found)

    recipe, manifest = run_folder / "recipe.yaml", run_folder / "manifest.json"
    inspect, prepare, verify, mix = of("inspect"), of("prepare"), of("verify"), of("mix")
    train, merge, probe, evaluated = of("train"), of("merge"), of("probe"), of("eval")
    preview = tuple(built(token_row, rows("mix/preview.jsonl")))
    if preview:
        preview = with_logprobs(preview, rows("probe/preview_logprobs.jsonl"))
    return ReportData(
        run=run_folder.resolve().name,
        inspect=_inspect(inspect) if inspect else None,
        prepare=_prepare(prepare) if prepare else None,
        verify=_verify(verify) if verify else None,
        mix=_mix(mix) if mix else None,
        preview=preview,
        train=_train(train) if train else None,
        curve=tuple(built(curve_point, rows("train/curve.jsonl"))),
        merge=_merge(merge) if merge else None,
        probe=_probe(probe) if probe else None,
        records=(
            *built(record, rows("probe/records.jsonl")),
            *built(record, rows("eval/records.jsonl")),
        ),
        suites=_suites(evaluated) if evaluated else None,
        recipe=text_file(recipe, found) if recipe.exists() else None,
        manifest=json_object(manifest, "manifest.json", found) if manifest.exists() else None,
        seconds={stage: each.number("seconds") for stage, each in summaries.items() if each},
        started=frozenset(stage for stage, each in summaries.items() if each is None),
        problems=tuple(found),
    )


def _stages(run_folder: Path) -> list[str]:
    """Stage folders that hold files, known ones first and in the order of the work."""
    there = {
        folder.name
        for folder in run_folder.iterdir()
        if folder.is_dir() and folder.name != "report" and not folder.name.startswith(".")
    }
    known = [stage for stage in STAGES if stage in there]
    others = sorted(there - set(STAGES))
    finished = [name for name in others if (run_folder / name / "summary.json").exists()]
    return [stage for stage in known + finished if any((run_folder / stage).iterdir())]


def _summary(run_folder: Path, stage: str, found: list[Problem]) -> Fields | None:
    path, place = run_folder / stage / "summary.json", f"{stage}/summary.json"
    if not path.exists():
        return None
    values = json_object(path, place, found)
    if values is None:
        return None
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        detail = f"schema_version is {version!r}, this report reads {SCHEMA_VERSION}"
        found.append(Problem(place, detail))
    return Fields(values, place, found)


def _inspect(summary: Fields) -> Inspect:
    template = summary.inner("template")
    return Inspect(
        model=summary.text("model"),
        format=summary.text("format"),
        open=_delimiter(summary, "open"),
        close=_delimiter(summary, "close"),
        stop_ids=summary.integers("stop_ids"),
        template_sha256=template.text("sha256"),
        checks=_checks(template, "checks"),
        repaired=template.flag("repaired"),
        repaired_checks=_checks(template, "repaired_checks"),
        architecture=summary.mapping("architecture"),
    )


def _delimiter(summary: Fields, key: str) -> Delimiter | None:
    """None for formats without this delimiter."""
    if summary.values.get(key) is None:
        return None
    read = summary.inner(key)
    return Delimiter(read.text("text"), read.count("id"), read.flag("special"), read.flag("single"))


def _checks(template: Fields, key: str) -> tuple[Check, ...]:
    return tuple(
        Check(each.text("name"), each.flag("ok") is True, each.text("detail"))
        for each in template.objects(key)
    )


def _prepare(summary: Fields) -> Prepare:
    return Prepare(
        rows_in=summary.count("rows_in"),
        rows_kept=summary.count("rows_kept"),
        rejected={reason: int(number) for reason, number in summary.numbers("rejected").items()},
        tokens=summary.count("tokens"),
        labelled_tokens=summary.count("labelled_tokens"),
        rows_per_second=summary.number("rows_per_second"),
    )


def _verify(summary: Fields) -> Verify:
    return Verify(
        rows=summary.count("rows"),
        rows_with_calls=summary.count("rows_with_calls"),
        rows_proved=summary.count("rows_proved"),
        failures=tuple(
            {key: each.text(key) for key in ("conversation_id", "check", "detail")}
            for each in summary.objects("failures")
        ),
    )


def _mix(summary: Fields) -> tuple[MixSource, ...]:
    """Sources under "sources", as an object or a list, or side by side at the top."""
    sources = summary.values.get("sources")
    if isinstance(sources, list):
        listed = [
            (each.text("source") or each.text("name"), each) for each in summary.objects("sources")
        ]
    else:
        around = summary if sources is None else summary.inner("sources")
        listed = [
            (name, around.inner(name))
            for name, value in around.values.items()
            if isinstance(value, Mapping) and "rows" in value
        ]
    return tuple(
        MixSource(
            name=name,
            rows=each.count("rows"),
            labelled_tokens=each.count("labelled_tokens"),
            share_rows=each.number("share_rows"),
            share_labelled_tokens=each.number("share_labelled_tokens"),
        )
        for name, each in listed
    )


def _train(summary: Fields) -> Train:
    return Train(
        steps=summary.count("steps"),
        tokens=summary.count("tokens"),
        labelled_tokens=summary.count("labelled_tokens"),
        tokens_per_second=summary.number("tokens_per_second"),
        peak_memory_bytes=summary.count("peak_memory_bytes"),
        loss_first=summary.number("loss_first"),
        loss_last=summary.number("loss_last"),
        validation_loss=summary.number("validation_loss"),
        loss_by_part=summary.numbers("loss_by_part"),
    )


def _merge(summary: Fields) -> Merge:
    rounded = summary.inner("training_base")
    return Merge(
        max_logit_difference_in_memory=summary.number("max_logit_difference_in_memory"),
        max_logit_difference_reloaded=summary.number("max_logit_difference_reloaded"),
        top1_agreement=summary.number("top1_agreement"),
        mean_kl=summary.number("mean_kl"),
        tied_before=summary.flag("tied_before"),
        tied_after=summary.flag("tied_after"),
        trained_beside=rounded.text("base_weights"),
        from_training_top1=rounded.number("top1_agreement"),
        from_training_kl=rounded.number("mean_kl"),
        open_bias=summary.number("open_bias"),
    )


def _probe(summary: Fields) -> Probe:
    by_category = summary.inner("by_category")
    gate = summary.inner("gate")
    return Probe(
        models={model: _rates(summary, model) for model in MODELS if summary.values.get(model)},
        by_category={
            model: {category: _rates(inside, category) for category in inside.values}
            for model, inside in ((model, by_category.inner(model)) for model in by_category.values)
        },
        gates=tuple(_gate(name, gate.inner(name)) for name in gate.values),
        passed=summary.flag("passed"),
        reasons=tuple(str(reason) for reason in summary.items("reasons")),
        steps=read_steps(summary),
    )


def _gate(name: str, read: Fields) -> Gate:
    return Gate(
        rate=name,
        at_least=read.number("at_least"),
        at_most=read.number("at_most"),
        value=read.number("value"),
        ok=read.flag("ok") is True,
    )


def _rates(around: Fields, key: str) -> Rates:
    """The rates in an object; what in it is no rate (a count, a note) is passed over."""
    inside = around.inner(key)
    rates = {}
    for name, value in inside.values.items():
        if not (isinstance(value, Mapping) and "n" in value):
            continue
        read = inside.inner(name)
        rates[name] = Rate(
            k=read.count("k") or 0,
            n=read.count("n") or 0,
            rate=read.number("rate"),
            low=read.number("low"),
            high=read.number("high"),
        )
    return rates


def _suites(summary: Fields) -> Suites:
    suites = summary.inner("suites")
    read: dict[str, dict[str, dict[str, Rates]]] = {}
    for suite in suites.values:
        categories = suites.inner(suite)
        read[suite] = {}
        for category in categories.values:
            models = categories.inner(category)
            read[suite][category] = {model: _rates(models, model) for model in models.values}
    return read
