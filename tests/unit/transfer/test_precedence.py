import threading

import pytest

from kvtier.transfer import precedence
from kvtier.transfer.precedence import LoadsFirst


def test_without_loads_nobody_waits():
    assert not LoadsFirst().give_way()


def test_a_spill_waits_until_the_last_load_has_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 20.0)
    loads, order = LoadsFirst(), []
    loads.began()
    loads.began()

    def spill() -> None:
        assert loads.give_way()
        order.append("spill")

    spiller = threading.Thread(target=spill)
    spiller.start()
    for _ in range(2):
        order.append("load")
        loads.ended()
    spiller.join(20)
    assert order == ["load", "load", "spill"]


def test_a_spill_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 0.001)
    loads = LoadsFirst()
    loads.began()
    assert loads.give_way()
