"""Every codec keeps the Codec contract."""

from kvtier.codec.base import Codec
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.codec.zstd import ProbedZstd
from kvtier.testing.contracts import CodecContract


class TestRaw(CodecContract):
    def make_codec(self) -> Codec:
        return Raw()


class TestBytePlanes(CodecContract):
    def make_codec(self) -> Codec:
        return BytePlanes()


class TestProbedZstd(CodecContract):
    def make_codec(self) -> Codec:
        return ProbedZstd()
