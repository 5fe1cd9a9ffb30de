"""A measured rate survives a restart, and nothing that happens to its file matters."""

import pytest

from kvtier.keys import Namespace
from kvtier.prior import Prior

NAMESPACE = Namespace({"model": "m"})


def test_a_saved_rate_is_loaded_by_the_next_process(tmp_path):
    Prior(tmp_path, NAMESPACE, "prefill").save(1234.5)
    assert Prior(tmp_path, NAMESPACE, "prefill").load() == 1234.5


def test_another_namespace_has_its_own(tmp_path):
    Prior(tmp_path, NAMESPACE, "prefill").save(1234.5)
    assert Prior(tmp_path, Namespace({"model": "other"}), "prefill").load() == 0.0


def test_small_changes_are_not_written(tmp_path):
    prior = Prior(tmp_path, NAMESPACE, "prefill")
    prior.save(1000.0)
    prior.save(1100.0)
    assert prior.load() == 1000.0
    prior.save(2000.0)
    assert prior.load() == 2000.0


@pytest.mark.parametrize("text", ["", "fast", "nan", "inf", "-3", "1e999", "\0"])
def test_an_unreadable_rate_is_unknown(tmp_path, text):
    prior = Prior(tmp_path, NAMESPACE, "prefill")
    prior.save(1000.0)
    (tmp_path / f"{NAMESPACE.base()}.prefill").write_text(text)
    assert prior.load() == 0.0


def test_a_folder_that_is_gone_is_no_error(tmp_path):
    prior = Prior(tmp_path / "gone", NAMESPACE, "prefill")
    prior.save(1000.0)
    assert prior.load() == 0.0
