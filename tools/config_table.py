"""The configuration table of a Markdown file: kvtier's schema -> rows between two marker lines.

python tools/config_table.py [FILE]           write the table into FILE (default: README.md)
python tools/config_table.py --check [FILE]   change nothing; exit with 1 when the table is not up to date
python tools/config_table.py --print          print the table alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvtier.config import settings

BEGIN = "<!-- config-table:begin -->"
END = "<!-- config-table:end -->"


def table() -> str:
    """The table, one row a key, without a newline at the end."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for setting in settings():
        cells = (f"`{setting.key}`", f"`{setting.default}`", setting.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """`text` with what is between its markers replaced by the table. ValueError unless there is one pair, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected exactly one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    if END not in rest:
        raise ValueError(f"{END} comes before {BEGIN}")
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 up to date now; 1 out of date (--check); 2 no such file or no markers."""
    parser = argparse.ArgumentParser(description="Keep the configuration table of a Markdown file up to date.")
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).parents[1] / "README.md", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when out of date")
    parser.add_argument("--print", action="store_true", help="print the table alone")
    args = parser.parse_args(argv)
    if args.print:
        print(table())
        return 0
    try:
        old = args.file.read_text(encoding="utf-8")
        new = updated(old)
    except (OSError, ValueError) as error:
        print(f"{args.file}: {error}", file=sys.stderr)
        return 2
    if old == new:
        return 0
    if args.check:
        print(
            f"{args.file}: the configuration table is out of date: run `python tools/config_table.py`", file=sys.stderr
        )
        return 1
    args.file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
