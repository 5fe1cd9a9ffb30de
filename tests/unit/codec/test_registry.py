import pytest

from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.codec.registry import codec_by_id, codec_for
from kvtier.codec.zstd import ProbedZstd
from kvtier.errors import FrameForeignError


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "half", "torch.bfloat16", "BFloat16", "fp16"])
def test_sixteen_bit_floats_are_split_into_planes(dtype: str) -> None:
    assert isinstance(codec_for(dtype), BytePlanes)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2", "uint8", "int8", "float32", "something new"])
def test_everything_else_is_probed(dtype: str) -> None:
    assert isinstance(codec_for(dtype), ProbedZstd)


def test_numbers_on_disk_keep_their_meaning() -> None:
    assert {number: type(codec_by_id(number)) for number in range(3)} == {0: Raw, 1: BytePlanes, 2: ProbedZstd}


def test_an_unknown_number_is_foreign() -> None:
    with pytest.raises(FrameForeignError, match=r"needs codec 200; this build has \[0, 1, 2\]"):
        codec_by_id(200)
