"""A namespace carried from one cache directory to another: store -> one file -> store. docs/format.md has the bytes.

Every frame is opened on the way in, so a file that was damaged or made up by somebody brings in nothing that an engine
would not verify anyway. What does not fit is left out: an import evicts nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from kvtier.admin.directory import Named, read_names
from kvtier.admin.purge import Choice
from kvtier.admin.verify import MAX_CHUNK_BYTES
from kvtier.codec.frame import frame_bound, open_into, seal_into, verify_frame
from kvtier.codec.guard import PLAIN, Guard
from kvtier.codec.registry import codec_by_id
from kvtier.epoch import NAMESPACES, Epoch
from kvtier.errors import FrameError, InputError, StoreFullError
from kvtier.keys import FAMILY_BYTES, Namespace
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey
from kvtier.units import format_bytes

MAGIC: Final = b"KVTX\0\0\0\1"
"""Eight bytes: four letters, then the version of the file's layout."""

_HEADER_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<HIQ")  # bytes of key, bytes of frame, when it was written
_MAX_HEADER_BYTES = 1 << 20
_MAX_KEY_BYTES = 511  # LMDB takes no longer ones


@dataclass(slots=True)
class Carried:
    """What an export or an import did."""

    path: Path  # of the store
    file: str
    namespace: str
    model: str
    frames: int = 0
    stored_bytes: int = 0
    present: int = 0  # already there
    bad: int = 0  # did not verify
    no_room: int = 0

    def to_tree(self) -> dict[str, Any]:
        """For machines."""
        return {name: getattr(self, name) for name in self.__slots__} | {"path": str(self.path)}

    def to_text(self, verb: str) -> str:
        """For people; `verb` is what was done."""
        text = f"{self.file}: {verb} {self.frames:,} frames ({format_bytes(self.stored_bytes)}) of {self.model}"
        text += f", {self.present:,} were there already" * bool(self.present)
        text += f", {self.no_room:,} did not fit" * bool(self.no_room)
        return text + f", {self.bad:,} did not verify and were left out" * bool(self.bad)


class _Entry(NamedTuple):
    number: int  # from 1
    key: ChunkKey
    written_ns: int
    frame: memoryview


def export(
    path: Path, wanted: str, out: IO[bytes], *, progress: Callable[[int, int], None] = lambda *_: None
) -> Carried:
    """Write the sound frames of a namespace, in its current epoch, to `out`. Engines may be running.

    Raises InputError when `wanted` names no namespace or several, StoreError when the store cannot be read.
    """
    names = read_names(path)
    families = Choice(namespace=wanted).families(names, set())
    family, named = _current(families, names, wanted)
    store = LmdbStore.attach(path)
    try:
        records = sorted(record for record in records_of(store.scan()) if record.key[:FAMILY_BYTES] == family)
        done = Carried(path, _name(out), named.name, named.model)
        header = json.dumps({"namespace": dict(named.fields), "epoch": named.epoch, "family": family.hex()}).encode()
        out.write(MAGIC + _HEADER_LENGTH.pack(len(header)) + header)
        for n, record in enumerate(records, start=1):
            with store.read(record.shard, record.key) as frame:
                if frame is not None and _is_sound(frame):
                    out.write(_RECORD.pack(len(record.key), len(frame), record.written_ns) + record.key)
                    out.write(frame)
                    done.frames += 1
                    done.stored_bytes += len(frame)
                elif frame is not None:
                    done.bad += 1
            progress(n, len(records))
        out.write(_RECORD.pack(0, 0, done.frames))
        return done
    finally:
        store.close()


def import_(
    path: Path, source: IO[bytes], *, guard: Guard = PLAIN, progress: Callable[[int, int], None] = lambda *_: None
) -> Carried:
    """Put the frames that `source` holds into the store at `path`, as this namespace's current epoch there.

    Engines may be running; those of the namespace find the frames at their next start, or when they next look for what
    others wrote. Raises InputError when `source` is no export, is cut short or needs another key than `guard`'s; what
    came before that stays.
    """
    header = _read_header(source)
    namespace = Namespace(header["namespace"])
    model = Path(str(namespace.fields.get("model", "?"))).name
    done = Carried(path, _name(source), namespace.base(), model)
    epoch = Epoch(path / NAMESPACES, namespace)  # as an engine of this namespace begins
    if not epoch.persistent:
        raise InputError(f"{path / NAMESPACES}: cannot be written; nothing that is imported would ever be found")
    family = namespace.family(epoch.name)
    written_ns = 0
    store = LmdbStore.attach(path, clock_ns=lambda: written_ns)
    try:
        there: set[ChunkKey] = set()
        room = [store.shard_bytes] * store.n_shards
        for record in records_of(store.scan()):
            there.add(record.key)
            room[record.shard] -= store.frame_cost(record.n_bytes)
        for entry in _entries(source, bytes.fromhex(header["family"])):
            key = ChunkKey(family + entry.key[FAMILY_BYTES:])
            written_ns = entry.written_ns
            progress(entry.number, 0)
            if key in there:
                done.present += 1
                continue
            frame = _as(key, entry, guard, done.file)
            if frame is None:
                done.bad += 1
            elif _put(store, room, key, frame):
                there.add(key)
                done.frames += 1
                done.stored_bytes += len(frame)
            else:
                done.no_room += 1
        store.sync()
        return done
    finally:
        store.close()


def _current(families: set[bytes], names: dict[bytes, Named], wanted: str) -> tuple[bytes, Named]:
    for family in families:
        if family in names and names[family].current:
            return family, names[family]
    raise InputError(f"--namespace {wanted!r}: no engine would reuse any of its frames: its weights were reset")


def _is_sound(frame: memoryview) -> bool:
    try:
        verify_frame(frame)
    except FrameError:
        return False
    return True


def _read_header(source: IO[bytes]) -> dict[str, Any]:
    """The header of an export, whose shape is as it should be."""
    name = _name(source)
    magic = source.read(len(MAGIC))
    if magic != MAGIC:
        other = ", but another version of it" if magic[:4] == MAGIC[:4] else ""
        raise InputError(f"{name}: begins with {magic.hex() or 'nothing'}; not what `kvtier export` writes{other}")
    (n_bytes,) = _HEADER_LENGTH.unpack(_exactly(source, _HEADER_LENGTH.size))
    if n_bytes > _MAX_HEADER_BYTES:
        raise InputError(f"{name}: its header claims {n_bytes} bytes, at most {_MAX_HEADER_BYTES} are believed")
    try:
        header = json.loads(_exactly(source, n_bytes))
        fields = {str(key): value for key, value in header["namespace"].items() if isinstance(value, (str, int))}
        family = str(header["family"])
        if Namespace(fields).family(str(int(header["epoch"]))).hex() != family:
            raise ValueError("family and namespace do not belong together")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: its header cannot be understood: {error}") from error
    return {"namespace": fields, "family": family}


def _entries(source: IO[bytes], family: bytes) -> Iterator[_Entry]:
    name = _name(source)
    n_read = 0
    while True:
        n_key, n_frame, number = _RECORD.unpack(_exactly(source, _RECORD.size))
        if n_key == 0:
            if number != n_read:
                raise InputError(f"{name}: says it has {number} frames at its end, {n_read} were in it")
            return
        if not FAMILY_BYTES < n_key <= _MAX_KEY_BYTES or n_frame > MAX_CHUNK_BYTES:
            raise InputError(f"{name}: frame {n_read + 1} claims a key of {n_key} and a length of {n_frame} bytes")
        key = _exactly(source, n_key)
        frame = _exactly(source, n_frame)
        if key[:FAMILY_BYTES] != family:
            raise InputError(f"{name}: frame {n_read + 1} is of another namespace than the file")
        n_read += 1
        yield _Entry(n_read, ChunkKey(key), number, memoryview(frame))


def _exactly(source: IO[bytes], n_bytes: int) -> bytes:
    content = source.read(n_bytes)
    if len(content) < n_bytes:
        raise InputError(f"{_name(source)}: cut short; export it again")
    return content


def _as(key: ChunkKey, entry: _Entry, guard: Guard, file: str) -> memoryview | None:
    """The frame under its key in the target, which has another family when its epoch is another; None if unsound."""
    try:
        header = verify_frame(entry.frame)
        if header.raw_bytes > MAX_CHUNK_BYTES:
            return None
        chosen = next((one for one in (guard, PLAIN) if one.flags == header.flags), None)
        if chosen is None:
            raise InputError(
                f"{file}: its frames are under a key; name a YAML whose `integrity` or `encryption` has it"
            )
        chunk = memoryview(bytearray(header.raw_bytes))
        open_into(entry.frame, chunk, key=entry.key, guard=chosen)
    except FrameError:
        return None
    if key == entry.key:
        return entry.frame
    codec = codec_by_id(header.codec_id)
    frame = memoryview(bytearray(frame_bound(len(chunk), codec, chosen)))
    return frame[: seal_into(chunk, frame, key=key, codec=codec, guard=chosen)]


def _put(store: LmdbStore, room: list[int], key: ChunkKey, frame: memoryview) -> bool:
    """Into the shard with most room; False when it has none."""
    cost = store.frame_cost(len(frame))
    shard = max(range(len(room)), key=room.__getitem__)
    if room[shard] < cost:
        return False
    try:
        store.write(shard, [(key, frame)], [])
    except StoreFullError:
        room[shard] = 0
        return False
    room[shard] -= cost
    return True


def _name(stream: IO[bytes]) -> str:
    name = getattr(stream, "name", "-")
    return name if isinstance(name, str) else "-"
