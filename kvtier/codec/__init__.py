"""Codecs and frames: chunk bytes <-> frame bytes, verified on every read."""

from __future__ import annotations

from kvtier.codec.base import Codec
from kvtier.codec.frame import (
    FORMAT_VERSION,
    HEADER_BYTES,
    FrameHeader,
    frame_bound,
    open_into,
    parse_header,
    seal_into,
    verify_frame,
)
from kvtier.codec.guard import PLAIN, Guard
from kvtier.codec.registry import codec_by_id, codec_for

__all__ = [
    "FORMAT_VERSION",
    "HEADER_BYTES",
    "PLAIN",
    "Codec",
    "FrameHeader",
    "Guard",
    "codec_by_id",
    "codec_for",
    "frame_bound",
    "open_into",
    "parse_header",
    "seal_into",
    "verify_frame",
]
