"""Whether what the documentation points at exists: Markdown files in, one line for each dead reference out.

Checked are relative links and their anchors, paths in backticks that begin with a folder of this repository, and
`make` targets. Placeholders (NAME, FILE, DIR, 000N, a star) are not paths.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "docs", "integration", "kvtier", "tests", "tools", ".ci")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")
_MAKE = re.compile(r"(?:^|`|&& )make ([a-z][a-z0-9-]*)", re.MULTILINE)
_PLACEHOLDER = re.compile(r"NAME|FILE|DIR|000N|[*<{]")


def dead_references(file: Path, targets: frozenset[str]) -> Iterator[str]:
    """Yield what `file` names and this repository does not have. `targets` are the targets of the Makefile."""
    text = file.read_text()
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        aim = (file.parent / path).resolve() if path else file
        if not aim.exists():
            yield f"link to {link}: no such file"
        elif anchor and anchor not in _anchors(aim):
            yield f"link to {link}: no such heading"
    for code in _CODE.findall(text):
        for word in code.split():
            if _PATH.fullmatch(word) and not _PLACEHOLDER.search(word) and not (ROOT / word).exists():
                yield f"`{word}`: no such file"
    for target in _MAKE.findall(text):
        if target not in targets:
            yield f"make {target}: no such target"


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def main() -> int:
    """Check the files named, or every Markdown file of the repository's top and of docs/."""
    parser = argparse.ArgumentParser(description="Find dead references in the documentation.")
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files or [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    targets = frozenset(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    dead = [f"{file}: {what}" for file in files for what in dead_references(file.resolve(), targets)]
    print(*dead, sep="\n", end="\n" if dead else "")
    print(f"{len(files)} documents, {len(dead)} dead references")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
