"""Hardware a plan is for: GPUs by name with the source of every number, links, memory and drives. Numbers only.

Peak rates are the vendor's; what is reached of them is measured where it says so and assumed elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PREFILL_EFFICIENCY: Final = 0.61
"""Share of the peak that prefill reaches. Measured on one H200, vLLM 0.32, 8B-shaped bf16 Llama, eager, one prompt at a
time (0.055 s for 2,048 tokens, 0.218 s for 8,192, 1.216 s for 32,768): 0.55, 0.61 and 0.61 of the operations that
`kvtier.planning.prefill` counts. Assumed for other GPUs and models: --prefill takes a measured rate instead."""

STEP_S: Final = 0.03
"""Seconds a first token takes when everything is on the device already. Same measurement: 0.029 to 0.058 s."""

PCIE_SHARE: Final = 0.78
"""Share of a PCIe link's raw rate that copies of 2 MiB reach: 50 of 64 GB/s, published for vLLM's offloading on an H100
and measured on the same H200 (51). Assumed for the older generation."""

OPEN_GBPS_PER_THREAD: Final = 1.9
"""GB of KV that one thread reads from the page cache, verifies and decompresses in a second (docs/design.md)."""

COMPRESSION: Final = {"bfloat16": 1.3, "float16": 1.1, "float32": 1.1}
"""What the README says to plan with for bf16, where 1.45 was measured on one model. 8-bit KV hardly shrinks."""

WEIGHTS_SHARE: Final = 0.92
"""Share of device memory that an engine takes (vLLM's default --gpu-memory-utilization)."""

_PCIE4, _PCIE5 = 32.0 * PCIE_SHARE, 64.0 * PCIE_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. Rates of dense 16-bit matrix products with 32-bit accumulation, without sparsity."""

    name: str
    tflops: float
    memory_bytes: int
    pcie_gbps: float  # one direction, reached rather than raw
    source: str


GPUS: Final = {
    "h100": Gpu(
        name="H100 SXM",
        tflops=989.4,
        memory_bytes=80 * 10**9,
        pcie_gbps=_PCIE5,
        source="NVIDIA H100 data sheet (SXM5; 1,979 with sparsity halved); PCIe 5 x16 as published for vLLM offloading",
    ),
    "h200": Gpu(
        name="H200 SXM",
        tflops=989.4,
        memory_bytes=141 * 10**9,
        pcie_gbps=51.0,
        source="NVIDIA H200 data sheet (SXM; 1,979 with sparsity halved); PCIe measured, 2 MiB copies",
    ),
    "a100-80": Gpu(
        name="A100 80GB",
        tflops=312.0,
        memory_bytes=80 * 10**9,
        pcie_gbps=_PCIE4,
        source="NVIDIA A100 data sheet (80 GB); PCIe 4 x16 at the share reached on PCIe 5",
    ),
    "l40s": Gpu(
        name="L40S",
        tflops=362.05,
        memory_bytes=48 * 10**9,
        pcie_gbps=_PCIE4,
        source="NVIDIA L40S data sheet (733 with sparsity); PCIe 4 x16 at the share reached on PCIe 5",
    ),
    "l4": Gpu(
        name="L4",
        tflops=121.0,
        memory_bytes=24 * 10**9,
        pcie_gbps=_PCIE4,
        source="NVIDIA L4 data sheet (242 with sparsity halved); PCIe 4 x16 at the share reached on PCIe 5",
    ),
    "rtx4090": Gpu(
        name="GeForce RTX 4090",
        tflops=165.2,
        memory_bytes=24 * 10**9,
        pcie_gbps=_PCIE4,
        source="NVIDIA Ada architecture white paper (bf16, fp32 accumulate); PCIe 4 x16 at the share reached on PCIe 5",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What one engine may use, and how fast it moves. Rates in GB/s (10^9 bytes)."""

    device_cache_bytes: int  # KV cache on all its GPUs
    ram_bytes: int  # most that the host tier may take; 0 = none
    disk_bytes: int  # most that the disk tier may take; 0 = none
    pcie_gbps: float  # host to device, all ranks together
    disk_read_gbps: float
    disk_write_gbps: float
    compression: float  # KV bytes per byte on disk, >= 1
    open_gbps: float  # KV decompressed and verified by one thread
    promote_threads: int
    step_s: float  # a first token with nothing left to load or compute

    @property
    def disk_kv_gbps(self) -> float:
        """KV that reaches host RAM from disk: the drive's rate times compression, or what the threads decompress."""
        return min(self.disk_read_gbps * self.compression, self.open_gbps * self.promote_threads)

    def host_load_s(self, n_bytes: float) -> float:
        """Seconds to bring `n_bytes` of KV from host RAM to the device."""
        return n_bytes / (self.pcie_gbps * 1e9)

    def disk_load_s(self, n_bytes: float) -> float:
        """Seconds from disk: all of it reaches host RAM first, then goes to the device."""
        return n_bytes / (self.disk_kv_gbps * 1e9) + self.host_load_s(n_bytes)

    @property
    def disk_gbps(self) -> float:
        """KV from disk to the device in a second, both legs."""
        return 1 / (1 / self.disk_kv_gbps + 1 / self.pcie_gbps)


def threads_for(disk_read_gbps: float, compression: float, open_gbps: float) -> int:
    """`disk.promote_threads` with which decompressing keeps up with the drive: 1 to 64."""
    return max(1, min(64, -int(-disk_read_gbps * compression // open_gbps)))
