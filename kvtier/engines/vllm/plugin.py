"""Entry point `vllm.general_plugins`: makes the connector name and the command line options known to vLLM.

vLLM calls `register` in every process: API servers, EngineCore, workers, and short-lived helpers. It is idempotent,
takes microseconds, imports nothing heavy that is not imported already, and never raises.
"""

from __future__ import annotations

import logging
import sys

CONNECTOR = "kvtier"
_LOG = logging.getLogger("vllm.kvtier")


def register() -> None:
    """Register the connector and, where arguments get parsed, the options."""
    try:
        _register_connector()
        arg_utils = sys.modules.get("vllm.engine.arg_utils")
        if arg_utils is not None:
            from kvtier.engines.vllm import cli_flag  # noqa: PLC0415 - only where arguments get parsed

            cli_flag.install(arg_utils)
    except Exception as error:  # noqa: BLE001 - a plugin that raises takes the server down with it
        _LOG.warning("kvtier could not register with this vLLM and stays out of the way: %r", error)


def _register_connector() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: PLC0415 - heavy

    if CONNECTOR not in KVConnectorFactory._registry:  # noqa: SLF001 - the public call raises on a second registration
        KVConnectorFactory.register_connector(CONNECTOR, "kvtier.engines.vllm.connector", "KVTierConnector")
