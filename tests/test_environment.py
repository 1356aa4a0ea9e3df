"""`smollora doctor --self`: what is said of machines that are not this one, and of this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from smollora import environment
from smollora.environment import check_environment, check_packages, hardware, pins, verdict
from smollora.environment.hardware import (
    Finding,
    check_cards,
    check_disks,
    check_memory,
    check_processor,
    check_threads,
    memory_of,
)
from tiny_runs import smollora

CPUINFO = "processor\t: 0\nmodel name\t: Some Processor\nflags\t\t: fpu sse {}\n"


def one(findings: list[Finding], name: str) -> Finding:
    return next(each for each in findings if each.name == name)


@pytest.mark.parametrize(
    ("flags", "state", "word"),
    [
        ("avx512f avx512_bf16 amx_bf16", "ok", "AMX"),
        ("avx512f avx512_bf16", "ok", "AVX-512 BF16"),
        ("avx2 avx512f", "slow", "avx512f"),
        ("avx2", "slow", "avx2"),
        ("", "slow", "no wide vectors"),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(
    flags: str, state: str, word: str
) -> None:
    found = one(check_processor(CPUINFO.format(flags), 2), "bfloat16")
    assert found.state == state and word in found.value
    assert ("float32" in found.advice) is (state == "slow")


def test_a_machine_without_cpuinfo_is_not_guessed_at() -> None:
    assert one(check_processor("", 8), "bfloat16").value == "unknown"


def test_what_is_said_of_bfloat16_here_is_what_training_takes() -> None:
    """`train.compute_dtype` decides; this only tells."""
    from smollora.train import compute_dtype

    if torch.cuda.is_available():
        pytest.skip("a GPU decides here")
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fast = one(check_processor(text, 2), "bfloat16").state == "ok"
    assert (compute_dtype("auto") == "bfloat16") is fast


def test_one_core_is_slow_and_named() -> None:
    found = one(check_processor(CPUINFO.format(""), 1), "cores")
    assert found.state == "slow" and "Some Processor" in found.value


@pytest.mark.parametrize(
    ("threads", "cores", "variables", "share", "state", "word"),
    [
        (2, 2, {}, None, "ok", ""),
        (8, 16, {}, None, "ok", ""),
        (1, 2, {"OMP_NUM_THREADS": "1"}, None, "slow", "OMP_NUM_THREADS is set"),
        (2, 16, {}, None, "slow", "most cores stand idle"),
        (16, 16, {}, 2.0, "slow", "OMP_NUM_THREADS=2"),
        (1, 1, {}, None, "ok", ""),
    ],
)
def test_threads_are_held_against_cores_and_the_containers_share(
    threads: int, cores: int, variables: dict[str, str], share: float | None, state: str, word: str
) -> None:
    found = check_threads(threads, cores, variables, share)
    assert found.state == state and word in found.advice


def test_a_card_that_torch_does_not_see_is_in_the_way() -> None:
    assert check_cards(["NVIDIA H100"], "CPU only").state == "wrong"
    assert check_cards([], "CPU only").state == "slow"


def test_the_containers_limit_counts_where_it_is_smaller() -> None:
    meminfo = "MemTotal: 32000000 kB\nMemAvailable:   20000000 kB\n"
    assert memory_of(meminfo, "max\n", "") == 20_000_000 * 1024
    assert memory_of(meminfo, "8000000000\n", "3000000000\n") == 5_000_000_000
    assert memory_of("", "", "") is None


def test_too_little_memory_and_disk_are_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_memory(4 * 10**9).state == "wrong"
    assert check_memory(12 * 10**9).state == "ok"
    assert check_memory(None).state == "ok"
    (found,) = check_disks({"runs": tmp_path / "not" / "yet" / "there"})
    assert found.state == "ok" or found.advice
    monkeypatch.setattr(hardware, "NEEDED_DISK", 10**18)
    assert check_disks({"runs": tmp_path})[0].state == "wrong"


def test_a_package_that_is_too_old_or_absent_is_in_the_way() -> None:
    needed = ("pytest>=8", "pytest<1", "no-such-package>=2", "no-such-extra>=1; extra == 'scale'")
    states = [each.state for each in check_packages(needed, {}) if each.name != "torch"][:4]
    assert states == ["ok", "wrong", "wrong", "absent"]
    advice = [each.advice for each in check_packages(needed, {})][:4]
    assert "pip install 'pytest<1'" in advice[1]
    assert "smollora[scale]" in advice[3]


def test_another_version_than_the_tested_one_is_told() -> None:
    found = check_packages(("pytest>=8",), {"pytest": "8.0.0"})[0]
    assert (found.state, found.advice) == ("ok", "tested with 8.0.0")


def test_the_pins_are_those_of_the_clone() -> None:
    assert pins()["torch"] == "2.13.0" and len(pins()) > 50


def test_nothing_heavy_is_asked_for_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    (found,) = hardware.check_torch()
    assert found.state == "wrong"


def test_this_machine_is_looked_at_in_every_respect(tmp_path: Path) -> None:
    findings = check_environment(tmp_path)
    groups = dict.fromkeys(each.group for each in findings)
    assert list(groups) == [
        *("python", "packages", "torch", "processor", "memory", "disk", "tools", "caches")
    ]
    assert one(findings, "torch").state == "ok"
    assert str(torch.__version__) in " ".join(f.value for f in findings if f.group == "torch")


def test_the_verdict_names_what_is_in_the_way_before_what_is_slow() -> None:
    slow, wrong = Finding("a", "GPU", "none", "slow"), Finding("a", "memory", "1 GiB", "wrong")
    assert verdict([slow, wrong]) == "in the way: memory"
    assert verdict([slow]) == "nothing in the way; slow because of: GPU"
    assert verdict([]) == "nothing in the way"


def test_the_command_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = [Finding("memory", "available", "21 GiB"), Finding("torch", "GPU", "none", "slow", "!")]
    monkeypatch.setattr(environment, "check_environment", lambda folder: fine)
    said = smollora("doctor", "--self")
    assert said.code == 0 and "21 GiB" in said.out
    assert said.out.splitlines()[-1] == "nothing in the way; slow because of: GPU"
    found = json.loads(smollora("doctor", "--self", "--json").out)
    assert found["verdict"] == "nothing in the way; slow because of: GPU"
    assert found["findings"][0] == {
        **{"group": "memory", "name": "available", "value": "21 GiB"},
        **{"state": "ok", "advice": ""},
    }


def test_the_command_ends_with_1_where_something_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = [Finding("memory", "available", "1 GiB", "wrong", "close something")]
    monkeypatch.setattr(environment, "check_environment", lambda folder: bad)
    said = smollora("doctor", "--self")
    assert said.code == 1 and "in the way: available" in said.err


def test_doctor_without_a_patient_says_what_to_type() -> None:
    said = smollora("doctor")
    assert said.code == 2 and "smollora doctor --self" in said.err
