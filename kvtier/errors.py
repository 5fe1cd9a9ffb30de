"""Every exception kvtier raises on purpose.

KvtierError
├── ConfigError            bad YAML or a bad combination of settings; the message names file, key and remedy
├── InputError             a trace or prompt file of the user's; the message names file, line and what was expected
├── FrameError             a stored frame cannot be used
│   ├── FrameCorruptError  the bytes are not what was written
│   │   └── FrameForgedError  whole, but written by somebody without our key
│   └── FrameForeignError  sound, but not ours: another key, namespace, codec or format version
└── StoreError             the medium failed: full, unreadable, gone
    ├── StoreFullError     no room in that shard; none of the puts was written
    └── StoreFormatError   a newer build of kvtier laid the directory out

Only adapters (`kvtier.engines`) and tiers catch KvtierError: they turn it into a miss and a counter.
"""

from __future__ import annotations


class KvtierError(Exception):
    """Root of all errors raised by kvtier."""


class ConfigError(KvtierError):
    """The user's configuration cannot be used as written."""


class InputError(KvtierError):
    """A file the user gave (a trace, prompts) cannot be read as it is."""


class FrameError(KvtierError):
    """A stored frame cannot be used."""


class FrameCorruptError(FrameError):
    """The frame does not verify: its bytes are not the ones that were sealed."""


class FrameForgedError(FrameCorruptError):
    """The frame's checksum is right and it names our key, but it was not made with it."""


class FrameForeignError(FrameError):
    """The frame is sound but belongs to another key, namespace, codec or format version."""


class StoreError(KvtierError):
    """The medium failed."""


class StoreFormatError(StoreError):
    """A newer build of kvtier laid the directory out: nothing in it may be touched."""


class StoreFullError(StoreError):
    """A shard has no room for a batch; none of its puts was written, its deletes took place."""
