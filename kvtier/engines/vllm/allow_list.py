"""VLLM_PLUGINS: vLLM's allow-list of plugins. Imports nothing of vLLM, so that `kvtier check` can ask too."""

from __future__ import annotations

import os

PLUGIN = "kvtier"


def excluded() -> str | None:
    """One line for the operator if VLLM_PLUGINS keeps vLLM from loading this plugin, else None."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None or PLUGIN in (name.strip() for name in allowed.split(",")):
        return None
    return (
        f"VLLM_PLUGINS={allowed!r} does not name kvtier, so vLLM does not know --kv-connector kvtier: "
        f"add kvtier to the list or unset it"
    )
