"""Configuration: YAML or a plain dict -> frozen structs.

The one schema: every key, default and meaning is written here once. The only importer of msgspec. Everything
wrong with a configuration is a ConfigError that names the file, the key and what was expected. What `auto` and
percentages come to on a machine is for `kvtier.sizing` to say.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

import msgspec

from kvtier.errors import ConfigError
from kvtier.units import Admit, Duration, PerDay, Period, Size
from kvtier.yaml_tree import shape_of, shown, tree_of

VERSION: Final = 1
_MAX_FILE_BYTES: Final = 1 << 20
MAX_BURST_PERCENT: Final = 50
"""Of the write budget: what goes at once is missing from what comes evenly."""


def _key(meaning: str, expects: str, **extra: str) -> msgspec.Meta:
    """What the README's table and the error messages say of a key."""
    return msgspec.Meta(description=meaning, extra={"expects": expects, **extra})


_SIZE = "bytes with a unit (64GiB, 500MB), a percentage (10%) or auto"
_BURST = "bytes with a unit (64GiB, 500MB) or a percentage (20%), at most half of `disk.write_budget`"
_TIME = "a time with a unit (500ms, 30s, 5m)"
_TTL = "a time with a unit (12h, 30d), 0 or off"


def _default_path() -> Path:
    return _to_path("auto", Path())


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pinned host RAM tier."""

    capacity: Annotated[
        Size,
        _key(
            "Host RAM for KV, one pool for each engine. A percentage is of RAM (or of the container's limit); `auto` "
            "is 25 % of it, but at most half of /dev/shm.",
            _SIZE,
        ),
    ] = Size("auto")
    ttl: Annotated[
        Period,
        _key(
            "How long a chunk may stay in host RAM after it came there. `0` or `off` is for as long as it fits.", _TTL
        ),
    ] = Period("off")


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The compressed tier on NVMe."""

    path: Annotated[
        Path,
        _key(
            "Directory of the disk tier. `auto` is `$XDG_CACHE_HOME/kvtier` or `~/.cache/kvtier`; a relative path "
            "starts at the YAML file's folder.",
            "a directory or auto",
            default="auto",
        ),
    ] = msgspec.field(default_factory=_default_path)
    capacity: Annotated[
        Size,
        _key(
            "Bytes the disk tier may take. A percentage is of the file system's size; `auto` is at most 20 % of its "
            "free space (what the tier already holds counts as free) and at most 100 GiB.",
            _SIZE,
        ),
    ] = Size("auto")
    ttl: Annotated[
        Period,
        _key(
            "How long a chunk may stay on disk after it was written. Expired ones are deleted; `kvtier purge` erases "
            "their bytes too. `0` or `off` is for as long as it fits.",
            _TTL,
        ),
    ] = Period("off")
    write: Annotated[
        Literal["ahead", "evict_only"],
        _key(
            "`ahead`: idle time writes host chunks to disk, so that a restart finds them. `evict_only`: only chunks "
            "about to leave host RAM are written, which wears the SSD less.",
            "ahead or evict_only",
        ),
    ] = "ahead"
    admit: Annotated[
        Admit,
        _key(
            "Which chains are written to disk. `second_use`: only what a second request uses. `25%`: that, and one new "
            "chain in four, picked by its hash; a chain goes whole or not at all. Spares the SSD, costs hits.",
            "all, second_use, or a percentage of chains (25%)",
        ),
    ] = Admit("all")
    write_budget: Annotated[
        PerDay,
        _key(
            "Bytes that may be written to disk in any 24 hours, restarts included, by all engines that share the "
            "directory. Once spent, chunks stay in host RAM only and are counted (`over_budget`). `off`: any number.",
            "bytes a day (500GB/day) or off",
        ),
    ] = PerDay("off")
    write_burst: Annotated[
        Size,
        _key("How much of `write_budget` may be written at once; the rest comes evenly. At most half of it.", _BURST),
    ] = Size("20%")
    write_behind_after: Annotated[
        Duration,
        _key("How long a chunk rests in host RAM before idle time writes it to disk (`write: ahead`).", _TIME),
    ] = Duration("2s")
    sync_every: Annotated[
        Duration,
        _key(
            "How often written chunks are synced. A loss of power costs what was written since, and may cost every "
            "shard (0.5 to 1 GiB) that was written to since; a killed process loses nothing.",
            _TIME,
        ),
    ] = Duration("5s")
    durability: Annotated[
        Literal["interval", "commit"],
        _key(
            "`interval`: written chunks are synced every `sync_every`. `commit`: every write waits until it is synced; "
            "a loss of power costs nothing that was written, and writing is slower.",
            "interval or commit",
        ),
    ] = "interval"
    codec: Annotated[
        Literal["auto", "raw"],
        _key("`auto`: lossless compression that fits the KV's dtype. `raw`: none.", "auto or raw"),
    ] = "auto"
    load: Annotated[
        Literal["auto", "always", "never", "min_tokens"],
        _key(
            "`auto`: load from disk only what is measured to be faster than recomputing. `always`: whatever is there. "
            "`never`: nothing; the tier is only written. `min_tokens`: what `disk.min_tokens` says.",
            "auto, always, never or min_tokens",
        ),
    ] = "auto"
    min_tokens: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] | None,
        _key(
            "With `load: min_tokens`, a request loads from disk if it could find at least so many tokens beyond what "
            "is on the device and in host RAM.",
            "a whole number of tokens, at least 1, together with `load: min_tokens`",
            default="none",
        ),
    ] = None
    promote_threads: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=64)],
        _key(
            "Threads that load from disk; under vLLM there are two more, because they wait.",
            "a whole number from 1 to 64",
        ),
    ] = 2

    def __post_init__(self) -> None:
        if self.sync_every_s == 0:
            raise ConfigError(f"`disk.sync_every` is {str(self.sync_every)!r}: expected {_TIME}, more than 0")
        percent, n_bytes, budget = self.write_burst.percent, self.write_burst.n_bytes, self.write_budget.n_bytes
        too_much = (percent or 0) > MAX_BURST_PERCENT or (budget is not None and self.write_burst_bytes * 2 > budget)
        if (percent is None and n_bytes is None) or too_much:
            raise ConfigError(f"`disk.write_burst` is {str(self.write_burst)!r}: expected {_BURST}")

        if self.load == "min_tokens" and self.min_tokens is None:
            raise ConfigError("`disk.load` is 'min_tokens': say how many in `disk.min_tokens`")
        if self.load != "min_tokens" and self.min_tokens is not None:
            raise ConfigError(
                f"`disk.min_tokens` is {self.min_tokens}, but `disk.load` is {self.load!r}: make that min_tokens, or "
                "leave `disk.min_tokens` out"
            )

    @property
    def write_burst_bytes(self) -> int:
        """Bytes of the write budget that may be written at once; 0 without a budget."""
        if self.write_budget.n_bytes is None:
            return 0
        return self.write_burst.n_bytes or int(self.write_budget.n_bytes * (self.write_burst.percent or 0) / 100)

    @property
    def write_behind_after_s(self) -> float:
        """Seconds a chunk rests in host RAM before idle time writes it; 0 = at once."""
        return self.write_behind_after.seconds

    @property
    def sync_every_s(self) -> float:
        """Seconds between two syncs, more than 0."""
        return self.sync_every.seconds


class Chunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The unit that is kept, moved and found again."""

    tokens: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None,
        _key(
            "Tokens per chunk, a multiple of the engine's block size. `auto` is the fewest whole blocks (1, 2, 4, ...) "
            "that make 2 MiB, and no more than 256 tokens.",
            "a whole number of tokens, at least 1, or auto",
        ),
    ] = None


class Offload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept."""

    generated: Annotated[
        bool,
        _key("Keep the KV of generated tokens too, so that the next turn of a chat finds it.", "true or false"),
    ] = True


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hit-rate log line."""

    every: Annotated[
        Period,
        _key("How often the hit-rate line is logged; silent when idle. `0` or `off` is never.", _TIME + ", 0 or off"),
    ] = Period("10s")
    json: Annotated[bool, _key("Log it as one JSON object a line.", "true or false")] = False

    @property
    def every_s(self) -> float:
        """Seconds between two lines; 0 = never."""
        return self.every.seconds


class Trace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is recorded for `kvtier replay`."""

    record: Annotated[
        Path | None,
        _key(
            "File to which each request's arrival, length and salted chunk hashes are appended, no content; "
            "`kvtier replay` reads it. A relative path starts at the YAML file's folder.",
            "a file or off",
            default="off",
        ),
    ] = None
    capacity: Annotated[Size, _key("Bytes the file may take; full, it records no more.", "bytes with a unit")] = Size(
        "1GiB"
    )

    def __post_init__(self) -> None:
        if self.capacity.n_bytes is None:
            raise ConfigError(f"`trace.capacity` is {str(self.capacity)!r}: expected bytes with a unit")

    @property
    def capacity_bytes(self) -> int:
        """Bytes the file may take."""
        return self.capacity.n_bytes or 0


class Integrity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may write frames."""

    hmac_key_file: Annotated[
        Path | None,
        _key(
            "File with a secret under which frames are authenticated, so that nobody else can plant KV "
            "(docs/security.md). A relative path starts at the YAML file's folder.",
            "a file or off",
            default="off",
        ),
    ] = None


class Encryption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may read frames."""

    key_file: Annotated[
        Path | None,
        _key(
            "File with a secret under which frames are encrypted and authenticated (AES-256-GCM; needs "
            "`kvtier[crypto]`). A relative path starts at the YAML file's folder.",
            "a file or off",
            default="off",
        ),
    ] = None


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration. `Config()` is what an empty file means."""

    version: Annotated[Literal[1], _key("Version of this schema.", str(VERSION))] = 1
    host: Host = msgspec.field(default_factory=Host)
    disk: Annotated[
        Disk | None,
        _key("`off`: no disk tier. `on`, or the keys below it: a disk tier.", "keys below it, on or off", default="on"),
    ] = msgspec.field(default_factory=Disk)
    chunk: Chunk = msgspec.field(default_factory=Chunk)
    offload: Offload = msgspec.field(default_factory=Offload)
    log: Log = msgspec.field(default_factory=Log)
    trace: Trace = msgspec.field(default_factory=Trace)
    integrity: Integrity = msgspec.field(default_factory=Integrity)
    encryption: Encryption = msgspec.field(default_factory=Encryption)

    def __post_init__(self) -> None:
        if self.integrity.hmac_key_file is not None and self.encryption.key_file is not None:
            raise ConfigError(
                "`integrity.hmac_key_file` and `encryption.key_file` are both set: encryption authenticates too, and "
                "costs less; leave `integrity` out"
            )

    def to_tree(self) -> dict[str, object]:
        """A dict of dicts and plain scalars that `parse` turns into an equal Config, in any process, through JSON."""
        tree = cast("dict[str, dict[str, object]]", msgspec.to_builtins(self, enc_hook=str))
        if self.chunk.tokens is None:
            tree["chunk"]["tokens"] = "auto"
        return cast("dict[str, object]", tree)


class Setting(NamedTuple):
    """One key of the schema, for people."""

    key: str  # dotted
    default: str  # as it would be written in YAML
    expects: str
    meaning: str


_SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "host": Host,
    "disk": Disk,
    "chunk": Chunk,
    "offload": Offload,
    "log": Log,
    "trace": Trace,
    "integrity": Integrity,
    "encryption": Encryption,
}

# Files that are written or read only where one is named.
_OPTIONAL_FILES: Final = (("trace", "record"), ("integrity", "hmac_key_file"), ("encryption", "key_file"))


def settings() -> Iterator[Setting]:
    """Every key of the schema in the order of a file. The README's table is made of this."""
    for field in msgspec.structs.fields(Config):
        yield from _setting_of(field, "")
        for key in msgspec.structs.fields(_SECTIONS[field.name]) if field.name in _SECTIONS else ():
            yield from _setting_of(key, field.name + ".")


def load(path: Path) -> Config:
    """Read a YAML file. Relative paths in it start at its folder. Raises ConfigError, whatever is wrong with it."""
    origin = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        folder = path.absolute().parent
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{shown(origin)}: cannot read it: {reason}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{shown(origin)}: larger than 1 MiB: not a kvtier configuration")
    return parse(tree_of(raw, shown(origin)), origin=shown(origin), folder=folder)


def parse(tree: Mapping[str, object], *, origin: str = "configuration", folder: Path | None = None) -> Config:
    """Check a tree as YAML or JSON gives it, or as `Config.to_tree` made it.

    `origin` begins every error message; relative paths start at `folder` (default: the working directory). `disk` as
    null, false or "off" switches the tier off, true or "on" means its defaults, and so does null for any other section.
    Raises ConfigError.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{origin}: expected keys and values, got {shape_of(tree)}")
    if "version" in tree and (type(tree["version"]) is not int or tree["version"] != VERSION):
        raise ConfigError(
            f"{origin}: `version` is {shape_of(tree['version'])}; this kvtier reads version {VERSION}: "
            "see CHANGELOG for what changed, or leave the key out"
        )
    plain = _plain(tree)
    _refuse_unknown_keys(plain, origin)
    try:
        return msgspec.convert(plain, Config, dec_hook=partial(_decode, folder=folder or Path()))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, plain)}") from error


def _plain(tree: Mapping[str, object]) -> dict[str, Any]:
    """A copy two levels deep in which every way to write a thing has become one."""
    plain: dict[str, Any] = {}
    for name, section in tree.items():
        if name == "disk" and (section is None or section is False or section == "off"):
            plain[name] = None
        elif (section is None and name in _SECTIONS) or (name == "disk" and (section is True or section == "on")):
            plain[name] = {}
        else:
            plain[name] = dict(section) if isinstance(section, Mapping) else section
    chunk = plain.get("chunk")
    if isinstance(chunk, dict) and chunk.get("tokens") == "auto":
        chunk["tokens"] = None
    disk = plain.get("disk")
    if isinstance(disk, dict) and disk.get("min_tokens") == "none":
        disk["min_tokens"] = None
    for name, key in _OPTIONAL_FILES:
        section = plain.get(name)
        if isinstance(section, dict) and (section.get(key) is False or section.get(key) == "off"):
            section[key] = None
    return plain


def _decode(kind: type, value: object, *, folder: Path) -> object:
    """msgspec's hook for the types it does not know. ValueError becomes an error that names the key."""
    if kind is Path:
        if not isinstance(value, str):
            raise ValueError("expected a directory or auto")
        return _to_path(value, folder)
    if issubclass(kind, Duration) and type(value) is int and value == 0:
        value = "0s"
    if issubclass(kind, (Period, PerDay)) and value is False:  # YAML 1.1 reads a bare off as false
        value = "off"
    if not isinstance(value, str):
        # ValueError, not TypeError: msgspec treats both alike, and it is the value that is wrong.
        raise ValueError("it has no unit" if type(value) in (int, float) else "")  # noqa: TRY004
    try:
        return kind(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _to_path(text: str, folder: Path) -> Path:
    try:
        if text == "auto":
            cache = os.environ.get("XDG_CACHE_HOME", "")
            return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "kvtier"
        if not text.strip() or "\0" in text:
            raise ValueError("expected a directory or auto")
        return Path(os.path.normpath((folder / Path(text).expanduser()).absolute()))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"`disk.path` is {text!r}: there is no home directory; name a directory") from error


def _refuse_unknown_keys(plain: Mapping[Any, Any], origin: str) -> None:
    known = {"": Config.__struct_fields__} | {name: section.__struct_fields__ for name, section in _SECTIONS.items()}
    for parent, names in known.items():
        table = plain.get(parent) if parent else plain
        for name in table if isinstance(table, Mapping) else ():
            if name not in names:
                key = f"{parent}.{shown(name)}" if parent else shown(name)
                raise ConfigError(f"{origin}: unknown key `{key}`; {_advice(parent, name, known)}")


def _advice(parent: str, name: object, known: Mapping[str, tuple[str, ...]]) -> str:
    def dotted(section: str, key: str) -> str:
        return f"{section}.{key}" if section else key

    if isinstance(name, str):
        for key in difflib.get_close_matches(name, known[parent], n=1):
            return f"did you mean `{dotted(parent, key)}`?"
        for cutoff in (1.0, 0.75):
            for section, keys in known.items():
                for key in difflib.get_close_matches(name, keys, n=1, cutoff=cutoff):
                    return f"did you mean `{dotted(section, key)}`?"
    return f"{'there' if parent else 'at the top'} may be: {', '.join(known[parent])}"


def _explain(error: msgspec.ValidationError, plain: Mapping[str, Any]) -> str:
    """msgspec's words -> the key, what it is and what was expected."""
    reason, _, where = str(error).partition(" - at `$.")
    key = where.removesuffix("`")
    section, _, name = key.partition(".")
    value = plain.get(section)
    if name and isinstance(value, dict):
        value = value.get(name)
    if not name:
        keys = ", ".join(_SECTIONS[key].__struct_fields__)
        return f"`{key}` is {shape_of(value)}: expected keys below it ({keys}){', on or off' * (key == 'disk')}"
    expects = {setting.key: setting.expects for setting in settings()}[key]
    if ": " in reason:  # a unit that did not parse explains itself and quotes the value
        return f"`{key}`: {reason}"
    return f"`{key}` is {shape_of(value)}: {'it has no unit: ' * (reason == 'it has no unit')}expected {expects}"


def _setting_of(field: msgspec.structs.FieldInfo, prefix: str) -> Iterator[Setting]:
    for meta in getattr(field.type, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.extra:
            default = meta.extra.get("default") or _as_written(field.default)
            yield Setting(prefix + field.name, default, meta.extra["expects"], meta.description or "")


def _as_written(value: object) -> str:
    if value is None:
        return "auto"
    return str(value).lower() if isinstance(value, bool) else str(value)
