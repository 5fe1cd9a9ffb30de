"""Everything that depends on the vLLM version: what was tested, and where its pieces live."""

from __future__ import annotations

import re

TESTED = ("0.32",)
"""vLLM minors whose real engine ran kvtier's end-to-end tests."""

_REGION_PATH = "/dev/shm/vllm_offload_{region_id}.mmap"  # noqa: S108 - vLLM's own name for the shared region

REGION_GLOB = "vllm_offload_kvtier-*.mmap"
"""Regions of engines with kvtier, and of no other."""


def region_id(engine_id: str) -> str:
    """What to tell vLLM's SharedOffloadRegion instead of the engine's id, so that its file is known to be ours."""
    return f"kvtier-{engine_id}"


def region_path(engine_id: str) -> str:
    """Where SharedOffloadRegion then looks for the file that workers and scheduler map."""
    return _REGION_PATH.format(region_id=region_id(engine_id))


def version_warning(version: str) -> str | None:
    """One line for the operator if this vLLM is not one that was tested, else None."""
    match = re.match(r"(\d+\.\d+)", version)
    minor = match.group(1) if match else version
    if minor in TESTED:
        return None
    return f"vLLM {version} has not been tested with this kvtier (tested: {', '.join(TESTED)}); going on"
