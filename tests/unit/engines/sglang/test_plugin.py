"""The option `--hicache-storage-backend kvtier` becomes SGLang's `dynamic` backend, whatever config was given."""

import argparse
import json
from pathlib import Path

import pytest

from kvtier.engines.sglang import plugin


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hicache-storage-backend", choices=["file", "dynamic"])
    parser.add_argument("--hicache-storage-backend-extra-config")
    plugin._add_choice(None, parser)
    (_, args), _ = plugin._as_dynamic("ServerArgs", parser.parse_args(arguments))
    return args


def test_the_short_form_is_the_long_form() -> None:
    args = parsed("--hicache-storage-backend", "kvtier")
    assert args.hicache_storage_backend == "dynamic"
    assert json.loads(args.hicache_storage_backend_extra_config) == plugin.LOADED_AS


def test_another_backend_is_left_alone() -> None:
    args = parsed("--hicache-storage-backend", "file", "--hicache-storage-backend-extra-config", '{"a": 1}')
    assert (args.hicache_storage_backend, args.hicache_storage_backend_extra_config) == ("file", '{"a": 1}')


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", '{"prefetch_threshold": 64}', {"prefetch_threshold": 64}),
        ("x.toml", 'config = "/etc/kvtier.yaml"', {"config": "/etc/kvtier.yaml"}),
        ("kvtier.yaml", "disk: {capacity: 1GiB}", None),
    ],
)
def test_files_are_read_and_a_yaml_file_is_kvtiers_own(
    tmp_path: Path, name: str, content: str, expected: dict[str, object] | None
) -> None:
    file = tmp_path / name
    file.write_text(content)
    args = parsed("--hicache-storage-backend", "kvtier", "--hicache-storage-backend-extra-config", f"@{file}")
    given = expected if expected is not None else {"config": str(file)}
    assert json.loads(args.hicache_storage_backend_extra_config) == {**plugin.LOADED_AS, **given}


def test_registering_without_sglang_does_no_harm() -> None:
    plugin.register()


def test_replaced_weights_are_no_matter_where_no_backend_was_loaded() -> None:
    assert plugin._weights_changed("result") == "result"
