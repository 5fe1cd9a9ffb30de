"""`make torture`: every kind of fault against the real cache; a table of what was injected and what became of it.

    python -m tests.torture [--seed N] [--short] [--server-kills N] [--only NAME ...] [--json] [--folder DIR]

Exit status 1 when a promise was broken.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.torture.report import as_json, as_table, verdict
from tests.torture.scenario import Row, Setting
from tests.torture.scenarios import SCENARIOS


def main() -> int:
    """Run the scenarios asked for."""
    parser = argparse.ArgumentParser(prog="torture", description="Inject faults into kvtier and show what happens.")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="the same seed, the same faults")
    parser.add_argument("--short", action="store_true", help="a fraction of the faults, in about a minute")
    parser.add_argument("--server-kills", type=int, default=20, metavar="N", help="of a real vLLM engine (20)")
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), help="these scenarios alone")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--folder", type=Path, help="where the stores lie (default: a temporary directory)")
    asked = parser.parse_args()
    rows: list[Row] = []
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kvtier-torture-", dir=asked.folder) as folder:
        for name in asked.only or SCENARIOS:
            place = Path(folder, name)
            place.mkdir(mode=0o700)
            for row in SCENARIOS[name](Setting(asked.seed, place, asked.short, _progress(name), asked.server_kills)):
                rows.append(row)
                _progress(name)(f"{row.fault}: {'BROKEN' if row.violations else row.skipped or 'kept'}")
    print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)
    print(as_json(rows, asked.seed) if asked.json else f"{as_table(rows)}\n{verdict(rows, asked.seed)}")
    print(f"{time.monotonic() - started_s:.0f} s", file=sys.stderr)
    return int(any(row.violations for row in rows))


def _progress(name: str) -> Callable[[str], None]:
    def tell(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: {what}", end="", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
