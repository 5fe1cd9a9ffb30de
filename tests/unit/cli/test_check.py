"""`kvtier check` as it is called: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.cli.check_report import examine
from kvtier.cli.main import main
from kvtier.config import Config, parse
from kvtier.sizing import DiskSpace, KvShape, Machine

MIB, GIB = 1 << 20, 1 << 30

MACHINE = Machine(
    ram_bytes=64 * GIB,
    ram_available_bytes=60 * GIB,
    shm_bytes=32 * GIB,
    shm_free_bytes=32 * GIB,
    memlock_bytes=None,
    has_gpu=True,
)
SPACE = DiskSpace(
    path=Path("/nvme/kvtier"),
    total_bytes=1000 * GIB,
    free_bytes=800 * GIB,
    held_bytes=0,
    fs_type="ext4",
    writable=True,
)
LLAMA_8B = KvShape(kind="GQA", n_layers=32, n_heads=8, head_size=256, dtype="bfloat16")
MODEL = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Run `kvtier check` on a YAML text on this machine -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"dtype": "bfloat16"}))
    monkeypatch.chdir(tmp_path)

    def run(text, *args):
        (tmp_path / "kvtier.yaml").write_text(text)
        code = main(["check", "kvtier.yaml", *args])
        return code, *capsys.readouterr()

    return run


SMALL = "host: {capacity: 32MiB}\ndisk: {path: kv, capacity: 300MiB}\n"


@pytest.fixture
def roomy(monkeypatch):
    """Whatever machine runs the test, `check` sees one without anything to warn about."""
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: MACHINE))
    monkeypatch.setattr(DiskSpace, "at", classmethod(lambda _, path: replace(SPACE, path=path)))


def test_a_file_without_trouble_ends_with_0(call, roomy):
    code, out, err = call(SMALL)
    assert (code, err) == (0, "")
    assert out.startswith("kvtier.yaml on this machine\n")
    assert out.endswith("no warnings\n")


def test_relative_paths_are_shown_resolved(call, roomy, tmp_path):
    assert f"{tmp_path}/kv (ext4, 800 GiB free)" in call(SMALL)[1]


@pytest.mark.parametrize(
    ("load", "line"),
    [
        ("auto", "auto: from disk only while that is measured to be faster than computing"),
        ("always", "always: whatever is on disk, however long it takes"),
        ("never", "never: nothing from disk; the tier is only written"),
        ("min_tokens, min_tokens: 2048", "min_tokens: from disk if a request could find 2,048 tokens or more there"),
    ],
)
def test_one_line_says_when_the_disk_is_read(call, roomy, load, line):
    assert f"\nload  {line}\n" in call(SMALL.replace("path: kv", f"path: kv, load: {load}"))[1]


def test_without_a_file_the_defaults_are_checked(roomy, capsys):
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("the defaults on this machine\n")


def test_warnings_end_with_0_and_with_1_when_strict(call, roomy):
    codes = [call(SMALL, "--device-cache", "20GiB", *strict)[0] for strict in ([], ["--strict"])]
    assert codes == [0, 1]


def test_a_key_file_that_is_not_there_ends_with_2_and_the_remedy(call, roomy):
    code, out, _ = call(SMALL + "encryption: {key_file: absent.key}\n")
    assert code == 2
    assert "absent.key cannot be read: No such file or directory; make one with" in out


def test_what_does_not_fit_ends_with_2_and_the_rest_is_still_shown(call, roomy):
    code, out, _ = call("host: {capacity: 50GiB}\ndisk: {capacity: 300MiB}")
    assert code == 2
    assert "host     error" in out
    assert "disk   300 MiB" in out
    assert "error: `host.capacity` is 50GiB, but /dev/shm has 32 GiB: `mount" in out


def test_a_wrong_file_ends_with_2_and_one_line_on_stderr(call):
    assert call("disk: {capcity: 1GiB}") == (
        2,
        "",
        "error: kvtier.yaml: unknown key `disk.capcity`; did you mean `disk.capacity`?\n",
    )


def test_a_wrong_file_is_json_when_json_was_asked_for(call):
    code, out, err = call("disk: [", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out)["errors"] == [
        "kvtier.yaml:1:8: while parsing a flow node: expected the node content, but found '<stream end>'"
    ]


def test_json_says_the_same_as_the_table(call, roomy):
    code, out, _ = call(SMALL, "--json", "--model", "model", "--block-size", "128", "--device-cache", "1GiB")
    tree = json.loads(out)
    assert code == 0
    assert tree["bytes_per_token"] == 23_040
    assert tree["chunk"] == {"tokens": 128, "bytes": 2_949_120}
    assert tree["host"] == {"bytes": 32 * MIB, "rule": "as written", "chunks": 11, "tokens": 1408}
    assert tree["disk"]["tokens"] == 300 * MIB // 2_949_120 * 128
    assert (len(tree["warnings"]), tree["errors"]) == (2, [])
    assert parse(tree["config"]).host.capacity.n_bytes == 32 * MIB


def test_a_model_that_cannot_be_told_is_a_warning(call, roomy, tmp_path):
    (tmp_path / "model/config.json").write_text(json.dumps(MODEL | {"dtype": "bfloat16", "mamba_d_state": 16}))
    code, out, _ = call(SMALL, "--model", "model", "--strict")
    assert code == 1
    assert "warning: --model: cannot tell the bytes per token: it has state-space layers" in out


def test_a_folder_that_is_no_model_is_an_error(call, roomy):
    code, _, err = call(SMALL, "--model", "nowhere")
    assert code == 2
    assert err.startswith("error: nowhere/config.json: cannot read it")


@pytest.mark.parametrize(
    "args",
    [["--block-size", "0"], ["--block-size", "x"], ["--device-cache", "20"], ["--kv-cache-dtype", "int3"], ["--nope"]],
)
def test_a_wrong_command_line_ends_with_2_and_usage(call, args, capsys):
    with pytest.raises(SystemExit) as stop:
        call(SMALL, *args)
    assert stop.value.code == 2
    assert "usage: kvtier" in capsys.readouterr().err


def test_nothing_is_created_by_looking(call, tmp_path):
    call(SMALL)
    assert not (tmp_path / "kv").exists()
    assert not (tmp_path / "cache").exists()


def report(tree=None, *, machine=MACHINE, disk=SPACE, shape=LLAMA_8B, block=16, device=None):
    config = parse(
        {"host": {"capacity": "16GiB"}, "disk": {"path": "/nvme/kvtier", "capacity": "200GiB"}}
        if tree is None
        else tree
    )
    return examine(
        config,
        name="kvtier.yaml",
        machine=machine,
        disk=disk if config.disk else None,
        shape=shape,
        block_tokens=block,
        device_cache_bytes=device,
    )


def test_a_configuration_that_suits_the_machine_has_no_findings():
    assert (report(device=5 * GIB).errors, report(device=5 * GIB).warnings) == ((), ())


CHUNK_16 = {"chunk": {"tokens": 16}}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"device": 6 * GIB}, "16 GiB is less than 3 times the device cache (6 GiB)"),
        ({"machine": replace(MACHINE, memlock_bytes=8 * MIB)}, "RLIMIT_MEMLOCK is 8 MiB"),
        ({"disk": replace(SPACE, fs_type="tmpfs")}, "/nvme/kvtier is on tmpfs: it takes RAM"),
        ({"disk": replace(SPACE, fs_type="nfs4")}, "a network file system"),
        ({"disk": replace(SPACE, fs_type="overlay")}, "the container's own layer"),
        ({"disk": replace(SPACE, writable=False)}, "cannot be written by this user"),
        ({"tree": {"host": {"capacity": "16GiB"}, "disk": {"capacity": "8GiB"}}}, "less than the host tier (16 GiB)"),
        ({"tree": CHUNK_16, "shape": replace(LLAMA_8B, n_layers=1)}, "a chunk of 16 tokens is 64 KiB: so many small"),
        ({"tree": CHUNK_16, "shape": replace(LLAMA_8B, n_layers=1)}, "64 tokens or more are better"),
        ({"tree": {"chunk": {"tokens": 160}}}, "a chunk of 160 tokens is 20 MiB"),
        ({"tree": {"host": {"capacity": "24MiB"}}}, "24 MiB is 12 chunks: one prompt of 192 tokens fills it"),
        (
            {"tree": {}, "machine": replace(MACHINE, shm_free_bytes=2 * GIB, shm_bytes=2 * GIB)},
            "auto is held to 1 GiB by /dev/shm; for 16 GiB: `mount -o remount,size=32g /dev/shm`",
        ),
        ({"tree": {}, "disk": replace(SPACE, free_bytes=GIB)}, "auto finds too little room"),
    ],
)
def test_each_thing_an_operator_should_know_is_said(changes, warning):
    assert [text for text in report(**changes).warnings if warning in text], report(**changes).warnings


def test_a_memlock_limit_does_not_matter_without_a_gpu():
    assert report(machine=replace(MACHINE, memlock_bytes=8 * MIB, has_gpu=False)).warnings == ()


def test_a_disk_tier_that_is_off_is_not_judged():
    off = report({"host": {"capacity": "16GiB"}, "disk": "off"})
    assert (off.errors, off.warnings) == ((), ())
    assert "\ndisk       off" in off.to_text()


def test_a_chunk_that_is_not_whole_blocks_and_a_host_without_a_chunk_are_errors():
    odd = report({"chunk": {"tokens": 100}})
    huge = report({"host": {"capacity": "20MiB"}, "chunk": {"tokens": 1600}})
    assert [len(odd.errors), len(huge.errors)] == [1, 1]
    assert "not one chunk fits" in huge.errors[0]


def test_what_does_not_fit_now_is_an_error():
    assert "only 1 GiB of 32 GiB free now" in report(machine=replace(MACHINE, shm_free_bytes=GIB)).errors[0]


def test_slots_are_counted_in_whole_pages():
    tiny = replace(LLAMA_8B, n_layers=1, n_heads=1, head_size=2)  # 4 bytes per token
    assert report(shape=tiny).chunk_bytes == 4096


def test_the_installed_command_and_the_module_run():
    env = os.environ | {"PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "kvtier.cli.main", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.startswith("kvtier ")


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path):
    code = "import sys; from kvtier.cli.main import main; sys.stdin.read(); sys.exit(main(['check', '--json']))"
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, b"")


def test_defaults_are_checked_without_torch_or_vllm(tmp_path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'vllm', 'lmdb', 'zstandard', 'numpy')));"
        "from kvtier.cli.main import main; sys.exit(main(['check', '--json']))"
    )
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.stderr == ""
    assert json.loads(done.stdout)["config"]["host"] == Config().to_tree()["host"]


@pytest.mark.parametrize(("plugins", "warned"), [("other", True), ("other, kvtier", False), ("", True), (None, False)])
def test_a_plugin_list_of_vllm_that_leaves_kvtier_out_is_a_warning(call, monkeypatch, plugins, warned):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    _, out, _ = call(SMALL)
    assert ("VLLM_PLUGINS" in out) == warned
