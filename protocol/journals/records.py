"""How a record of a journal looks: bytes <-> frames, with checksums.

    record    header | u64 length of every frame | the frames
    header    magic, salt, kind, number of frames, position, bytes after the header, xxh3 of those, crc32 of the header

The salt is drawn when a log is made and unknown to whoever wrote a frame's content, so bytes inside a frame never pass
for a record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

Frame = bytes | memoryview

MAGIC = b"LHJ2"
SALT_BYTES = 8
_FIELDS = struct.Struct("<4s8sIIQQQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
_MAX_FRAMES = 1 << 16


class Header(NamedTuple):
    """What stands before a record's frames."""

    magic: bytes
    salt: bytes
    kind: int
    num_frames: int
    position: int
    num_bytes: int  # behind the header
    checksum: int  # of those


class Record(NamedTuple):
    """One record as it was read."""

    position: int
    kind: int
    frames: list[memoryview]


def record_bytes(frames: Sequence[Frame]) -> int:
    """Bytes of a whole record."""
    return HEADER_BYTES + 8 * len(frames) + sum(map(len, frames))


def pack_header(salt: bytes, kind: int, position: int, frames: Sequence[Frame]) -> bytes:
    """Everything of a record but its frames, which follow as they are."""
    assert len(frames) <= _MAX_FRAMES
    table = struct.pack(f"<{len(frames)}Q", *map(len, frames))
    content = xxhash.xxh3_64(table)  # as fast as memory: crc32 of a 32k-token trajectory takes 0.2 ms
    for frame in frames:
        content.update(frame)
    num_bytes = record_bytes(frames) - HEADER_BYTES
    fields = _FIELDS.pack(*Header(MAGIC, salt, kind, len(frames), position, num_bytes, content.intdigest()))
    return fields + _CRC.pack(zlib.crc32(fields)) + table


def parse_header(head: Frame, salt: bytes, position: int) -> Header | None:
    """The header that begins at `position` of the log with this salt; None if none does."""
    if len(head) < HEADER_BYTES:
        return None
    (crc,) = _CRC.unpack_from(head, _FIELDS.size)
    if crc != zlib.crc32(head[: _FIELDS.size]):
        return None
    header = Header(*_FIELDS.unpack_from(head))
    expected = (MAGIC, salt, position)
    right = (header.magic, header.salt, header.position) == expected and header.num_frames <= _MAX_FRAMES
    return header if right else None


def split(header: Header, content: memoryview) -> list[memoryview] | None:
    """Frames of what stands behind a header; None if it is torn or altered."""
    table_bytes = 8 * header.num_frames
    if len(content) != header.num_bytes or header.num_bytes < table_bytes:
        return None
    if xxhash.xxh3_64_intdigest(content) != header.checksum:
        return None
    frames, offset = [], table_bytes
    for length in struct.unpack_from(f"<{header.num_frames}Q", content):
        frames.append(content[offset : offset + length])
        offset += length
    return frames if offset == header.num_bytes else None
