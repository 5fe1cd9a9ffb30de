"""Which guard a configuration asks for: key file -> Guard. Called once per engine, and by tools that open frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.guard import PLAIN, Guard, Hmac
from kvtier.errors import ConfigError
from kvtier.keyfile import read_key_file
from kvtier.keys import Namespace

if TYPE_CHECKING:
    from pathlib import Path

    from kvtier.config import Config


class Secret(NamedTuple):
    """What a guard is made from. Whoever holds it can read and forge frames."""

    kind: str = ""
    key: bytes = b""

    def __repr__(self) -> str:
        return f"Secret({self.kind})"


NO_SECRET: Final = Secret()


def guard_for(config: Config) -> Guard:
    """The guard of `config`; reads its key file. ConfigError when that cannot be used, or the library is missing."""
    return guard_of(secret_for(config))


def secret_for(config: Config) -> Secret:
    """What `config` says of the guard; reads its key file. ConfigError when that cannot be used."""
    if config.encryption.key_file is not None:
        return Secret("encryption", _secret(config, config.encryption.key_file, "encryption.key_file"))
    if config.integrity.hmac_key_file is not None:
        return Secret("integrity", _secret(config, config.integrity.hmac_key_file, "integrity.hmac_key_file"))
    return NO_SECRET


def guard_of(secret: Secret) -> Guard:
    """The guard that `secret` makes. ConfigError when the library for it is missing."""
    if secret.kind == "encryption":
        return AesGcm(secret.key)
    return Hmac(secret.key) if secret.kind == "integrity" else PLAIN


def guarded(namespace: Namespace, guard: Guard) -> Namespace:
    """The namespace of frames under `guard`: a change of key makes what was stored foreign, not corrupt."""
    return Namespace({**namespace.fields, "guard": guard.name}) if guard.name else namespace


def _secret(config: Config, path: Path, setting: str) -> bytes:
    if config.disk is not None and path.resolve().is_relative_to(config.disk.path.resolve()):
        raise ConfigError(
            f"`{setting}`: {path} lies in the directory that it is to protect; keep it where copies of "
            f"{config.disk.path} do not take it along"
        )
    return read_key_file(path, setting)
