"""Which guard a configuration asks for: key file -> Guard. Called once per engine, and by tools that open frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.guard import PLAIN, Guard, Hmac
from kvtier.errors import ConfigError
from kvtier.keyfile import read_key_file
from kvtier.keys import Namespace

if TYPE_CHECKING:
    from pathlib import Path

    from kvtier.config import Config


def guard_for(config: Config) -> Guard:
    """The guard of `config`; reads its key file. ConfigError when that cannot be used, or the library is missing."""
    if config.encryption.key_file is not None:
        return AesGcm(_secret(config, config.encryption.key_file, "encryption.key_file"))
    if config.integrity.hmac_key_file is not None:
        return Hmac(_secret(config, config.integrity.hmac_key_file, "integrity.hmac_key_file"))
    return PLAIN


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
