"""BytePlanes codec: 16-bit floats split into two byte planes; the exponent side shrinks, the mantissa side is noise."""

from __future__ import annotations

from kvtier.codec import entropy
from kvtier.codec.forms import Form, best_form
from kvtier.codec.pieces import Pieces, gathered, in_rows, scattered
from kvtier.errors import FrameCorruptError


class BytePlanes:
    """For bfloat16 and float16 chunks. Payload: low bytes, odd tail byte if any, then zstd of the high bytes.

    The high byte of a bf16 is sign and most of the exponent: about 3.3 bits of information. The low byte is mantissa:
    it does not shrink, and zstd over it costs half the speed for no gain. Any input is stored without loss, whatever it
    is; only the ratio depends on it. Payload offsets follow from the length of the chunk, so none are stored.
    """

    codec_id = 1

    def __init__(self, form: Form | None = None) -> None:
        """Split and join by `form`, or by the best there is here."""
        self._form = form or best_form()

    def bound(self, n_bytes: int) -> int:
        """Low plane as it is, high plane at zstd's worst."""
        return n_bytes - n_bytes // 2 + entropy.bound(n_bytes // 2)

    def encode_into(self, chunk: memoryview, out: memoryview) -> int:
        """Encode `chunk` into the front of `out`; returns payload bytes."""
        n_values = len(chunk) // 2
        n_low = len(chunk) - n_values
        high = entropy.scratch(n_values).data
        if n_values:
            self._form.split(chunk[: 2 * n_values], out[:n_values], high)
        if n_low > n_values:
            out[n_values] = chunk[-1]
        return n_low + entropy.compress_into(high, out[n_low:])

    def decode_into(self, payload: memoryview, out: memoryview) -> None:
        """Decode `payload` into `out`; FrameCorruptError unless it fills it exactly."""
        n_values = len(out) // 2
        n_low = len(out) - n_values
        if len(payload) < n_low:
            raise FrameCorruptError(f"payload is {len(payload)} bytes, its low plane alone takes {n_low}")
        if n_values:
            self._form.join(payload[:n_values], payload[n_low:], out[: 2 * n_values])
        elif len(payload) > n_low:
            raise FrameCorruptError(f"compressed part is {len(payload) - n_low} bytes, expected none")
        if n_low > n_values:
            out[-1] = payload[n_values]

    def encode_pieces(self, pieces: Pieces, out: memoryview) -> int:
        """As `encode_into`, straight from where the chunk lies."""
        if pieces.odd:
            return self.encode_into(gathered(pieces), out)
        n_values = len(pieces) // 2
        high = entropy.scratch(n_values).data
        for at, rows in pieces.parts():
            here = slice(at // 2, (at + rows.size) // 2)
            self._form.split(rows, out[here], high[here])
        return n_values + entropy.compress_into(high, out[n_values:])

    def decode_pieces(self, payload: memoryview, pieces: Pieces) -> None:
        """As `decode_into`, straight to where the chunk is to lie if that is one array."""
        n_values, rows = len(pieces) // 2, in_rows(pieces)
        if rows is None or len(payload) < n_values:
            with scattered(pieces) as whole:
                self.decode_into(payload, whole)
        else:
            self._form.join(payload[:n_values], payload[n_values:], rows)
