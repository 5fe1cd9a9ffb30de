"""Every codec keeps the Codec contract."""

import pytest

from kvtier.codec.base import Codec
from kvtier.codec.forms import NumpyForm
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.codec.zstd import ProbedZstd
from kvtier.testing.contracts import CodecContract
from tests.rigs.native import native_form


class TestRaw(CodecContract):
    def make_codec(self) -> Codec:
        return Raw()


class TestBytePlanesInNumpy(CodecContract):
    def make_codec(self) -> Codec:
        return BytePlanes(NumpyForm())


class TestBytePlanesInNativeCode(CodecContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def compile(cls) -> None:
        """Before the clock of the first example runs."""
        native_form()

    def make_codec(self) -> Codec:
        return BytePlanes(native_form())


class TestProbedZstd(CodecContract):
    def make_codec(self) -> Codec:
        return ProbedZstd()
