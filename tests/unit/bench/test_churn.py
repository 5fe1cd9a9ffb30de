"""Churn: what the benchmark asks of the tier, on a small one, and that it tells when it is not so."""

from itertools import count
from pathlib import Path

import pytest

from kvtier.bench import churn
from kvtier.bench.base import Conditions
from kvtier.store.lmdb import LmdbStore

MIB = 1 << 20


def conditions(folder: Path) -> Conditions:
    return Conditions(folder=folder, data_bytes=24 * MIB, chunk_bytes=MIB // 8, n_repeats=1)


@pytest.mark.parametrize("victims", churn.VICTIMS)
def test_all_is_replaced_several_times_within_the_capacity(tmp_path, victims):
    one = churn.churn(conditions(tmp_path), victims)
    assert len(one.rates) == 10
    assert one.rate > 0
    assert one.bytes_over == 0
    assert one.n_refused == 0
    assert one.amplification > 1.0
    assert not any((tmp_path / f"churn-{victims}").iterdir())


def test_bytes_beyond_the_capacity_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(churn, "_bytes_in", lambda _: 70 * MIB)
    assert churn.churn(conditions(tmp_path), "fifo").bytes_over == 6 * MIB


def test_a_shard_that_has_no_room_is_counted_and_the_run_goes_on(tmp_path, monkeypatch):
    write, n_calls = LmdbStore.write, count(1)

    def full_at_times(store, shard, puts, deletes):
        if puts and next(n_calls) % 50 == 0:
            raise churn.StoreFullError("no room")
        write(store, shard, puts, deletes)

    monkeypatch.setattr(LmdbStore, "write", full_at_times)
    assert churn.churn(conditions(tmp_path), "random").n_full > 0


def test_the_figures_have_their_names_and_peers(tmp_path):
    results = {result.name: result for result in churn.run(conditions(tmp_path))}
    assert set(results) == {
        "churn.last_vs_first",
        "churn.gb_per_s",
        "churn.max_bytes_over_capacity",
        "churn.write_amplification",
        "churn.cpu_s_per_gb",
    }
    assert set(results["churn.last_vs_first"].vs) == set(churn.VICTIMS)
    assert "file_per_chunk" in results["churn.gb_per_s"].vs
