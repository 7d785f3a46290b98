"""Bytes <-> messages: msgpack for the structs, one frame of its own for every array.

    frame 0   b"LH" + u16 schema version + msgpack body (arrays are {"@": frame, "d": dtype, "s": shape})
    frame 1.. the arrays' memory, C-contiguous, little-endian

Encoding copies no array that is already contiguous; decoding gives read-only views of the received frames. Every limit
is checked before memory is touched, and whatever is wrong comes out as one `WireError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from protocol.errors import WireError
from protocol.messages import Message, Wire

SCHEMA_VERSION = 1
_MAGIC = b"LH"
_HEADER = _MAGIC + SCHEMA_VERSION.to_bytes(2, "little")
_DTYPES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64, "u2": np.uint16}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}

Frame = bytes | memoryview
DEFAULT_MAX_BYTES = 1 << 30
DEFAULT_MAX_BODY_BYTES = 16 << 20  # a batch of the largest recipe has 3 MB of turns
MAX_REQUEST_BODY_BYTES = 512 << 10
"""Of what a server is sent: a trajectory of 5,000 turns. A body costs up to 60 times its size in objects."""


class _ArrayRef(msgspec.Struct, frozen=True):
    frame: int = msgspec.field(name="@")
    dtype: str = msgspec.field(name="d")
    shape: list[int] = msgspec.field(name="s")


class Codec:
    """Encodes and decodes `Message`s. Not thread-safe: one codec a socket.

    Args:
        max_bytes: most bytes of one message, all frames together.
        max_frames: most frames of one message.
        max_body_bytes: most bytes of the first frame, which is decoded into objects (the others are not touched).
    """

    def __init__(
        self,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_frames: int = 1 << 16,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_frames = max_frames
        self.max_body_bytes = max_body_bytes
        self._arrays: list[np.ndarray] = []
        self._frames: Sequence[Frame] = ()
        self._used: set[int] = set()
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._encode_array)
        self._decoder = msgspec.msgpack.Decoder(Wire, dec_hook=self._decode_array)

    def encode(self, message: Message) -> list[Frame]:
        """Frames of `message`. Raises `WireError` if it is over a limit or holds an array of another dtype."""
        self._arrays = []
        body = _HEADER + self._encoder.encode(message)
        frames: list[Frame] = [body, *(memoryview(a.data).cast("B") if a.size else b"" for a in self._arrays)]
        self._arrays = []
        self._check_limits(frames, type(message).__name__)
        return frames

    def decode(self, frames: Sequence[Frame]) -> Message:
        """The message in `frames`. Raises `WireError` (kinds: size, version, malformed)."""
        if not frames:
            raise WireError("expected at least one frame, got none", kind="malformed")
        self._check_limits(frames, "incoming message")
        head = memoryview(frames[0])
        if bytes(head[:2]) != _MAGIC:
            raise WireError("not a Longhaul message: the first frame lacks the magic bytes", kind="malformed")
        version = int.from_bytes(head[2:4], "little")
        if version != SCHEMA_VERSION:
            raise WireError(
                f"expected schema version {SCHEMA_VERSION}, got {version}: run the same release on both sides",
                kind="version",
            )
        self._frames, self._used = frames, set()
        try:
            message: Message = self._decoder.decode(head[4:])
            return message
        except msgspec.ValidationError as error:
            raise WireError(f"message does not fit the schema: {error}", kind="malformed") from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise WireError(f"message is not valid msgpack: {error}", kind="malformed") from error
        finally:
            self._frames = ()

    def _check_limits(self, frames: Sequence[Frame], name: str) -> None:
        if len(frames) > self.max_frames:
            raise WireError(f"{name} has {len(frames)} frames, at most {self.max_frames} are allowed", kind="size")
        if len(frames[0]) > self.max_body_bytes:
            raise WireError(
                f"{name} has a body of {len(frames[0])} bytes, at most {self.max_body_bytes} are allowed", kind="size"
            )
        total = sum(len(f) for f in frames)
        if total > self.max_bytes:
            raise WireError(f"{name} has {total} bytes, at most {self.max_bytes} are allowed", kind="size")

    def _encode_array(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise WireError(f"cannot encode a {type(value).__name__}", kind="malformed")
        code = _CODES.get(value.dtype)
        if code is None:
            raise WireError(
                f"arrays of dtype {value.dtype} do not travel; use one of {sorted(_DTYPES)}", kind="malformed"
            )
        # `ascontiguousarray` would turn a scalar into one dimension; `copy=None` copies only if it must
        self._arrays.append(np.asarray(value, order="C"))
        return _ArrayRef(len(self._arrays), code, list(value.shape))

    def _decode_array(self, expected: type, value: Any) -> Any:
        if expected is not np.ndarray:
            raise ValueError(f"no wire form for {expected.__name__}")
        ref = msgspec.convert(value, _ArrayRef)
        if ref.dtype not in _DTYPES:
            raise ValueError(f"unknown array dtype {ref.dtype!r}")
        if not 0 < ref.frame < len(self._frames):
            raise ValueError(f"array frame {ref.frame} is not in a message of {len(self._frames)} frames")
        if ref.frame in self._used:
            raise ValueError(f"array frame {ref.frame} is named twice")
        self._used.add(ref.frame)
        if any(n < 0 for n in ref.shape) or len(ref.shape) > 8:
            raise ValueError(f"impossible array shape {ref.shape}")
        frame = memoryview(self._frames[ref.frame]).toreadonly()
        dtype = np.dtype(_DTYPES[ref.dtype])
        if math.prod(ref.shape) * dtype.itemsize != frame.nbytes:
            raise ValueError(f"array of shape {ref.shape} and {dtype} does not fit its frame of {frame.nbytes} bytes")
        return np.frombuffer(frame, dtype=dtype).reshape(ref.shape)


def validate_finite(name: str, array: np.ndarray) -> None:
    """Raise `WireError` if `array` holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise WireError(f"{name} holds NaN or infinity", kind="malformed")
