"""BytePlanes codec: 16-bit floats split into two byte planes; the exponent side shrinks, the mantissa side is noise."""

from __future__ import annotations

import numpy as np

from kvtier.codec import entropy
from kvtier.errors import FrameCorruptError

_U16 = np.dtype("<u2")


class BytePlanes:
    """For bfloat16 and float16 chunks. Payload: low bytes, odd tail byte if any, then zstd of the high bytes.

    The high byte of a bf16 is sign and most of the exponent: about 3.3 bits of information. The low byte is mantissa:
    it does not shrink, and zstd over it costs half the speed for no gain. Any input is stored without loss, whatever it
    is; only the ratio depends on it. Payload offsets follow from the length of the chunk, so none are stored.
    """

    codec_id = 1

    def bound(self, n_bytes: int) -> int:
        """Low plane as it is, high plane at zstd's worst."""
        return n_bytes - n_bytes // 2 + entropy.bound(n_bytes // 2)

    def encode_into(self, chunk: memoryview, out: memoryview) -> int:
        """Encode `chunk` into the front of `out`; returns payload bytes."""
        n_values = len(chunk) // 2
        n_low = len(chunk) - n_values
        raw = np.frombuffer(chunk, dtype=np.uint8)
        low = np.frombuffer(out, dtype=np.uint8, count=n_low)
        high = entropy.scratch(n_values)
        # A narrowing cast of 16-bit values runs at 6 GB/s and more, a strided byte copy at 1.2. The high bytes are the
        # narrowing of the same bytes seen one byte later; the last one would read past the end, so it goes alone.
        np.copyto(low[:n_values], raw[: 2 * n_values].view(_U16), casting="unsafe")
        if n_values:
            np.copyto(high[:-1], raw[1 : 2 * n_values - 1].view(_U16), casting="unsafe")
            high[-1] = raw[2 * n_values - 1]
        if n_low > n_values:
            low[n_values] = raw[-1]
        return n_low + entropy.compress_into(high.data, out[n_low:])

    def decode_into(self, payload: memoryview, out: memoryview) -> None:
        """Decode `payload` into `out`; FrameCorruptError unless it fills it exactly."""
        n_values = len(out) // 2
        n_low = len(out) - n_values
        if len(payload) < n_low:
            raise FrameCorruptError(f"payload is {len(payload)} bytes, its low plane alone takes {n_low}")
        high = entropy.scratch(n_values)
        entropy.decompress_into(payload[n_low:], high.data)
        low = np.frombuffer(payload, dtype=np.uint8, count=n_low)
        raw = np.frombuffer(out, dtype=np.uint8)
        # Two whole-array passes: the high bytes widened to 16 bits one byte later, then the low ones into the zeros
        # between. Chunks of 2.8 MiB, out of cache: 4.4 GB/s; multiplying by 256 and adding 3.2, writing with a stride
        # of two 1.2 to 3.3. In pieces that stay in cache it is 5.0, but each numpy call gives the GIL away, and beside
        # a busy scheduler getting it back costs more.
        if n_values:
            raw[0] = 0
            np.copyto(raw[1 : 2 * n_values - 1].view(_U16), high[:-1])
            raw[2 * n_values - 1] = high[-1]
        values = raw[: 2 * n_values].view(_U16)
        np.bitwise_or(values, low[:n_values], out=values)
        if n_low > n_values:
            out[-1] = payload[n_values]
