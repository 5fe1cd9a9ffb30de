"""Frame: a chunk as stored. Header with identity and checksum in front of a codec's payload; sealed on the way down,
opened on the way up. The bytes are specified in docs/format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from kvtier.codec.base import Codec
from kvtier.codec.guard import EXTENSION_BYTES, PLAIN, Guard
from kvtier.codec.opener import best_opener
from kvtier.codec.pieces import Chunk, decode_chunk, encode_chunk, in_rows
from kvtier.codec.planes import BytePlanes
from kvtier.codec.registry import RAW, codec_by_id
from kvtier.errors import FrameCorruptError, FrameForeignError
from kvtier.types import ChunkKey, FilePages

FORMAT_VERSION = 1
"""Of the frame layout. A change that an older build cannot read raises it; old frames are then misses."""

HEADER_BYTES = 64
MAGIC = b"KVTF"

# magic, version, codec, flags, raw bytes, payload bytes, namespace, key tag; then the checksum.
_HEAD = struct.Struct("<4sHBBII16s16s")
_CHECKSUM_AT = _HEAD.size
_MAX_RAW_BYTES = 2**32 - 1
_NAMESPACE_BYTES = 16  # family and adapter; the tenant is in the engine's hash as well, and all of the key in the tag


class FrameHeader(NamedTuple):
    """What a frame says of itself."""

    version: int
    codec_id: int
    flags: int  # how the payload is guarded: a key of EXTENSION_BYTES
    raw_bytes: int  # of the chunk
    payload_bytes: int  # after the header and what its flags put behind it
    namespace: bytes  # first 16 bytes of the key
    key_tag: bytes  # xxh3_128 of the whole key
    checksum: bytes  # xxh3_128 of everything else


class Sealing(NamedTuple):
    """How an engine's frames are made."""

    codec: Codec
    guard: Guard


def frame_bound(n_bytes: int, codec: Codec, guard: Guard = PLAIN) -> int:
    """Bytes `seal_into` needs for a chunk of `n_bytes`."""
    return _payload_at(guard) + max(n_bytes, codec.bound(n_bytes)) + guard.slack_bytes


def seal_into(chunk: Chunk, out: memoryview, *, key: ChunkKey, codec: Codec, guard: Guard = PLAIN) -> int:
    """Write `chunk` as a frame to the front of `out` and return the frame's length.

    Called on transfer threads. `out` is at least `frame_bound(len(chunk), codec, guard)` long and does not overlap
    `chunk`. A frame is never longer than the chunk, its header and what `guard` adds: what the codec does not shrink is
    stored as it is.
    """
    if len(chunk) > _MAX_RAW_BYTES:
        raise ValueError(f"a chunk of {len(chunk)} bytes does not fit a frame: its length field has 32 bits")
    bound = frame_bound(len(chunk), codec, guard)
    if len(out) < bound:
        raise ValueError(f"{len(out)} bytes of room for a frame that may take {bound}")
    start = _payload_at(guard)
    n_payload = encode_chunk(codec, chunk, out[start:])
    codec_id = codec.codec_id
    if n_payload >= len(chunk):
        codec_id, n_payload = RAW.codec_id, len(chunk)
        encode_chunk(RAW, chunk, out[start:])
    end = start + n_payload
    head = _HEAD.pack(
        MAGIC, FORMAT_VERSION, codec_id, guard.flags, len(chunk), n_payload, _padded_namespace(key), _key_tag(key)
    )
    out[:_CHECKSUM_AT] = head
    guard.protect(head, key, out[start : end + guard.slack_bytes], out[HEADER_BYTES:start], n_payload)
    out[_CHECKSUM_AT:HEADER_BYTES] = frame_checksum(out[:end])
    return end


def parse_header(frame: memoryview) -> FrameHeader:
    """The header of `frame` as it stands, unverified. FrameCorruptError when there is none."""
    if len(frame) < HEADER_BYTES:
        raise FrameCorruptError(f"{len(frame)} bytes are too few for a frame header of {HEADER_BYTES}")
    magic, version, codec_id, flags, n_raw, n_payload, namespace, key_tag = _HEAD.unpack_from(frame)
    if magic != MAGIC:
        raise FrameCorruptError(f"begins with {magic.hex()}, a frame begins with {MAGIC.hex()}")
    checksum = bytes(frame[_CHECKSUM_AT:HEADER_BYTES])
    return FrameHeader(version, codec_id, flags, n_raw, n_payload, namespace, key_tag, checksum)


def verify_frame(frame: memoryview) -> FrameHeader:
    """The header of `frame` after its checksum has verified and its lengths agree, whatever key it belongs to.

    Raises FrameCorruptError when the bytes are not the ones that were sealed; FrameForeignError when they are, but by a
    build whose format this one does not know. Place and reach of the checksum are the same in every version, so that
    the two can be told apart.
    """
    header = parse_header(frame)
    checksum = frame_checksum(frame)
    if checksum != header.checksum:
        raise FrameCorruptError(f"checksum is {checksum.hex()}, header says {header.checksum.hex()}")
    if header.version != FORMAT_VERSION:
        raise FrameForeignError(f"frame format {header.version}; this build reads {FORMAT_VERSION}")
    if header.flags not in EXTENSION_BYTES:
        raise FrameForeignError(f"frame flags {header.flags:#04x}; this build knows {sorted(EXTENSION_BYTES)}")
    n_payload = len(frame) - HEADER_BYTES - EXTENSION_BYTES[header.flags]
    if header.payload_bytes != n_payload:
        raise FrameCorruptError(f"payload is {n_payload} bytes, header says {header.payload_bytes}")
    return header


def check_identity(header: FrameHeader, key: ChunkKey) -> None:
    """FrameForeignError unless the frame with this header was sealed for `key`."""
    namespace, key_tag = _padded_namespace(key), _key_tag(key)
    if header.namespace != namespace:
        raise FrameForeignError(f"frame of namespace {header.namespace.hex()}, expected {namespace.hex()}")
    if header.key_tag != key_tag:
        raise FrameForeignError(
            f"frame of another key, tag {header.key_tag.hex()}; expected {key_tag.hex()} of key {key.hex()}"
        )


def open_into(frame: memoryview, out: Chunk, *, key: ChunkKey, guard: Guard = PLAIN) -> None:
    """Verify that `frame` holds the chunk of `key`, made under `guard`, and decode it into `out`, filling it exactly.

    Called on transfer threads with bytes straight from the medium: `frame` may be anything. Raises FrameCorruptError or
    FrameForeignError, which say what was found and what was expected; what `out` holds is undefined then. Identity,
    lengths and guard are settled before `out` is touched.
    """
    if guard is PLAIN and _opened_at_once(frame, out, key):
        return
    header = verify_frame(frame)
    check_identity(header, key)
    if header.raw_bytes != len(out):
        raise FrameForeignError(f"frame of a chunk of {header.raw_bytes} bytes, expected {len(out)}")
    if header.flags != guard.flags:
        # A frame that asks for less than the engine does would let anyone in who can compute a checksum.
        raise FrameForeignError(f"frame is guarded as {header.flags:#04x}, this engine's are as {guard.flags:#04x}")
    codec, start = codec_by_id(header.codec_id), _payload_at(guard)
    if header.payload_bytes > codec.bound(len(out)):
        raise FrameCorruptError(f"{header.payload_bytes} bytes of payload are too many for a chunk of {len(out)}")
    # Of the fields that were looked at: the frame itself may be in other hands.
    head = _HEAD.pack(MAGIC, *header[:-1])
    decode_chunk(codec, guard.unprotect(head, key, frame[start:], frame[HEADER_BYTES:start]), out)


def opens_at_once(codec: Codec, guard: Guard) -> bool:
    """Whether frames made like this are what `read_at_once` knows; the others would be read for nothing."""
    return best_opener() is not None and guard is PLAIN and codec.codec_id == BytePlanes.codec_id


def read_at_once(wanted: Sequence[tuple[FilePages | None, Chunk, ChunkKey]], *, yields: bool) -> list[bool]:
    """Read plain frames from their files and do what `open_into` does, in one native call; which of them it did.

    Called on transfer threads, with 16 at most; they let others of their processor run after each frame if
    `yields`. What the chunk of another holds is undefined, and `open_into` is to be asked why. None has no pages.
    """
    opener = best_opener()
    done = [False] * len(wanted)
    frames = {
        n: (pages, head, values)
        for n, (pages, out, key) in enumerate(wanted)
        if pages is not None and (values := in_rows(out)) is not None and (head := _head_of(pages.n_bytes, out, key))
    }
    if opener is not None and frames:
        for n, opened in zip(frames, opener.read(list(frames.values()), yields=yields), strict=True):
            done[n] = opened
    return done


def _opened_at_once(frame: memoryview, out: Chunk, key: ChunkKey) -> bool:
    """Do what `open_into` does with a plain frame, in one native call; False where that does not go.

    After False what `out` holds is undefined, and it is to be found out why.
    """
    opener, values, head = best_opener(), in_rows(out), _head_of(len(frame), out, key)
    return opener is not None and values is not None and head is not None and opener.open(head, frame, values)


def _head_of(n_bytes: int, out: Chunk, key: ChunkKey) -> bytes | None:
    """What a plain frame of byte planes begins with; None where that has another length."""
    n_payload = n_bytes - HEADER_BYTES
    if not len(out) // 2 <= n_payload < len(out) <= _MAX_RAW_BYTES:  # what did not shrink was stored by another codec
        return None
    codec_id, namespace = BytePlanes.codec_id, _padded_namespace(key)
    return _HEAD.pack(MAGIC, FORMAT_VERSION, codec_id, PLAIN.flags, len(out), n_payload, namespace, _key_tag(key))


def _payload_at(guard: Guard) -> int:
    return HEADER_BYTES + EXTENSION_BYTES[guard.flags]


def _padded_namespace(key: ChunkKey) -> bytes:
    return key[:_NAMESPACE_BYTES].ljust(_NAMESPACE_BYTES, b"\0")


def _key_tag(key: ChunkKey) -> bytes:
    digest: bytes = xxhash.xxh3_128_digest(key)
    return digest


def frame_checksum(frame: memoryview) -> bytes:
    """xxh3_128 of the frame without the checksum field. 15 GB/s; catches damage, not a forger."""
    hasher = xxhash.xxh3_128(frame[:_CHECKSUM_AT])
    hasher.update(frame[HEADER_BYTES:])
    digest: bytes = hasher.digest()
    return digest
