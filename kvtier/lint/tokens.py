"""Counting tokens: text -> number, with the model's own tokenizer or, without one, from bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from kvtier.errors import InputError

BYTES_PER_TOKEN: Final = 4


class TokenCounter(Protocol):
    """Counts; pure."""

    @property
    def name(self) -> str:
        """What was counted with, for the report."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` on its own, without special tokens; at least 1 unless it is empty."""
        ...


class ByteCounter:
    """An approximation: four bytes of UTF-8 are a token."""

    name = f"an approximation of {BYTES_PER_TOKEN} bytes per token (no tokenizer given)"

    def count(self, text: str) -> int:
        """Bytes / 4, rounded."""
        if text.isascii():
            return max(len(text) + 2, BYTES_PER_TOKEN) // BYTES_PER_TOKEN if text else 0
        return (len(text.encode("utf-8", "replace")) + 2) // BYTES_PER_TOKEN or 1


class FileCounter:
    """A tokenizer.json, by the `tokenizers` package."""

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{file}: no such file; give the folder of a model, with a tokenizer.json")
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - an extra: lint runs without it
        except ImportError as error:
            raise InputError("--tokenizer needs the tokenizers package: pip install 'kvtier[tokenizer]'") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise InputError(f"{file}: not a tokenizer: {error}") from error
        self.name = str(file)

    def count(self, text: str) -> int:
        """The length of the encoding."""
        clean = text if text.isascii() else text.encode("utf-8", "replace").decode()
        return len(self._tokenizer.encode(clean, add_special_tokens=False).ids)


def counter(path: Path | None) -> TokenCounter:
    """The tokenizer in `path` (a folder, or the file itself), or the approximation."""
    return FileCounter(path) if path else ByteCounter()
