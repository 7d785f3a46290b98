"""Arrays as compact bytes for files that people's tools read: named, typed, checked, without code in them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec
import numpy as np

from protocol.errors import WireError

_DTYPES = {"u1", "i4", "f2", "f4"}
_MOST_BYTES = 1 << 30


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays [n] of uint8, int32, float16 or float32 as bytes."""
    plain = {
        name: (array.dtype.str[1:], array.astype(array.dtype.newbyteorder("<")).tobytes())
        for name, array in arrays.items()
    }
    assert all(dtype in _DTYPES for dtype, _ in plain.values())
    return zlib.compress(msgspec.msgpack.encode(plain), 1)


def unpack_arrays(packed: bytes) -> dict[str, np.ndarray]:
    """The arrays. Raises `WireError` where the bytes are none."""
    try:
        engine = zlib.decompressobj()
        content = engine.decompress(packed, _MOST_BYTES)
        if not engine.eof:
            raise ValueError("cut, or too long")
        plain = msgspec.msgpack.decode(content, type=dict[str, tuple[str, bytes]])
        if unknown := {dtype for dtype, _ in plain.values()} - _DTYPES:
            raise ValueError(f"of type {sorted(unknown)[0]!r}")
        return {name: np.frombuffer(data, f"<{dtype}") for name, (dtype, data) in plain.items()}
    except (zlib.error, ValueError, msgspec.MsgspecError) as error:
        raise WireError(f"expected packed arrays: {error}", kind="arrays") from error
