"""A message's frames in few ZMQ frames: small ones are laid end to end in the first, large ones travel as they are.

    part 0    u64 number of frames | u64 length of every frame | the small frames, each padded to 8 bytes
    part 1..  the frames of at least `LARGE` bytes, in order

A ZMQ frame costs system calls and wake-ups at both ends: the four arrays of a 32k-token trajectory take twice as long
in four frames as in one, while laying them end to end costs one copy in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zmq

from protocol.errors import WireError

Frame = bytes | memoryview | zmq.Frame

LARGE = 1 << 20
"""Bytes from which a copy costs more than a ZMQ frame does."""
_COPIED = 1 << 16  # ZMQ copies what is smaller
_MOST_KEPT = 32
_WORD = 8
_PADDING = bytes(_WORD)


class Joiner:
    """Lays frames end to end, in buffers that are used again once ZMQ has sent them.

    New memory of this size costs a page fault every 4 KiB, which is dearer than the copy itself.
    """

    def __init__(self) -> None:
        self._sending: list[tuple[memoryview, zmq.MessageTracker]] = []

    def join(self, frames: Sequence[bytes | memoryview]) -> list[Frame]:
        """The parts that carry `frames`."""
        lengths = [len(frame) for frame in frames]
        pieces: list[bytes | memoryview] = [struct.pack(f"<{1 + len(frames)}Q", len(frames), *lengths)]
        parts: list[Frame] = []
        for frame, length in zip(frames, lengths, strict=True):
            if length >= LARGE:
                parts.append(frame)
                continue
            pieces.append(frame)
            if over := length % _WORD:
                pieces.append(_PADDING[over:])
        size = sum(map(len, pieces))
        return [b"".join(pieces) if size < _COPIED else self._laid(pieces, size), *parts]

    def _laid(self, pieces: Sequence[bytes | memoryview], size: int) -> zmq.Frame:
        buffer = self._free(size)
        offset = 0
        for piece in pieces:
            end = offset + len(piece)
            buffer[offset:end] = piece
            offset = end
        frame = zmq.Frame(buffer[:size], track=True, copy=False)
        self._sending.append((buffer, frame.tracker))
        return frame

    def _free(self, size: int) -> memoryview:
        """A buffer that nobody reads any more."""
        for i, (buffer, tracker) in enumerate(self._sending):
            if tracker.done:
                del self._sending[i]
                if len(buffer) >= size:
                    return buffer
                break
        if len(self._sending) > _MOST_KEPT:
            del self._sending[0]  # it lives on until it is sent
        return memoryview(bytearray(1 << (size - 1).bit_length()))  # a slice of it takes bytes without another copy


def split(parts: Sequence[memoryview], max_frames: int) -> list[memoryview]:
    """The frames that `parts` carry, none of them copied.

    Raises:
        WireError: the lengths do not add up (kind `malformed`), or there are more than `max_frames` (kind `size`).
    """
    if not parts or len(parts[0]) < _WORD:
        raise WireError("expected a table of frames, got none", kind="malformed")
    small = parts[0]
    (num_frames,) = struct.unpack_from("<Q", small)
    if num_frames > max_frames:
        raise WireError(f"message of {num_frames} frames, at most {max_frames} are allowed", kind="size")
    offset = _WORD * (1 + num_frames)
    if len(small) < offset:
        raise WireError(f"a table of {num_frames} frames does not fit {len(small)} bytes", kind="malformed")
    large = iter(parts[1:])
    frames = []
    for length in struct.unpack_from(f"<{num_frames}Q", small, _WORD):
        if length >= LARGE:
            frame = next(large, memoryview(b""))
        else:
            frame = small[offset : offset + length]
            offset += length + -length % _WORD
        if len(frame) != length:
            raise WireError(f"expected a frame of {length} bytes, got {len(frame)}", kind="malformed")
        frames.append(frame)
    if offset != len(small) or next(large, None) is not None:
        raise WireError("the message is longer than its table of frames says", kind="malformed")
    return frames
