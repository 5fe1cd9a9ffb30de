"""A small trace of made-up chats, for examples and tests -> JSON lines in Mooncake's format, the same on every run.

    python tools/make_trace.py > examples/trace.jsonl

Three applications with a system prompt each; chats of one to eight turns, every turn sends all that came before; a
third of the requests are single questions that share nothing but the system prompt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import count

BLOCK_TOKENS = 512
N_CHATS = 150
SYSTEM_BLOCKS = (2, 6, 15)


def requests(seed: int = 2) -> Iterator[dict[str, object]]:
    """All requests, unsorted."""
    rng = random.Random(seed)  # noqa: S311 - made-up traffic, no secret
    new_id = count()
    systems = [[next(new_id) for _ in range(n)] for n in SYSTEM_BLOCKS]
    for _ in range(N_CHATS):
        ids = list(rng.choice(systems))
        tokens = len(ids) * BLOCK_TOKENS
        time_ms = rng.randrange(3_600_000)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
            tokens += rng.randrange(40, 2500)
            whole = tokens // BLOCK_TOKENS
            ids += [next(new_id) for _ in range(whole - len(ids))]
            output = rng.randrange(20, 900)
            tail = [next(new_id)] if tokens % BLOCK_TOKENS else []  # the next turn fills it up: another block
            yield {"timestamp": time_ms, "input_length": tokens, "output_length": output, "hash_ids": ids + tail}
            tokens += output
            time_ms += 1000 * rng.randrange(10, 400)


def main() -> None:
    """Print them by time."""
    for request in sorted(requests(), key=lambda request: str(request["timestamp"]).zfill(12)):
        print(json.dumps(request))


if __name__ == "__main__":
    main()
