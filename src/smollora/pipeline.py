"""Which stages of a run are done, which must run, and running them in order.

A stage is skipped when its `.done` marker holds the key that its inputs hash to now: the recipe
sections it reads, the files it reads, the key of the stage before it, the version of smollora.
Stages write atomically and are marked last, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from smollora import __version__, launch, stages
from smollora.config import ENGINE_KEYS, TRAIN_SIDE_KEYS, Recipe, dump_recipe
from smollora.errors import ConfigError
from smollora.memory import give_back_freed_memory
from smollora.runs import (
    SCHEMA_VERSION,
    alone_in,
    code_version,
    hash_file,
    hash_of,
    is_done,
    mark_done,
    write_json,
    write_whole,
)
from smollora.stages import Run

STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "inspect": stages.inspect,
    "prepare": stages.prepare,
    "verify": stages.verify,
    "mix": stages.mix,
    "train": stages.train,
    "merge": stages.merge,
    "probe": stages.probe,
    "report": stages.report,
}
READS: dict[str, tuple[str, ...]] = {
    "inspect": ("model",),
    "prepare": ("prepare", "mix"),
    "verify": (),
    "mix": ("mix",),
    "train": ("train",),
    "merge": ("merge",),
    "probe": ("probe",),
    "report": (),
}
"""Recipe sections that each stage reads."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "jinja2")


def stage_keys(recipe: Recipe) -> dict[str, str]:
    """The key of every stage: a hash over all that it depends on, earlier stages included."""
    values = recipe.model_dump(mode="json")
    for name in ENGINE_KEYS:  # where the tasks run changes no row
        del values["prepare"][name]
    for name in TRAIN_SIDE_KEYS:  # nor do these change what is trained
        del values["train"][name]
    keys: dict[str, str] = {}
    before = hash_of("smollora", __version__)
    for name in STAGES:
        sections = {section: values[section] for section in READS[name]}
        if name == "prepare":
            sections["mix"] = {"seed": recipe.mix.seed}  # all that it reads of that section
        before = hash_of(before, name, sections, _input_files(name, recipe))
        keys[name] = before
    return keys


def _input_files(stage: str, recipe: Recipe) -> list[str]:
    """Hashes of the files outside the run folder that a stage reads."""
    paths: list[Path] = []
    if stage == "inspect":
        source = Path(recipe.model.source).expanduser()
        paths += sorted([*source.glob("*.json"), *source.glob("*.jinja")])
        paths.append(Path(recipe.model.template).expanduser())
    if stage == "prepare":
        named = (*(entry.path for entry in recipe.prepare.sources), *recipe.prepare.overlap_with)
        for place in (Path(name).expanduser() for name in named):
            paths += sorted(place.rglob("*")) if place.is_dir() else [place]
    if stage == "probe":
        paths.append(Path(recipe.probe.cases).expanduser())
    hashes = [hash_file(path) for path in paths if path.is_file()]
    if stage == "prepare":
        hashes.append(code_version())
    if stage == "inspect":
        weights = sorted(Path(recipe.model.source).expanduser().glob("*.safetensors"))
        stats = [path.stat() for path in weights]
        hashes += [f"{s.st_size} {s.st_mtime_ns}" for s in stats]  # gigabytes: not read for a key
    starter = stage == "prepare" and any(
        s.path.startswith("starter:") for s in recipe.prepare.sources
    )
    if starter or (stage == "probe" and recipe.probe.cases.startswith("starter:")):
        folder = resources.files("smollora.data.starter") / "authored"
        root = Path(str(folder))
        hashes += [hash_file(path) for path in sorted(root.rglob("*.jsonl"))]
    return hashes


def run_stages(run: Run, wanted: Sequence[str], *, force: Sequence[str] = ()) -> dict[str, str]:
    """Run `wanted` stages and the unfinished ones before them.

    Returns:
        What became of each stage: "done" or "skipped".

    Raises:
        ConfigError: `force` names no stage, or another process works in the run folder.
        GateFailed: everything ran and a gate fell short.
    """
    unknown = [name for name in force if name not in STAGES]
    if unknown:
        raise ConfigError(f"--force {unknown[0]}: no such stage", f"stages: {', '.join(STAGES)}")
    names = list(STAGES)
    last = max(names.index(name) for name in wanted)
    keys = stage_keys(run.recipe)
    if last >= names.index("probe"):
        stages.load_cases(run)  # a mistake there is cheaper found before training
    if last >= names.index("train"):
        stages.check_machine(run)
    if launch.processes() > 1 and not _leads(run, wanted):
        return {}
    with alone_in(run.folder):
        return _run_all(run, names[: last + 1], keys, force)


def _run_all(
    run: Run, names: Sequence[str], keys: dict[str, str], force: Sequence[str]
) -> dict[str, str]:
    write_whole(run.folder / "recipe.yaml", dump_recipe(run.recipe))
    _write_manifest(run, keys)
    outcome: dict[str, str] = {}
    stale = False
    for name in names:
        if name == "train" and launch.processes() > 1:
            launch.wait_for_everyone(_device(run))
        folder = run.folder / name
        if is_done(folder, keys[name]) and name not in force and not stale:
            outcome[name] = "skipped"
            run.console.print(f"[dim]{name:8s} unchanged, skipped[/dim]", highlight=False)
            continue
        stale = True
        _run_stage(run, name, keys[name])
        outcome[name] = "done"
    return outcome


def _leads(run: Run, wanted: Sequence[str]) -> bool:
    """True in the first of several processes, which does the stages before training and writes;
    the others have trained along when this returns.

    Raises:
        ConfigError: something else than training is wanted.
    """
    if list(wanted) != ["train"]:
        raise ConfigError(
            f"{launch.processes()} processes were launched for `{' '.join(wanted)}`; only `train`"
            " takes several",
            "launch `smollora train`, then give the other verbs to a single process",
        )
    if launch.is_first():
        return True
    launch.wait_for_everyone(_device(run))
    stages.train(Run(run.recipe, run.folder, Console(quiet=True)))
    return False


def _device(run: Run) -> str:
    from smollora.train.hardware import choose_device

    return choose_device(run.recipe.train.device)


def _run_stage(run: Run, name: str, key: str) -> None:
    folder = run.folder / name
    (folder / ".done").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    before = _written(run, name)
    start = time.monotonic()
    values = STAGES[name](run)
    give_back_freed_memory()  # the next stage need not stand on top of this one
    seconds = round(time.monotonic() - start, 2)
    summary = {"schema_version": SCHEMA_VERSION, "stage": name, "seconds": seconds, **values}
    if name != "report":
        write_json(folder / "summary.json", summary)
    if _written(run, name) != before:
        for later in list(STAGES)[list(STAGES).index(name) + 1 :]:
            (run.folder / later / ".done").unlink(missing_ok=True)
    mark_done(folder, key)
    run.console.print(
        f"{name:8s} {seconds:6.1f} s  {describe(name, values)}", highlight=False, soft_wrap=True
    )


def _written(run: Run, name: str) -> dict[str, str]:
    """Hashes of the files that later stages read of this one; linked weights by size and time."""
    folders = [run.folder / name, *([run.base] if name == "inspect" else [])]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): f"{path.stat().st_size} {path.stat().st_mtime_ns}"
        if path.is_symlink()
        else hash_file(path)
        for path in files
        if path.name not in (".done", "summary.json")
    }


def describe(stage: str, values: dict[str, Any]) -> str:
    """One line about what a stage found."""
    if stage == "inspect":
        template = values["template"]
        lost = sum(not check["ok"] for check in template["checks"])
        opened = values["open"]
        how = "added" if values["added_ids"] else "there"
        after = "repaired" if template["repaired"] else "kept"
        return (
            f"{opened['text']} is id {opened['id']} ({how}); template {after}:"
            f" {lost} of {len(template['checks'])} checks failed"
        )
    if stage == "prepare":
        rejected = sum(values["rejected"].values())
        return (
            f"{values['rows_kept']:,} of {values['rows_in']:,} rows kept, {rejected:,} rejected,"
            f" {values['labelled_tokens']:,} labelled tokens"
        )
    if stage == "verify":
        return (
            f"{values['rows_proved']:,} of {values['rows_with_calls']:,} call rows"
            " proved on token ids"
        )
    if stage == "mix":
        kinds = ", ".join(
            f"{values['kind:' + k]['share_rows']:.0%} {k}" for k in ("call", "no_call", "no_tools")
        )
        return f"{values['rows']:,} rows: {kinds}"
    if stage == "train":
        return (
            f"{values['steps']} steps,"
            f" loss {values['loss_first']:.2f} -> {values['loss_last']:.2f},"
            f" {values['row_tokens_per_second']:,.0f} row tokens/s"
        )
    if stage == "merge":
        return (
            f"logits differ by {values['max_logit_difference_reloaded']:.1e}; {values['dtype']}:"
            f" top-1 {values['top1_agreement']:.1%}, KL {values['mean_kl']:.1e}"
            + _from_training(values.get("training_base"))
            + (f"; opening token {bias:+g} nats" if (bias := values.get("open_bias")) else "")
        )
    if stage == "probe":
        base, merged = values["base"], values["merged"]
        return (
            f"emission {_of(base['emission'])} -> {_of(merged['emission'])};"
            f" false calls {_of(merged['false_call'])}"
        )
    return str(run_path(values))


def _from_training(found: dict[str, Any] | None) -> str:
    """How far the merged model stands from the 4-bit model that the adapter was trained on."""
    if found is None:
        return ""
    if found["top1_agreement"] is None:
        return f"; trained on a {found['base_weights']} base, not compared: {found['reason']}"
    return (
        f"; trained on a {found['base_weights']} base, from which it stands at top-1"
        f" {found['top1_agreement']:.1%}, KL {found['mean_kl']:.1e}"
    )


def _of(rate: dict[str, Any]) -> str:
    return "no cases" if rate["rate"] is None else f"{rate['k']} of {rate['n']}"


def run_path(values: dict[str, Any]) -> str:
    """Where the report lies."""
    return f"{values.get('path', '')} ({values.get('bytes', 0) / 1e6:.1f} MB)"


def _git_revision() -> str | None:
    """The commit of smollora's own checkout, "-dirty" after it if files differ; None where it is an
    installed package.
    """
    own = Path(__file__)

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(own.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10)

    try:
        if git("ls-files", "--error-unmatch", own.name).returncode != 0:
            return None  # some other project's repository around an environment
        found = git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _write_manifest(run: Run, keys: dict[str, str]) -> None:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    write_json(
        run.folder / "manifest.json",
        {
            "schema_version": SCHEMA_VERSION,
            "smollora": __version__,
            "git_revision": _git_revision(),
            "packages": versions,
            "python": platform.python_version(),
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "seed": run.recipe.train.seed,
            "stages": keys,
        },
    )
