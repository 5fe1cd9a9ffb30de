"""Report: a replay's Result -> a table for people, one JSON object, or CSV. Pure."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from kvtier.sim.replay import OPTIMAL, UNBOUNDED, Result, Row
from kvtier.sim.tally import DISK, HOST, TIERS, ratio
from kvtier.tables import columns
from kvtier.units import format_bytes


@dataclass(frozen=True, slots=True)
class Prices:
    """What turns blocks into bytes and tokens into time, as far as it is known."""

    bytes_per_token: int | None = None  # of KV
    prefill_tokens_per_s: float | None = None  # of one engine
    gpus: int = 1  # of one engine


def to_tree(result: Result, prices: Prices, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for JSON: `facts` first, then the trace's totals, then the rows."""
    asked = result.unbounded
    return {
        **facts,
        "tokens_per_block": result.tokens_per_chunk,
        "block_bytes": _block_bytes(result, prices),
        "partial_tail": "keep" if result.rules.keep_partial else "skip",
        "deployed": result.rules.deployed,
        "requests": asked.requests,
        "blocks": asked.blocks,
        "distinct_blocks": result.n_distinct,
        "tokens": asked.tokens,
        "rows": [_fields(result, row, prices) for row in result.rows],
    }


def to_csv(result: Result, prices: Prices) -> str:
    """One line per row with the fields of the JSON rows."""
    rows = [_fields(result, row, prices) for row in result.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_text(result: Result, prices: Prices, name: str) -> str:
    """The table."""
    asked = result.unbounded
    two_tiers = any(row.n_disk for row in result.rows)
    head = ["host", *(["disk"] if two_tiers else []), "policy", "blocks"]
    head += ["host hit", "disk hit"] if two_tiers else []
    head += ["tokens", "per request", "any hit"]
    head += ["writes/req", "writes/read", "rewritten"] if two_tiers else []
    block_bytes = _block_bytes(result, prices)
    head += ["capacity"] if block_bytes else []
    head += ["written"] if block_bytes and two_tiers else []
    head += ["prefill saved", "GPU-hours"] if prices.prefill_tokens_per_s else []
    table = [head]
    for row in result.rows:
        tally = row.tally
        spills = row.name not in (OPTIMAL, UNBOUNDED) and row.n_disk > 0
        cells = ["-" if row.name == UNBOUNDED else f"{row.n_host:,}"]
        cells += [f"{row.n_disk:,}" if row.n_disk else "-"] if two_tiers else []
        cells += [row.name, f"{tally.block_hit_rate:.4f}"]
        if two_tiers:
            split = [f"{ratio(n, tally.blocks):.4f}" for n in tally.hit_blocks]
            cells += split if spills else ["-", "-"]
        cells += [f"{tally.token_hit_rate:.4f}", f"{tally.request_hit_rate:.4f}"]
        cells += [f"{ratio(tally.any_hit_requests, tally.requests):.4f}"]
        if two_tiers:
            rewritten = f"{ratio(tally.rewritten_blocks, tally.written_blocks):.4f}"
            writes = [f"{tally.writes_per_request:.2f}", f"{tally.writes_per_read:.2f}", rewritten]
            cells += writes if spills else ["-", "-", "-"]
        if block_bytes:
            n_blocks = result.n_distinct if row.name == UNBOUNDED else row.n_host + row.n_disk
            cells += [format_bytes(n_blocks * block_bytes)]
            cells += [format_bytes(tally.written_blocks * block_bytes) if spills else "-"] if two_tiers else []
        if prices.prefill_tokens_per_s:
            saved_s = sum(tally.hit_tokens) / prices.prefill_tokens_per_s
            cells += [f"{saved_s:,.0f} s", f"{saved_s * prices.gpus / 3600:,.2f}"]
        table.append(cells)
    what = (
        f"{name}: {asked.requests:,} requests, {asked.blocks:,} blocks of {result.tokens_per_chunk} tokens "
        f"({result.n_distinct:,} distinct), {asked.tokens:,} tokens"
    )
    tails = "are kept" if result.rules.keep_partial else "are not kept, but count as asked"
    return "\n".join([what, f"Partial tail blocks {tails}.", "", *columns(table, left=(head.index("policy"),)), ""])


def _fields(result: Result, row: Row, prices: Prices) -> dict[str, Any]:
    tally, block_bytes = row.tally, _block_bytes(result, prices)
    bounded = row.name != UNBOUNDED
    online = bounded and row.name != OPTIMAL
    rate = prices.prefill_tokens_per_s
    saved_s = sum(tally.hit_tokens) / rate if rate else None
    fields: dict[str, Any] = {
        "policy": row.name,
        "host_blocks": row.n_host if bounded else None,
        "disk_blocks": row.n_disk if bounded else None,
        "host_bytes": row.n_host * block_bytes if bounded and block_bytes else None,
        "disk_bytes": row.n_disk * block_bytes if bounded and block_bytes else None,
        "block_hit_rate": _rate(tally.block_hit_rate),
        "token_hit_rate": _rate(tally.token_hit_rate),
        "request_hit_rate": _rate(tally.request_hit_rate),
        "requests_with_hit": _rate(ratio(tally.any_hit_requests, tally.requests)),
        "hit_blocks": sum(tally.hit_blocks),
        "hit_tokens": sum(tally.hit_tokens),
    }
    for tier in (HOST, DISK):
        name = TIERS[tier]
        fields |= {
            f"{name}_block_hit_rate": _rate(ratio(tally.hit_blocks[tier], tally.blocks)) if online else None,
            f"{name}_token_hit_rate": _rate(ratio(tally.hit_tokens[tier], tally.tokens)) if online else None,
            f"{name}_request_hit_rate": _rate(ratio(tally.request_shares[tier], tally.requests)) if online else None,
            f"{name}_requests_with_hit": _rate(ratio(tally.hit_requests[tier], tally.requests)) if online else None,
        }
    spills = online and row.n_disk > 0
    return fields | {
        "written_blocks": tally.written_blocks if spills else None,
        "rewritten_blocks": tally.rewritten_blocks if spills else None,
        "dropped_blocks": tally.dropped_blocks if spills else None,
        "writes_per_request": _rate(tally.writes_per_request) if spills else None,
        "writes_per_read": _rate(tally.writes_per_read) if spills else None,
        "written_bytes": tally.written_blocks * block_bytes if spills and block_bytes else None,
        "read_bytes": tally.hit_blocks[DISK] * block_bytes if spills and block_bytes else None,
        "prefill_s_saved": round(saved_s, 3) if saved_s is not None else None,
        "gpu_hours_saved": round(saved_s * prices.gpus / 3600, 6) if saved_s is not None else None,
    }


def _block_bytes(result: Result, prices: Prices) -> int | None:
    return prices.bytes_per_token * result.tokens_per_chunk if prices.bytes_per_token else None


def _rate(value: float) -> float:
    return round(value, 6)
