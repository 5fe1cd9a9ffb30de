"""Captures real KV: the demo model reads the project's documents in a real vLLM with kvtier, and what kvtier stored is
opened and kept in .cache/kv-sample, where `kvtier bench` finds it. All layers, keys and values, whole slots.

bf16 in both chunk sizes in use, and fp16 and fp8 as the engine itself makes them. `python -m integration.kv_sample`.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from integration.vllm.engine import ROOT, Engine, frames_on_disk, wait_for_frames
from kvtier.bench.kv import DEFAULT_SAMPLE, MANIFEST
from kvtier.codec.frame import open_into, parse_header
from kvtier.files import replace_file
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from tools.make_model import MODEL_NAME, ensure_model

TOKENS = 1536
"""Of text, for each capture: 35 MB of bf16."""

PROMPT_TOKENS = 512


class Capture(NamedTuple):
    """One engine, and what it is to leave."""

    dtype: str  # as `Geometry.dtype` names it
    tokens_per_chunk: int
    block_size: int
    engine: dict[str, Any]


CAPTURES = (
    Capture("bfloat16", 128, 128, {}),
    Capture("bfloat16", 32, 32, {}),
    Capture("float16", 128, 128, {"dtype": "float16"}),
    Capture("fp8_e4m3", 128, 128, {"kv_cache_dtype": "fp8"}),
)


def main() -> int:
    """Capture everything and write the manifest last, so that half a capture is none."""
    model = ensure_model()
    target = ROOT / DEFAULT_SAMPLE
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST).unlink(missing_ok=True)
    entries = []
    for capture in CAPTURES:
        started = time.monotonic()
        entries.append(_capture(capture, model, target))
        print(f"{entries[-1]['file']}: {entries[-1]['source']}, {time.monotonic() - started:.0f} s", flush=True)
    replace_file(target / MANIFEST, json.dumps(entries, indent=2).encode())
    print(f"{target}: try `kvtier bench codec`")
    return 0


def _capture(capture: Capture, model: Path, target: Path) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp(prefix=".capture-", dir=target))
    disk = work / "disk"
    kvtier = {
        "host": {"capacity": "256MiB"},
        "disk": {"path": str(disk), "capacity": "1GiB", "write_behind_after": "100ms"},
        "chunk": {"tokens": capture.tokens_per_chunk},
    }
    try:
        with Engine(model, work / "log", kvtier=kvtier, block_size=capture.block_size, **capture.engine) as engine:
            text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
            tokens = engine.tokenize([text])[0]
            prompts = [tokens[at : at + PROMPT_TOKENS] for at in range(0, TOKENS, PROMPT_TOKENS)]
            engine.generate(prompts, max_tokens=1)
            n_chunks = len(prompts) * (PROMPT_TOKENS // capture.tokens_per_chunk)
            wait_for_frames(disk, n_chunks)
        chunks = _opened(disk)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    file = f"{capture.dtype}-{capture.tokens_per_chunk}.bin"
    replace_file(target / file, b"".join(chunks))
    return {
        "file": file,
        "dtype": capture.dtype,
        "tokens_per_chunk": capture.tokens_per_chunk,
        "chunk_bytes": len(chunks[0]),
        "source": f"captured: {MODEL_NAME}, {capture.dtype}, {len(chunks)} chunks of {capture.tokens_per_chunk} tokens",
    }


def _opened(folder: Path) -> list[bytes]:
    """All chunks of the store under `folder`, which no engine uses any more, in the order they were written."""
    (place,) = {path.parent for path in frames_on_disk(folder).values()}
    store = LmdbStore.attach(place)
    try:
        chunks = []
        for record in sorted(records_of(store.scan()), key=lambda record: record.written_ns):
            with store.read(record.shard, record.key) as frame:
                assert frame is not None
                chunk = bytearray(parse_header(frame).raw_bytes)
                open_into(frame, memoryview(chunk), key=record.key)
            chunks.append(bytes(chunk))
        return chunks
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(main())
