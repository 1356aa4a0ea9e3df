"""Which stages of a run are done again, which are kept, and what they leave.

Whole runs of a model of two layers; `tiny_runs` builds everything.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from smollora import pipeline
from smollora.config import Recipe, dump_recipe, load_recipe
from smollora.errors import ConfigError
from smollora.pipeline import READS, STAGES, run_stages, stage_keys
from smollora.stages import Run
from tiny_runs import (
    CASES,
    DELIMITERS,
    changed,
    general_row,
    smollora,
    tiny_recipe,
    write_model,
    write_recipe,
    write_rows,
)

ALL = list(STAGES)
STAGES_AS_THEY_ARE = dict(STAGES)


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Place:
    """A folder with a model, its data, a recipe and, once asked, a run."""

    folder: Path

    @property
    def values(self) -> dict[str, Any]:
        return tiny_recipe(self.folder, self.folder / "model")

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    def go(self, verb: str = "run", *flags: str, **settings: Any) -> tuple[list[str], list[str]]:
        """(stages that ran, stages that were skipped) by that command."""
        path = self.folder / "recipe.yaml"
        if not path.is_file():
            write_recipe(path, self.values)
        if settings:
            write_recipe(path, changed(self.values, **settings))
        said = smollora(verb, path, "--runs", self.folder / "runs", *flags)
        assert said.code == 0, said.err
        skipped = re.findall(r"^(\w+) +unchanged, skipped", said.out, re.MULTILINE)
        return re.findall(r"^(\w+) +[\d.]+ s  ", said.out, re.MULTILINE), skipped

    def summary(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / stage / "summary.json").read_text())
        return found

    def resolved(self) -> Recipe:
        return load_recipe(self.folder / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A whole run; tests that change anything take `place`."""
    place = Place(tmp_path_factory.mktemp("finished"))
    write_model(place.folder / "model")
    assert place.go() == (ALL, [])
    return place


@pytest.fixture
def place(finished: Place) -> Iterator[Place]:
    """The finished run at the same path, put back as it was afterwards."""
    kept = finished.folder.with_name(finished.folder.name + "-kept")
    shutil.copytree(finished.folder, kept, symlinks=True)
    yield finished
    shutil.rmtree(finished.folder)
    kept.rename(finished.folder)


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., Place]:
    """A new place whose model is made with the given options."""

    def made(**options: Any) -> Place:
        write_model(tmp_path / "model", **options)
        return Place(tmp_path)

    return made


def later(stage: str) -> list[str]:
    """That stage and those after it."""
    return ALL[ALL.index(stage) :]


def times(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {
        str(path.relative_to(folder)): path.lstat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


# ── what a run leaves ─────────────────────────────────────────────────────────────────────────

CONTRACT = {
    "inspect": "model format open close stop_ids template architecture",
    "prepare": "rows_in rows_kept rejected tokens labelled_tokens",
    "verify": "rows rows_with_calls rows_proved failures",
    "mix": "tools general",
    "train": (
        "steps tokens labelled_tokens tokens_per_second peak_memory_bytes loss_first loss_last"
        " validation_loss loss_by_part"
    ),
    "merge": (
        "max_logit_difference_in_memory max_logit_difference_reloaded top1_agreement mean_kl"
        " tied_before tied_after"
    ),
    "probe": "base merged passed reasons",
}
"""Keys that reports and users rely on (docs/design.md, "Files of a run")."""


@pytest.mark.parametrize(("stage", "keys"), CONTRACT.items(), ids=CONTRACT)
def test_a_summary_holds_the_keys_of_the_contract(finished: Place, stage: str, keys: str) -> None:
    summary = finished.summary(stage)
    assert {"schema_version", "stage", "seconds", *keys.split()} <= set(summary)
    assert summary["stage"] == stage


def test_rates_hold_count_total_and_interval(finished: Place) -> None:
    for model in ("base", "merged"):
        rates = finished.summary("probe")[model]
        for name in ("emission", "valid_json", "schema_valid", "right_tool", "stops_after_call"):
            assert set(rates[name]) == {"k", "n", "rate", "low", "high"}
        assert rates["emission"]["n"] == 1
        assert rates["false_call"]["n"] == 2


def test_the_run_folder_holds_recipe_manifest_report_and_model(finished: Place) -> None:
    assert load_recipe(finished.run / "recipe.yaml") == finished.resolved()
    manifest = json.loads((finished.run / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__
    assert set(manifest["stages"]) == set(ALL)
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    assert (manifest["git_revision"] or "").removesuffix("-dirty") == head.stdout.strip()
    page = (finished.run / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().startswith("<!doctype html>")
    model = {path.name for path in (finished.run / "merge" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= model


def test_the_merged_model_answers_under_the_template_it_was_trained_with(finished: Place) -> None:
    merged, base = finished.run / "merge" / "model", finished.run / "base"
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()


def test_no_temporary_file_is_left(finished: Place) -> None:
    hidden = {path.name for path in finished.run.rglob(".*")}
    assert hidden == {".done", ".lock"}


def test_two_runs_of_a_recipe_train_to_the_same_loss(finished: Place, tmp_path: Path) -> None:
    path = finished.folder / "recipe.yaml"
    assert smollora("train", path, "--runs", tmp_path).code == 0
    again = json.loads((tmp_path / "tiny" / "train" / "summary.json").read_text())
    first = finished.summary("train")
    for key in ("loss_first", "loss_last", "validation_loss", "loss_by_part"):
        assert again[key] == first[key]


# ── kinds of models and adapters ──────────────────────────────────────────────────────────────


def test_a_model_with_delimiters_is_linked_and_not_copied(fresh: Callable[..., Place]) -> None:
    place = fresh(tags=DELIMITERS)
    place.go()
    assert place.summary("inspect")["added_ids"] == []
    weights = place.run / "base" / "model.safetensors"
    assert weights.is_symlink()
    assert weights.resolve() == place.folder / "model" / "model.safetensors"
    assert place.summary("merge")["passed"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("embeddings", ["lora", "tool_tokens", "frozen"])
def test_every_kind_of_adapter_merges_into_the_model_that_was_trained(
    fresh: Callable[..., Place], embeddings: str, tied: bool
) -> None:
    place = fresh(tied=tied)
    place.go("merge", train__embeddings=embeddings, train__lr=1e-2)
    merged = place.summary("merge")
    assert merged["max_logit_difference_reloaded"] < 1e-4
    assert merged["tied_before"] is tied
    assert merged["tied_after"] is (tied and embeddings != "lora")


def test_training_goes_on_past_its_epochs_only_while_the_validation_loss_falls(
    fresh: Callable[..., Place],
) -> None:
    place = fresh()
    settings = {"train__max_epochs": 5, "train__lr": 1e-3, "prepare__validation_share": 0.3}
    place.go("train", **settings)
    losses = place.summary("train")["validation_losses"]
    assert 2 <= len(losses) <= 5
    falling = [after < before for before, after in pairwise(losses)]
    assert all(falling[:-1])
    assert len(losses) == 5 or not falling[-1]


# ── what is done again ────────────────────────────────────────────────────────────────────────


def test_a_second_run_skips_every_stage_and_touches_none_of_their_files(finished: Place) -> None:
    before = times(finished.run)
    assert finished.go() == ([], ALL)
    after = times(finished.run)
    rewritten = {name for name in before if before[name] != after[name]}
    assert rewritten <= {"recipe.yaml", "manifest.json"}
    assert set(before) == set(after)


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ({"model__trust_remote_code": True}, "inspect"),
        ({"prepare__max_length": 512}, "prepare"),
        ({"mix__seed": 8}, "prepare"),
        ({"train__lr": 3e-4}, "train"),
        ({"merge__positions": 100}, "merge"),
        ({"probe__max_new_tokens": 3}, "probe"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)).replace("__", "."),
)
def test_a_changed_setting_runs_the_stages_from_the_first_that_reads_it(
    place: Place, setting: dict[str, Any], first: str
) -> None:
    ran, skipped = place.go(**setting)
    assert ran == later(first)
    assert skipped == ALL[: ALL.index(first)]
    assert place.go() == ([], ALL), "and no more than once"


def test_an_override_counts_as_the_setting_it_changes(place: Place) -> None:
    assert place.go("run", "probe.max_new_tokens=3")[0] == later("probe")


def test_every_stage_declares_the_sections_that_it_reads(place: Place) -> None:
    """A stage that reads a section which is not in READS would not run again when it changes."""
    recipe = place.resolved()
    seen: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name in Recipe.model_fields:
                seen.add(name)
            return getattr(recipe, name)

    run = Run(Watched(), place.run, Console(quiet=True))  # type: ignore[arg-type]
    declared: set[str] = set()
    for name, stage in STAGES.items():
        seen.clear()
        declared |= set(READS[name])
        stage(run)
        assert seen <= declared, f"{name} reads {seen - declared}"


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def other_weights(folder: Path) -> None:
    """Weights of another training, the same size."""
    from safetensors.torch import load_file, save_file

    path = folder / "model" / "model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (other_weights, "inspect"),
    "config.json": (lambda folder: grow(folder / "model/config.json"), "inspect"),
    "generation_config.json": (lambda f: grow(f / "model/generation_config.json"), "inspect"),
    "tokenizer.json": (lambda folder: grow(folder / "model/tokenizer.json"), "inspect"),
    "tokenizer_config.json": (lambda f: grow(f / "model/tokenizer_config.json"), "inspect"),
    "chat_template.jinja": (lambda folder: grow(folder / "model/chat_template.jinja"), "inspect"),
    "a data file": (
        lambda folder: write_rows(folder / "general.jsonl", map(general_row, ("Oslo", "Pisa"))),
        "prepare",
    ),
    "the cases": (lambda folder: write_rows(folder / "cases.jsonl", CASES[:2]), "probe"),
}


@pytest.mark.parametrize(("change", "first"), CHANGES.values(), ids=CHANGES)
def test_a_changed_file_runs_the_stages_from_the_first_that_reads_it(
    place: Place, change: Callable[[Path], object], first: str
) -> None:
    recipe = place.folder / "recipe.yaml"
    change(place.folder)
    said = smollora("run", recipe, "--runs", place.folder / "runs")
    assert said.code == 0, said.err
    assert re.findall(r"^(\w+) +[\d.]+ s  ", said.out, re.MULTILINE) == later(first)


def test_a_template_of_ones_own_is_read_again_when_it_changes(place: Place) -> None:
    own = place.folder / "own.jinja"
    shutil.copyfile(place.run / "base" / "chat_template.jinja", own)
    assert place.go(model__template=str(own))[0] == ALL
    assert place.go(model__template=str(own))[0] == []
    own.write_text(own.read_text() + "{# changed #}")
    assert place.go(model__template=str(own))[0] == ALL


def test_another_version_of_smollora_runs_everything_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "__version__", "99.0")
    assert place.go() == (ALL, [])


@pytest.mark.parametrize("stage", ["prepare", "merge"])
def test_force_runs_that_stage_and_those_after_it(place: Place, stage: str) -> None:
    assert place.go("run", "--force", stage)[0] == later(stage)


def test_a_stage_alone_runs_what_it_needs_and_nothing_after_it(
    fresh: Callable[..., Place],
) -> None:
    place = fresh()
    assert place.go("verify") == (["inspect", "prepare", "verify"], [])
    assert place.go("verify") == (["verify"], ["inspect", "prepare"])


def test_what_follows_a_stage_that_wrote_something_else_alone_runs_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the merged model is one of the adapter of before."""

    def otherwise(run: Run) -> dict[str, Any]:
        values = STAGES_AS_THEY_ARE["train"](run)
        grow(run.folder / "train" / "adapter" / "adapter_config.json")
        return values

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "train", otherwise)
        assert place.go("train")[0] == ["train"]
    assert place.go() == (later("merge"), ALL[: ALL.index("merge")])


@pytest.mark.parametrize("stage", ["inspect", "prepare", "verify", "mix"])
def test_a_look_at_a_stage_that_writes_the_same_again_costs_no_training(
    place: Place, stage: str
) -> None:
    assert place.go(stage)[0] == [stage]
    assert place.go() == ([], ALL)


# ── killed runs ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_killed_before_its_marker_runs_again(place: Place, stage: str) -> None:
    (place.run / stage / ".done").unlink()
    assert place.go() == (later(stage), ALL[: ALL.index(stage)])


def test_a_marker_of_a_stage_that_starts_is_gone_before_it_works(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of its second time, a stage must not look finished from its first."""
    found: list[bool] = []

    def dies(run: Run) -> dict[str, Any]:
        found.append((run.folder / "mix" / ".done").exists())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "mix", dies)
        said = smollora("mix", place.folder / "recipe.yaml", "--runs", place.folder / "runs")
    assert (said.code, found) == (130, [False])
    assert place.go()[0] == later("mix")


@pytest.mark.parametrize("stage", ["inspect", "merge"])
def test_a_model_folder_is_never_seen_half_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Killed while it writes a model, a stage leaves the old folder or none, and no debris."""
    from transformers import PreTrainedTokenizerBase

    folder = place.run / ("base" if stage == "inspect" else "merge/model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "inspect":
            patch.setattr(PreTrainedTokenizerBase, "save_pretrained", killed)
        else:
            patch.setattr(shutil, "copyfile", killed)
        said = smollora(
            *("run", place.folder / "recipe.yaml", "--runs", place.folder / "runs"),
            *("--force", stage),
        )
    assert said.code == 130
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in place.run.rglob(".*")} <= {".done", ".lock"}
    assert place.go()[0] == later(stage)


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


def test_keys_depend_on_what_is_read_and_not_on_where_the_run_lies(place: Place) -> None:
    recipe = place.resolved()
    assert stage_keys(recipe) == stage_keys(load_recipe(place.run / "recipe.yaml"))
    renamed = Recipe.model_validate({**recipe.model_dump(), "name": "other"})
    assert stage_keys(renamed) == stage_keys(recipe)
    assert len(set(stage_keys(recipe).values())) == len(ALL)


def test_every_section_of_the_recipe_is_read_by_a_stage() -> None:
    assert {name for names in READS.values() for name in names} == set(Recipe.model_fields) - {
        "name"
    }
    assert set(READS) == set(STAGES)


def test_a_stage_that_does_not_exist_cannot_be_forced(place: Place) -> None:
    run = Run(place.resolved(), place.run, Console(quiet=True))
    with pytest.raises(ConfigError, match="traim"):
        run_stages(run, ALL, force=["traim"])


@pytest.mark.parametrize("verb", ["run", "merge"])
def test_a_second_smollora_in_a_run_folder_is_refused_and_changes_nothing(
    place: Place, verb: str
) -> None:
    """The other one's lock is taken here by the system's call itself."""
    before = times(place.run)
    recipe = place.folder / "recipe.yaml"
    with open(place.run / ".lock", "a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = smollora(verb, recipe, "--runs", place.run.parent, "merge.positions=100")
        assert said.code == 2
        assert said.err.count("error: ") == 1 and "another smollora is at work in" in said.err
        assert "--name" in said.err
        assert times(place.run) == before
    assert place.go() == ([], ALL), "a lock of a process that has ended is none"


def test_a_run_can_be_repeated_from_the_recipe_that_it_left(place: Place) -> None:
    left = place.run / "recipe.yaml"
    said = smollora("run", left, "--runs", place.folder / "runs")
    assert said.code == 0
    assert len(re.findall("unchanged, skipped", said.out)) == len(ALL)
    assert dump_recipe(load_recipe(left)) == left.read_text(encoding="utf-8")


def test_a_run_does_not_depend_on_the_folder_it_is_started_from(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place.go() == ([], ALL)
    assert os.listdir(tmp_path) == []
