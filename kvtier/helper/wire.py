"""Wire: messages between an engine and its helper process, in batches over a socket. Plain values <-> bytes.

The socket is an unnamed pair: only the two processes can ever reach it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import socket

Message = Sequence[Any]
"""What it is, then its values: numbers, strings, bytes, lists of those."""

_LENGTH: Final = struct.Struct("<Q")

_READ_AT_ONCE_BYTES: Final = 1 << 16
"""Head and body of usual messages: whoever reads twice waits twice for the interpreter, and makes others wait."""


class Wire:
    """One end. One thread receives; one at a time sends."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over `connection`, a blocking stream socket."""
        self._connection = connection
        self._incoming = connection.makefile("rb", _READ_AT_ONCE_BYTES)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder()

    def send(self, messages: Sequence[Message]) -> None:
        """Waits while the other end does not take them. OSError when it is gone."""
        body = self._encoder.encode(messages)
        self._connection.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self) -> list[list[Any]]:
        """The next messages, at least one; none when the other end is gone. Waits for them."""
        head = self._read(_LENGTH.size)
        body = self._read(_LENGTH.unpack(head)[0]) if head else b""
        messages: list[list[Any]] = self._decoder.decode(body) if body else []
        return messages

    def close(self) -> None:
        """Not while another thread uses it."""
        self._incoming.close()
        self._connection.close()

    def _read(self, n_bytes: int) -> bytes:
        """Exactly so many bytes; none when the other end is gone."""
        try:
            out = self._incoming.read(n_bytes)
        except ConnectionResetError:
            return b""
        return out if len(out) == n_bytes else b""
