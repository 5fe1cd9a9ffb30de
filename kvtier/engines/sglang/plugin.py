"""Entry point `sglang.srt.plugins`: makes `--hicache-storage-backend kvtier` work, and notices replaced weights.

SGLang calls `register` in every process before it parses arguments. It never raises; where a hook does not fit this
SGLang any more, the long form of the option still works.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

BACKEND = "kvtier"
LOADED_AS = {
    "backend_name": BACKEND,
    "module_path": "kvtier.engines.sglang.storage",
    "class_name": "KvtierStorage",
    "interface_v1": 1,
}
"""What SGLang's `dynamic` storage backend wants to know."""

_ARGS = "sglang.srt.server_args.ServerArgs"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_UPDATES = ("disk", "distributed", "tensor", "ipc")
_LOG = logging.getLogger("sglang.kvtier")


def register() -> None:
    """Register the hooks."""
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415 - only inside SGLang

        HookRegistry.register(f"{_ARGS}.add_cli_args", _add_choice, HookType.AFTER)
        HookRegistry.register(f"{_ARGS}.from_cli_args", _as_dynamic, HookType.BEFORE)
        for source in _UPDATES:
            HookRegistry.register(f"{_UPDATER}.update_weights_from_{source}", _weights_changed, HookType.AFTER)
    except Exception as error:  # noqa: BLE001 - a plugin must not be in the way
        _LOG.warning("kvtier could not register with this SGLang; use --hicache-storage-backend dynamic: %r", error)


def extra_config(given: str | None) -> str:
    """SGLang's extra config, JSON or `@file`, with what loads kvtier's backend added."""
    return json.dumps({**LOADED_AS, **_read(given)})


def _add_choice(result: Any, parser: Any, *_: Any, **__: Any) -> Any:
    try:
        for action in parser._actions:  # noqa: SLF001 - argparse has no public lookup
            if action.dest == "hicache_storage_backend" and action.choices and BACKEND not in action.choices:
                action.choices = [*action.choices, BACKEND]
    except Exception as error:  # noqa: BLE001 - see above
        _LOG.warning("kvtier: --hicache-storage-backend kvtier is not available, use dynamic: %r", error)
    return result


def _as_dynamic(cls: Any, args: Any, *rest: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if getattr(args, "hicache_storage_backend", None) == BACKEND:
        args.hicache_storage_backend_extra_config = extra_config(args.hicache_storage_backend_extra_config)
        args.hicache_storage_backend = "dynamic"
    return (cls, args, *rest), kwargs


def _weights_changed(result: Any, *_: Any, **__: Any) -> Any:
    try:
        import sys  # noqa: PLC0415

        storage = sys.modules.get("kvtier.engines.sglang.storage")
        if storage is not None:
            storage.weights_changed()
    except Exception as error:  # noqa: BLE001 - see above
        _LOG.warning("kvtier: could not forget the pages of replaced weights: %r", error)
    return result


def _read(given: str | None) -> dict[str, Any]:
    if not given:
        return {}
    if not given.startswith("@"):
        return dict(json.loads(given))
    path = Path(given[1:])
    if path.suffix == ".toml":
        import tomllib  # noqa: PLC0415 - rarely needed

        return tomllib.loads(path.read_text(encoding="utf-8"))
    if path.suffix in (".yaml", ".yml"):
        return {"config": str(path)}
    return dict(json.loads(path.read_text(encoding="utf-8")))
