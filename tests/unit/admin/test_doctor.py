"""kvtier doctor: what it finds and what it advises. The engine of the identity check is integration/vllm's to run."""

import json
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtier.admin import doctor, helper, identity
from kvtier.admin.doctor import Finding, diagnose
from kvtier.cli.main import main
from kvtier.codec import forms
from kvtier.config import Config, parse
from kvtier.errors import InputError
from kvtier.helper.life import Life
from kvtier.machine import Machine
from tests.rigs.cache_dir import CacheDir

GIB = 1 << 30
MACHINE = Machine(
    ram_bytes=64 * GIB,
    ram_available_bytes=60 * GIB,
    shm_bytes=32 * GIB,
    shm_free_bytes=32 * GIB,
    memlock_bytes=None,
    has_gpu=True,
)


def config(path: Path, **host: str) -> Config:
    return parse({"host": host, "disk": {"path": str(path), "capacity": "64MiB"}})


def found(name: str, settings: Config, machine: Machine = MACHINE) -> Finding:
    return next(finding for finding in diagnose(settings, machine) if finding.name == name)


def test_a_healthy_machine_has_no_errors(cache: CacheDir) -> None:
    levels = {finding.name: finding.level for finding in diagnose(config(cache.path, capacity="1GiB"), MACHINE)}
    assert set(levels) >= {
        "python",
        "vllm",
        "plugin",
        "libraries",
        "host",
        "disk",
        "open files",
        "disk speed",
        "cache",
        "helper",
    }
    assert "error" not in levels.values()


def test_the_slower_form_of_the_codec_is_a_warning_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, forms.EXTENSION, None)
    monkeypatch.setattr(forms, "best_form", forms.best_form.__wrapped__)
    finding = found("byte planes", config(tmp_path))
    assert (finding.level, finding.found.split()[0]) == ("warning", "numpy")
    assert "install a C compiler" in finding.remedy


def test_a_limit_on_locked_memory_below_the_pool_is_an_error_with_the_bytes_needed(tmp_path: Path) -> None:
    limited = replace(MACHINE, memlock_bytes=8 << 20)
    finding = found("locked memory", config(tmp_path, capacity="1GiB"), limited)
    assert finding.level == "error"
    assert f"needs {GIB} bytes" in finding.remedy


def test_a_pool_that_does_not_fit_shared_memory_is_an_error(tmp_path: Path) -> None:
    small = replace(MACHINE, shm_bytes=GIB // 2, shm_free_bytes=GIB // 2)
    finding = found("host", config(tmp_path, capacity="1GiB"), small)
    assert finding.level == "error"
    assert "/dev/shm" in finding.remedy + finding.found


def test_too_few_open_files_is_an_error_with_the_number_needed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        finding = found("open files", config(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (finding.level, finding.remedy) == ("error", "ulimit -n 514 or more")


def test_a_plugin_kept_out_by_the_allow_list_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "lora_resolver")
    assert "add kvtier to the list" in found("plugin", config(tmp_path)).remedy


def test_a_forgotten_host_pool_is_named_and_one_in_use_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_REGION", doctor.re.compile(rf"{tmp_path}/vllm_offload_.+\.mmap"))
    monkeypatch.setattr(doctor.compat, "region_path", lambda name: f"{tmp_path}/vllm_offload_{name}.mmap")
    for name in ("used", "forgotten"):
        (tmp_path / f"vllm_offload_{name}.mmap").write_bytes(bytes(8192))
    monkeypatch.setattr(doctor, "_is_mapped", lambda file: "used" in file.name)
    finding = found("shared memory", config(tmp_path))
    assert finding.level == "warning"
    assert "1 host pools (8 KiB)" in finding.found
    assert "vllm_offload_forgotten.mmap" in finding.remedy
    assert "used" not in finding.remedy


def test_a_damaged_shard_is_told_with_what_becomes_of_it(cache: CacheDir) -> None:
    with (cache.path / "shard-0000.lmdb").open("r+b") as file:
        file.truncate(5)
    finding = found("cache", config(cache.path))
    assert finding.level == "warning"
    assert "the next engine to start sets it aside" in finding.remedy


def test_what_cannot_be_looked_at_is_an_error_and_the_rest_is_looked_at(cache: CacheDir) -> None:
    (cache.path / "kvtier-store.json").write_text('{"format": 99}')
    findings = {finding.name: finding for finding in diagnose(config(cache.path), MACHINE)}
    assert "99" in findings["cache"].found
    assert findings["disk speed"].level != "error"


def test_a_helper_process_is_started_and_looked_at_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(threading.enumerate())
    finding = found("helper", config(tmp_path))
    seconds, *rest = finding.found.split(", ")
    assert re.fullmatch(r"starts in \d+\.\d s", seconds)
    assert rest == [
        "takes what processors have left (SCHED_IDLE)",
        "in its engine's autogroup",
        "native byte planes" if forms.best_form().name == forms.NativeForm.name else "byte planes in numpy",
    ]
    assert finding.level == "ok"
    assert not list(tmp_path.glob("kvtier-doctor-*"))
    assert set(threading.enumerate()) <= before


def test_a_helper_process_beside_a_model_on_processors_competes_and_that_is_right(tmp_path: Path) -> None:
    finding = found("helper", config(tmp_path), replace(MACHINE, has_gpu=False))
    assert (finding.level, "competes at a low priority (SCHED_OTHER: no GPU" in finding.found) == ("ok", True)


def test_a_helper_process_that_cannot_be_started_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    finding = found("helper", config(tmp_path))
    assert finding.level == "error"
    assert "cannot be started: [Errno 2]" in finding.found


def test_a_helper_process_that_does_not_get_ready_is_killed_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Life.__init__
    pids: list[int] = []

    def stopped(life: Life, *arguments: object, **named: object) -> None:
        begin(life, *arguments, **named)  # type: ignore[arg-type]
        pids.append(life.pid)
        os.kill(life.pid, signal.SIGSTOP)

    monkeypatch.setattr(Life, "__init__", stopped)
    monkeypatch.setattr(helper, "LIMIT_S", 0.5)
    finding = found("helper", config(tmp_path))
    assert (finding.level, finding.found) == ("error", "it was not ready after 0.5 s")
    assert not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ({"policies": frozenset({os.SCHED_OTHER})}, "allow sched_setscheduler"),
        ({"policies": frozenset({os.SCHED_IDLE, os.SCHED_OTHER})}, "allow sched_setscheduler"),
        ({"same_group": False}, "kernel.sched_autogroup_enabled=0"),
    ],
)
def test_a_helper_process_that_would_compete_with_the_engine_is_a_warning(wrong: dict[str, Any], advice: str) -> None:
    good = helper.Helper(0.5, frozenset({os.SCHED_IDLE}), same_group=True, native=True)
    assert doctor.judge(good, model_on_processors=False).level == "ok"
    finding = doctor.judge(replace(good, **wrong), model_on_processors=False)
    assert finding.level == "warning"
    assert advice in finding.remedy


def test_the_command_answers_in_json_and_exits_by_the_worst(
    cache: CacheDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(cache.path), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert {"check", "level", "found", "remedy"} == set(tree["findings"][0])
    with (cache.path / "shard-0000.lmdb").open("r+b") as file:
        file.truncate(5)
    assert main(["doctor", str(cache.path)]) == 0
    assert main(["doctor", str(cache.path), "--strict"]) == 1


def answers(*tokens: list[int], cached: int) -> list[dict[str, object]]:
    return [{"tokens": one, "cached": cached} for one in tokens]


def checked(monkeypatch: pytest.MonkeyPatch, *runs: list[list[dict[str, object]]]) -> identity.Identity:
    rounds = iter(runs)
    monkeypatch.setattr(identity, "_run", lambda *_: next(rounds))
    return identity.check_identity(Path("m"), {}, lambda _: None)


def test_equal_answers_with_hits_in_both_tiers_are_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    cold, warm = answers([1, 2], cached=0), answers([1, 3], cached=512)  # a hit may round otherwise, in vLLM alone too
    result = checked(monkeypatch, [cold, warm], [cold, warm], [warm, warm])
    assert result.proven
    assert (result.host_tokens, result.disk_tokens) == (512, 512)


@pytest.mark.parametrize(("where", "how"), [(0, "computed"), (1, "from host RAM"), (2, "from disk")])
def test_one_differing_token_is_named(where: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = answers([1, 2], cached=512), answers([1, 9], cached=512)
    host = [bad if where == 0 else good, bad if where == 1 else good]
    result = checked(monkeypatch, [good, good], host, [bad if where == 2 else good, good])
    assert result.differing == (f"prompt 1 {how}: [1, 9] with kvtier, [1, 2] without",)


def test_equal_answers_without_a_hit_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cold = answers([1, 2], cached=0)
    result = checked(monkeypatch, [cold, cold], [cold, cold], [cold, cold])
    assert not result.differing
    assert not result.proven


def test_an_engine_that_cannot_start_is_told_by_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(
        "#!/bin/sh\necho 'ERROR x: ValueError: no such model' >&2\necho RuntimeError: died >&2\n"
    )
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr(identity.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match=r"ended with code 0: ValueError: no such model$"):
        identity.check_identity(tmp_path, {}, lambda _: None)
