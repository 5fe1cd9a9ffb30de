"""`vllm serve --kv-connector kvtier [--kv-connector-config FILE]`: two options that build an ordinary KVTransferConfig.

Both write argparse's `kv_transfer_config`, so nothing downstream of the parser differs from --kv-transfer-config.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from kvtier import config as kvtier_config
from kvtier.engines.vllm.plugin import CONNECTOR
from kvtier.errors import ConfigError

DEST = "kv_transfer_config"


def install(arg_utils: Any) -> None:
    """Wrap EngineArgs.add_cli_args once, so that its parser also has the options."""
    original = arg_utils.EngineArgs.__dict__["add_cli_args"].__func__
    if getattr(original, "kvtier_wraps", None) is not None:
        return

    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = original(parser)
        add_options(parser)
        return parser

    add_cli_args.kvtier_wraps = original  # type: ignore[attr-defined]
    arg_utils.EngineArgs.add_cli_args = staticmethod(add_cli_args)
    _wrap_create_engine_config(arg_utils.EngineArgs)


def _wrap_create_engine_config(engine_args: Any) -> None:
    """Have the number of data-parallel engines noted where it is last known: see `settings.note_engines`."""
    original = engine_args.create_engine_config

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        transfer = vllm_config.kv_transfer_config
        if transfer is not None and transfer.kv_connector == CONNECTOR:
            from kvtier.engines.vllm.settings import note_engines  # noqa: PLC0415 - only for engines that use kvtier

            note_engines(vllm_config)
        return vllm_config

    engine_args.create_engine_config = create_engine_config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the two options to `parser`, unless vLLM has come to have its own."""
    known: dict[str, argparse.Action] = parser._option_string_actions  # noqa: SLF001 - argparse has no public lookup
    if "--kv-connector" in known or "--kv-transfer-config" not in known:
        return
    group = parser.add_argument_group(
        title="kvtier", description="Prefix KV in host RAM and on NVMe. `kvtier check FILE` explains a configuration."
    )
    connector = group.add_argument(
        "--kv-connector", dest=DEST, choices=[CONNECTOR], default=None, action=_Connector,
        help="Extend prefix caching to host RAM and NVMe with kvtier.",
    )  # fmt: skip
    file = group.add_argument(
        "--kv-connector-config", dest=DEST, metavar="FILE", default=None, action=_ConnectorConfig,
        help="kvtier's YAML. Without it, tiers are sized from this machine.",
    )  # fmt: skip
    for ours in (connector, file):
        exclusive = parser.add_mutually_exclusive_group()
        exclusive._group_actions += [known["--kv-transfer-config"], ours]  # noqa: SLF001 - both options exist already


class _Connector(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del values, option_string
        _transfer_config(parser, namespace)


class _ConnectorConfig(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        transfer = _transfer_config(parser, namespace, option_string)
        try:
            config = kvtier_config.load(Path(values))
        except ConfigError as error:
            parser.error(f"argument {option_string}: {error}")
        transfer.kv_connector_extra_config["kvtier"] = config.to_tree()


def _transfer_config(parser: Any, namespace: Any, option: str | None = None) -> Any:
    """The namespace's KVTransferConfig for kvtier, made on first use."""
    from vllm.config import KVTransferConfig  # noqa: PLC0415 - heavy, and loaded wherever arguments get parsed

    transfer = getattr(namespace, DEST, None)
    if transfer is None:
        transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_both", kv_load_failure_policy="recompute")
        setattr(namespace, DEST, transfer)
    elif transfer.kv_connector != CONNECTOR:
        parser.error(f"argument {option}: not allowed with argument --kv-transfer-config for {transfer.kv_connector!r}")
    return transfer
