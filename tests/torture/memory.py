"""Memory over a long time: chunks go down to disk and come up again, round and round; nothing may add up."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from tests.torture.engine import MIB, Engine
from tests.torture.scenario import Row, Setting, in_child, timed

CHUNK_BYTES = 4096
N_SLOTS = 64
N_CHUNKS = 16
N_PROMPTS = 40  # chunks of ten host pools, and more than the disk holds: every round spills, evicts and promotes
SAMPLES = 40

GROWTH_BYTES = 2 * MIB
"""Anonymous memory may grow by so much in the second half of the cycles; a leak of one chunk in ten would be 40 MiB in
that half of the full run. Ghost lists and allocator arenas settle in the first half."""


def steady_memory(setting: Setting) -> Iterator[Row]:
    """No leak"""
    row = Row("memory", "chunks spilled and promoted, round and round")
    n_cycles = setting.n(100_000, 4_000)
    with timed(row):
        seen = json.loads(in_child(lambda: _cycle(setting, n_cycles), timeout_s=900))
    row.requests, row.failed_requests, row.served_wrong = seen["requests"], seen["failed"], seen["wrong"]
    row.worst_call_s = seen["worst_call_s"]
    row.figures |= {name: seen[name] for name in ("spilled", "promoted", "anonymous_mib", "grown_kib", "descriptors")}
    row.expect(not row.served_wrong and not row.failed_requests, "a request failed or was served wrong bytes")
    row.expect(seen["grown_kib"] << 10 < GROWTH_BYTES, f"memory grew by {seen['grown_kib']} KiB in the second half")
    row.expect(seen["descriptors"][0] == seen["descriptors"][1], f"open descriptors went {seen['descriptors']}")
    row.expect(seen["slots_lost"] == 0, f"{seen['slots_lost']} slots were never given back")
    row.expect(not seen["still_pinned"], f"{seen['still_pinned']} residents are pinned for ever")
    yield row


def _cycle(setting: Setting, n_cycles: int) -> str:
    rng = random.Random(setting.seed)
    engine = Engine(setting.folder / "store", n_slots=N_SLOTS, chunk_bytes=CHUNK_BYTES, capacity_bytes=16 * MIB)
    anonymous: list[int] = []
    descriptors: list[int] = []
    for sample in range(SAMPLES):
        while min(engine.count("spilled_chunks"), engine.count("promoted_chunks")) < n_cycles * sample // (SAMPLES - 1):
            prompt = rng.randrange(N_PROMPTS) if rng.random() < 0.7 else rng.randrange(1000, 1_000_000)
            engine.request(prompt, N_CHUNKS, copies_fail=rng.random() < 0.01)
            engine.settle()
        anonymous.append(_anonymous_bytes())
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        setting.tell(f"{sample} of {SAMPLES}: {anonymous[-1] >> 20} MiB")
    engine.settle()
    cache, half = engine.cache, SAMPLES // 2
    cache.check()
    residents = list(cache.host.residents())
    done = engine.outcome
    said = {
        "requests": done.requests,
        "failed": done.failed,
        "wrong": done.wrong,
        "worst_call_s": done.worst_call_s,
        "spilled": engine.count("spilled_chunks"),
        "promoted": engine.count("promoted_chunks"),
        "anonymous_mib": round(anonymous[-1] / MIB, 1),
        "grown_kib": (sum(anonymous[-3:]) - sum(anonymous[half : half + 3])) // 3 >> 10,
        "descriptors": [descriptors[half], descriptors[-1]],
        "slots_lost": N_SLOTS - cache.host.n_free - len(residents),
        "still_pinned": sum(resident.pinned for resident in residents),
    }
    engine.stop()
    return json.dumps(said)


def _anonymous_bytes() -> int:
    """Memory of this process that no file stands behind. The store's maps come and go with the page cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
