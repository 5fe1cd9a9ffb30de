"""Which codec suits which KV dtype, and which codec a number in a frame header means."""

from __future__ import annotations

from types import MappingProxyType

from kvtier.codec.base import Codec
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.codec.zstd import ProbedZstd
from kvtier.errors import FrameForeignError

RAW: Codec = Raw()
_PLANES: Codec = BytePlanes()
_ZSTD: Codec = ProbedZstd()

# Numbers are on disk: they are never given to another encoding.
_BY_ID = MappingProxyType({codec.codec_id: codec for codec in (RAW, _PLANES, _ZSTD)})

_SIXTEEN_BIT = frozenset({"bfloat16", "bf16", "float16", "fp16", "half"})


def codec_for(dtype: str) -> Codec:
    """The codec for chunks of KV elements of `dtype`, as `Geometry.dtype` names it; a leading "torch." is ignored.

    Never a wrong choice, only a slower or larger one: every codec keeps any bytes without loss.
    """
    return _PLANES if dtype.lower().removeprefix("torch.") in _SIXTEEN_BIT else _ZSTD


def codec_by_id(codec_id: int) -> Codec:
    """The codec whose number a frame header holds. FrameForeignError when this build has none."""
    try:
        return _BY_ID[codec_id]
    except KeyError:
        raise FrameForeignError(f"frame needs codec {codec_id}; this build has {sorted(_BY_ID)}") from None
