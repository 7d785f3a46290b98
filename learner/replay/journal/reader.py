"""Reading a journal: its records from the newest snapshot on, and one by its position. Nothing is written."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import JournalError
from protocol.journals.records import (
    HEADER_BYTES,
    MAGIC,
    SALT_BYTES,
    Record,
    parse_header,
    record_bytes,
    split,
)

EVENTS, SNAPSHOT = 0, 1


class JournalReader:
    """A log in one directory, as it lies there; its owner may be at work on it.

    Raises:
        JournalError: kinds `missing`, `damaged`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._salt = self._load_salt()
        self._bases = sorted(int(path.stem) for path in directory.glob("*.log")) or [0]

    def read(self, position: int) -> list[memoryview]:
        """Frames of the committed record at `position`. Raises `JournalError` (kinds `corrupt`, `forgotten`)."""
        if position < self._bases[0]:
            raise JournalError(f"offset {position} of {self.directory} was compacted away", kind="forgotten")
        base = self._base_of(position)
        with self._path(base).open("rb") as file:
            file.seek(position - base)
            header = parse_header(file.read(HEADER_BYTES), self._salt, position)
            content = memoryview(file.read(header.num_bytes)) if header else memoryview(b"")
        frames = split(header, content) if header else None
        if frames is None:
            raise JournalError(f"the record at offset {position} of {self.directory} is damaged", kind="corrupt")
        return frames

    def recover(self, skip_corrupt: bool = False) -> Iterator[Record]:
        """All records from the newest snapshot on; a torn tail is cut off. Call it once, before `append`.

        Args:
            skip_corrupt: go on behind a damaged record in the middle instead of raising.

        Raises:
            JournalError: kind `corrupt`, with the offset.
        """
        start = len(self._bases) - 1
        while start > 0 and not self._begins_with_snapshot(self._bases[start]):
            start -= 1
        for base in self._bases[start:]:
            yield from self._scan(base, skip_corrupt)

    def _scan(self, base: int, skip_corrupt: bool) -> Iterator[Record]:
        data = _mapped(self._path(base))
        offset = 0
        while offset < len(data):
            record = self._parse(data, offset, base + offset)
            if record is not None:
                yield record
                offset += record_bytes(record.frames)
                continue
            following = self._next_valid(data, offset, base)
            if following is None and base == self._bases[-1]:
                self._cut(base, offset)
                return
            if not skip_corrupt:
                raise JournalError(
                    f"the record at offset {base + offset} of {self.directory} is damaged and newer ones follow it; "
                    "start with replay.skip_corrupt to go on without it",
                    kind="corrupt",
                )
            offset = len(data) if following is None else following

    def _next_valid(self, data: memoryview, offset: int, base: int) -> int | None:
        """Offset of the next whole record behind a damaged one."""
        content, mark = bytes(data), MAGIC + self._salt
        candidate = content.find(mark, offset + 1)
        while candidate >= 0:
            if self._parse(data, candidate, base + candidate) is not None:
                return candidate
            candidate = content.find(mark, candidate + 1)
        return None

    def _parse(self, data: memoryview, offset: int, position: int) -> Record | None:
        start = offset + HEADER_BYTES
        header = parse_header(data[offset:start], self._salt, position)
        frames = split(header, data[start : start + header.num_bytes]) if header else None
        return Record(position, header.kind, frames) if header and frames is not None else None

    def _begins_with_snapshot(self, base: int) -> bool:
        with self._path(base).open("rb") as file:
            header = parse_header(file.read(HEADER_BYTES), self._salt, base)
            if header is None or header.kind != SNAPSHOT:
                return False
            return split(header, memoryview(file.read(header.num_bytes))) is not None

    def _cut(self, base: int, offset: int) -> None:
        """What follows is torn: the owner may take it away."""

    def _load_salt(self) -> bytes:
        path = self.directory / "salt"
        try:
            salt = path.read_bytes()
        except OSError as error:
            raise JournalError(f"{path} cannot be read: {error.strerror}", kind="missing") from error
        if len(salt) != SALT_BYTES:
            raise JournalError(f"{path} holds {len(salt)} bytes, expected {SALT_BYTES}", kind="damaged")
        return salt

    def _base_of(self, position: int) -> int:
        return self._bases[bisect_right(self._bases, position) - 1]

    def _path(self, base: int) -> Path:
        return self.directory / f"{base:020d}.log"


def _mapped(path: Path) -> memoryview:
    """A file's content, read as it is looked at."""
    if not path.exists() or not path.stat().st_size:
        return memoryview(b"")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content.madvise(mmap.MADV_SEQUENTIAL)
    return memoryview(content)
