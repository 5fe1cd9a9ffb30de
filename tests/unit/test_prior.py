"""What was measured survives a restart, and nothing that happens to its file matters."""

import pytest

from kvtier.keys import Namespace
from kvtier.prior import Prior

NAMESPACE = Namespace({"model": "m"})


def prior(folder, namespace=NAMESPACE, n=2) -> Prior:
    return Prior(folder, namespace, "prefill", n)


def test_saved_numbers_are_loaded_by_the_next_process(tmp_path):
    prior(tmp_path).save((0.0001234, 0.0))
    assert prior(tmp_path).load() == (0.0001234, 0.0)


def test_another_namespace_has_its_own(tmp_path):
    prior(tmp_path).save((1234.5, 1.0))
    assert prior(tmp_path, Namespace({"model": "other"})).load() is None


def test_a_version_that_kept_another_number_of_them_is_unknown(tmp_path):
    prior(tmp_path).save((1234.5, 1.0))
    assert prior(tmp_path, n=3).load() is None


def test_small_changes_are_not_written(tmp_path):
    kept = prior(tmp_path)
    kept.save((1000.0, 1.0))
    kept.save((1100.0, 1.1))
    assert kept.load() == (1000.0, 1.0)
    kept.save((1000.0, 2.0))
    assert kept.load() == (1000.0, 2.0)


@pytest.mark.parametrize("text", ["", "1", "fast 1", "nan 1", "inf 1", "-3 1", "1e999 1", "\0", "1 2 3"])
def test_unreadable_numbers_are_unknown(tmp_path, text):
    prior(tmp_path).save((1000.0, 1.0))
    (tmp_path / f"{NAMESPACE.base()}.prefill").write_text(text)
    assert prior(tmp_path).load() is None


def test_a_folder_that_is_gone_is_no_error(tmp_path):
    kept = prior(tmp_path / "gone")
    kept.save((1000.0, 1.0))
    assert kept.load() is None
