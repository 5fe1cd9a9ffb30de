"""SGLang's extra config for a storage backend -> kvtier's configuration, and the size of the write buffer."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier import config as kvtier_config
from kvtier import sizing
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvtier.config import Config

BUFFER_BYTES = 256 << 20
BUFFER_PAGES = 32
MAX_BUFFER_PAGES = 1 << 14

_OURS = ("config", "kvtier")
_SGLANGS = (
    "backend_name", "module_path", "class_name", "interface_v1", "allocator", "prefetch_threshold",
    "prefetch_timeout_base", "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size",
)  # fmt: skip
"""Keys that SGLang reads; which of them it takes out before a backend sees them depends on its version."""


def settle(extra: Mapping[str, Any] | None, *, first_rank: bool) -> Config:
    """kvtier's configuration as SGLang's extra config names it: `config` is a YAML file, `kvtier` its content.

    What has no meaning under SGLang is settled: pages are written at once, and loading is SGLang's decision. Only the
    first rank logs the hit rate: all ranks find the same. Raises ConfigError.
    """
    extra = dict(extra or {})
    for name in extra:
        if name not in _OURS + _SGLANGS:
            near = difflib.get_close_matches(str(name), _OURS + _SGLANGS, n=1)
            raise ConfigError(
                f"hicache-storage-backend-extra-config: unknown key `{name}`; "
                + (
                    f"did you mean `{near[0]}`?"
                    if near
                    else "kvtier reads `config` (a YAML file) or `kvtier` (its content)"
                )
            )
    if "config" in extra and "kvtier" in extra:
        raise ConfigError("hicache-storage-backend-extra-config: `config` and `kvtier` exclude each other; keep one")
    if "config" in extra:
        config = kvtier_config.load(Path(str(extra["config"])))
    else:
        config = kvtier_config.parse(extra.get("kvtier") or {}, origin="hicache-storage-backend-extra-config.kvtier")
    tree: dict[str, Any] = config.to_tree()
    if isinstance(tree["disk"], dict):
        load = tree["disk"]["load"]
        tree["disk"] |= {"write": "ahead", "write_behind_after": "0s", "load": "always" if load == "auto" else load}
    if not first_rank:
        tree["log"]["every"] = "off"
    return kvtier_config.parse(tree)


def buffer_pages(config: Config, page_bytes: int) -> int:
    """Pages that the write buffer of one rank holds: `host.capacity`, which is 256 MiB if it is `auto`."""
    if str(config.host.capacity) == "auto":
        n_bytes = max(BUFFER_BYTES, BUFFER_PAGES * page_bytes)
    else:
        n_bytes = sizing.host_bytes(config, sizing.Machine.here())
    n_pages = min(n_bytes // page_bytes, MAX_BUFFER_PAGES)
    if n_pages < 4:
        raise ConfigError(
            f"`host.capacity` is {config.host.capacity}: the write buffer holds {n_pages} pages of {page_bytes} "
            f"bytes, and 4 are the least; raise it, or lower SGLang's --page-size"
        )
    return n_pages
