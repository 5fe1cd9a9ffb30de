"""`vllm serve MODEL --kv-connector kvtier [--kv-connector-config FILE]`, as vLLM's own parser takes it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)
Parse = Callable[..., argparse.Namespace]


@pytest.fixture(scope="module")
def parse() -> Parse:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser  # noqa: PLC0415 - seconds to import
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return lambda *args: parser.parse_args(list(args))


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "kvtier.yaml"
    path.write_text("host: {capacity: 1GiB}\ndisk: {path: here, capacity: 2GiB}\n")
    return path


def refused(parse: Parse, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(*args)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_flag_alone_selects_the_connector_and_recomputes_failed_loads(parse: Parse) -> None:
    transfer = parse("--kv-connector", "kvtier").kv_transfer_config
    assert (transfer.kv_connector, transfer.kv_role) == ("kvtier", "kv_both")
    assert transfer.kv_load_failure_policy == "recompute"


@pytest.mark.parametrize("order", [0, 1])
def test_the_file_is_read_and_its_relative_paths_are_resolved(parse: Parse, yaml: Path, order: int) -> None:
    flags = [("--kv-connector", "kvtier"), ("--kv-connector-config", str(yaml))]
    args = [word for pair in (flags if order else flags[::-1]) for word in pair]
    extra: dict[str, Any] = parse(*args).kv_transfer_config.kv_connector_extra_config["kvtier"]
    assert extra["host"]["capacity"] == "1GiB"
    assert extra["disk"]["path"] == str(yaml.parent / "here")


def test_underscores_equals_signs_and_vllms_own_yaml_work_too(parse: Parse, yaml: Path, tmp_path: Path) -> None:
    assert parse("--kv_connector=kvtier", f"--kv_connector_config={yaml}").kv_transfer_config.kv_connector == "kvtier"
    vllm_yaml = tmp_path / "vllm.yaml"
    vllm_yaml.write_text(f"kv-connector: kvtier\nkv-connector-config: {yaml}\n")
    assert parse("--config", str(vllm_yaml)).kv_transfer_config.kv_connector == "kvtier"


def test_vllms_own_json_still_works(parse: Parse) -> None:
    transfer = parse("--kv-transfer-config", '{"kv_connector":"kvtier","kv_role":"kv_both"}').kv_transfer_config
    assert transfer.kv_connector == "kvtier"


def test_an_unknown_connector_is_refused_by_name(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'kvteir'" in refused(parse, capsys, "--kv-connector", "kvteir")


def test_a_missing_file_is_refused_by_name(parse: Parse, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "no.yaml")
    assert missing in refused(parse, capsys, "--kv-connector", "kvtier", "--kv-connector-config", missing)


def test_a_misspelt_key_is_refused_with_the_nearest_valid_one(
    parse: Parse, capsys: pytest.CaptureFixture[str], yaml: Path
) -> None:
    yaml.write_text("disk: {capcity: 1GiB}\n")
    error = refused(parse, capsys, "--kv-connector", "kvtier", "--kv-connector-config", str(yaml))
    assert "disk.capcity" in error
    assert "disk.capacity" in error


@pytest.mark.parametrize("flag", [("--kv-connector", "kvtier"), ("--kv-connector-config", "YAML")])
@pytest.mark.parametrize("first", [True, False])
def test_it_conflicts_with_another_kv_transfer_config(
    parse: Parse, capsys: pytest.CaptureFixture[str], yaml: Path, flag: tuple[str, str], first: bool
) -> None:
    ours = [word.replace("YAML", str(yaml)) for word in flag]
    other = ["--kv-transfer-config", '{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}']
    assert "not allowed with" in refused(parse, capsys, *(ours + other if first else other + ours))


def test_the_help_of_the_real_command_has_a_kvtier_section() -> None:
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "vllm"), "serve", "--help=kvtier"],
        capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    assert "--kv-connector-config FILE" in shown.stdout
