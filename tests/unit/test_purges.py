"""purges: a notice reaches every running engine, and a killed one keeps nobody waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.keys import NO_ADAPTER, NO_TENANT, tenant_digest
from kvtier.purges import ENGINES, NOTICES, Listener, Notice, post, unconfirmed, withdraw
from kvtier.types import ChunkKey

FAMILY = b"family-8"
EVERYTHING = Notice(frozenset({FAMILY}), None, only_deleted=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def key(family: bytes = FAMILY, tenant: bytes = NO_TENANT) -> ChunkKey:
    return ChunkKey(family + NO_ADAPTER + tenant + b"hash")


def test_a_notice_arrives_as_it_was_posted(folder: Path) -> None:
    engine = Listener(folder)
    notice = Notice(frozenset({FAMILY, b"another8"}), tenant_digest("a"), only_deleted=True)
    name = post(folder, notice)
    assert engine.news() == [(name, notice)]
    engine.close()


def test_an_engine_is_waited_for_until_it_confirms(folder: Path) -> None:
    engine = Listener(folder)
    name = post(folder, EVERYTHING)
    assert unconfirmed(folder, name) == [os.getpid()]
    engine.confirm(name)
    assert unconfirmed(folder, name) == []
    assert engine.news() == []
    engine.close()


def test_every_engine_is_waited_for(folder: Path) -> None:
    engines = [Listener(folder) for _ in range(3)]
    name = post(folder, EVERYTHING)
    engines[1].confirm(name)
    assert len(unconfirmed(folder, name)) == 2
    for engine in engines:
        engine.close()
    assert unconfirmed(folder, name) == []


def test_a_killed_engine_is_not_waited_for_and_its_file_goes(folder: Path) -> None:
    code = "import os, sys; from pathlib import Path; from kvtier.purges import Listener; Listener(Path(sys.argv[1]))"
    code += "; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert len(list((folder / ENGINES).iterdir())) == 1
    assert unconfirmed(folder, post(folder, EVERYTHING)) == []
    assert list((folder / ENGINES).iterdir()) == []


def test_a_withdrawn_notice_is_news_to_nobody(folder: Path) -> None:
    withdraw(folder, post(folder, EVERYTHING))
    engine = Listener(folder)
    assert engine.news() == []
    engine.close()


@pytest.mark.parametrize(
    "content", ["", "{", '{"families": ["xy"]}', '{"families": 7, "tenant": null, "only_deleted": false}']
)
def test_a_damaged_notice_is_left_alone(content: str, folder: Path) -> None:
    (folder / NOTICES).mkdir()
    (folder / NOTICES / "1").write_text(content)
    engine = Listener(folder)
    name = post(folder, EVERYTHING)
    assert engine.news() == [(name, EVERYTHING)]
    engine.close()


def test_a_notice_nobody_can_still_need_is_removed_by_the_next(folder: Path) -> None:
    old = folder / NOTICES / post(folder, EVERYTHING)
    os.utime(old, (0, 0))
    name = post(folder, EVERYTHING)
    assert [path.name for path in (folder / NOTICES).iterdir()] == [name]


def test_a_notice_fits_its_families_and_its_tenant() -> None:
    assert EVERYTHING.fits(key())
    assert not EVERYTHING.fits(key(family=b"another8"))
    of_a = EVERYTHING._replace(tenant=tenant_digest("a"))
    assert of_a.fits(key(tenant=tenant_digest("a")))
    assert not of_a.fits(key(tenant=tenant_digest("b")))
    assert not of_a.fits(key())
