"""KV to measure with: a capture is read as it was written, and what is made up says so."""

import json

import pytest

from kvtier.bench import kv
from kvtier.bench.base import Conditions
from kvtier.bench.codec import entropy_bound
from kvtier.errors import InputError


@pytest.fixture
def sample(tmp_path):
    entry = {"file": "k.bin", "dtype": "bfloat16", "tokens_per_chunk": 16, "chunk_bytes": 4096, "source": "a model"}
    (tmp_path / "k.bin").write_bytes(bytes(3 * 4096))
    (tmp_path / kv.MANIFEST).write_text(json.dumps([entry]))
    return tmp_path


def conditions(folder, sample=None):
    return Conditions(folder=folder, data_bytes=1 << 20, chunk_bytes=8192, n_repeats=1, sample=sample)


def test_a_capture_is_cut_to_the_chunk_size_that_is_asked_for(sample):
    data = kv.kv_for(measured := conditions(sample, sample))
    assert [len(chunk) for chunk in data.chunks] == [8192]
    assert data.captured
    assert "a model" in measured.notes[0]


def test_without_a_capture_kv_is_made_up_and_the_notes_say_so(tmp_path):
    data = kv.kv_for(measured := conditions(tmp_path))
    assert not data.captured
    assert {len(chunk) for chunk in data.chunks} == {8192}
    assert "made up" in measured.notes[0]


def test_made_up_kv_has_about_the_entropy_of_kv():
    assert entropy_bound(kv.synthetic(1 << 18, 4).chunks, "bfloat16") == pytest.approx(1.48, abs=0.02)


@pytest.mark.parametrize("spoil", [lambda f: (f / "k.bin").unlink(), lambda f: (f / "k.bin").write_bytes(bytes(5))])
def test_a_capture_that_is_not_whole_is_refused_with_the_remedy(sample, spoil):
    spoil(sample)
    with pytest.raises(InputError, match="make kv-sample"):
        kv.captures(sample)
