"""Files in shared memory that one process writes and others on the same machine map.

Every name starts with `longhaul-<run>-`, so that whoever cleans up after a killed run finds its files by prefix.

Behind its bytes a segment says which version is being written into it and how far, so that readers can follow close
behind the writer. That is a hint, not a lock: what was read is only trusted once its checksums are those of the writer.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from pathlib import Path

from protocol.errors import WeightsError

DIRECTORY = Path("/dev/shm")
PIECE_BYTES = 1 << 20
"""Written and read at once: small enough for the cache, large enough that the steps between cost nothing."""
STALLED_AFTER_S = 60.0
"""By default, a reader gives up when its writer has not come any further for so long."""
_NOBODY = -1
_WORDS_BYTES = 16
_LOOK_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0002, 0.005
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def segment_path(run: str, name: str) -> Path:
    """Where the segment `name` of `run` lives. Raises `WeightsError` if either could leave the directory."""
    for part in (run, name):
        if not _NAME.fullmatch(part):
            raise WeightsError(f"{part!r} cannot be part of a shared-memory name", kind="segment")
    return DIRECTORY / f"longhaul-{run}-{name}"


def file_identity(path: Path) -> str:
    """Equal in two processes exactly when the path leads both to one file of one kernel; empty where it leads nowhere.

    That two processes share a machine proves nothing: pods on one have a `/dev/shm` each.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # a NUL byte is in no path
        return ""
    booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{booted} {status.st_dev}:{status.st_ino}"


class Segment:
    """A mapped file of fixed size. `buffer` is its memory; it stays mapped while any view of it is alive.

    Attributes:
        num_bytes: what it was made or opened for.
    """

    def __init__(self, path: Path, buffer: mmap.mmap, inode: int, num_bytes: int) -> None:
        self.path = path
        self.buffer = buffer
        self.num_bytes = num_bytes
        self._inode = inode
        self._words = memoryview(buffer)[_words_at(num_bytes) :].cast("q")  # version, bytes written

    def is_current(self) -> bool:
        """Whether the name still leads to this memory (not removed, nor made anew)."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def begin(self, version: int) -> None:
        """`version` is being written, from the first byte on. Readers of another version give up."""
        self._words[0] = _NOBODY
        self._words[1] = 0
        self._words[0] = version

    def advance(self, num_bytes: int) -> None:
        """All bytes before `num_bytes` are those of the version that was begun."""
        self._words[1] = num_bytes

    def withdraw(self) -> None:
        """The version that was begun will never be whole."""
        self._words[0] = _NOBODY

    def wait_written(self, version: int, num_bytes: int, stalled_after_s: float = STALLED_AFTER_S) -> None:
        """Wait until the first `num_bytes` bytes of `version` are there.

        Raises `WeightsError`: `withdrawn` (another version is written there, or the file is removed: its writer died),
        or no byte came for so long.
        """
        pause_s, seen, seen_at = _FIRST_PAUSE_S, self._words[1], time.monotonic()
        look_at = seen_at + _LOOK_S
        while True:
            written, now = self._words[1], time.monotonic()
            if self._words[0] != version:  # looked at after the bytes, which may be those of a later one
                raise WeightsError(f"version {version} is written no further into {self.path}", kind="withdrawn")
            if written >= num_bytes:
                return
            if written != seen:
                seen, seen_at, pause_s = written, now, _FIRST_PAUSE_S
            elif now - seen_at > stalled_after_s:
                raise WeightsError(
                    f"{self.path} has {written} of {num_bytes} bytes for {stalled_after_s:g} s", kind="segment"
                )
            if now > look_at:
                look_at = now + _LOOK_S
                if not self.is_current():
                    raise WeightsError(f"{self.path} was removed before it held version {version}", kind="withdrawn")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @staticmethod
    def file_bytes(num_bytes: int) -> int:
        """Size of the file of a segment for `num_bytes`."""
        return _words_at(num_bytes) + _WORDS_BYTES

    @staticmethod
    def create(path: Path, num_bytes: int) -> Segment:
        """Make (or replace) the file, readable by its owner alone, with all pages present."""
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            size = Segment.file_bytes(num_bytes)
            os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm fails here, not as SIGBUS in a later write
            memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            return Segment(path, memory, os.fstat(descriptor).st_ino, num_bytes)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise WeightsError(
                f"cannot make {path} of {num_bytes} bytes: {error.strerror}; free shared memory", kind="segment"
            ) from error
        finally:
            os.close(descriptor)

    @staticmethod
    def open(path: Path, num_bytes: int, *, writable: bool = False) -> Segment:
        """Map an existing file. Raises `WeightsError` if it is missing or shorter than `num_bytes`."""
        try:
            descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW)
        except OSError as error:
            raise WeightsError(f"cannot open {path}: {error.strerror}", kind="segment") from error
        try:
            status, size = os.fstat(descriptor), Segment.file_bytes(num_bytes)
            if status.st_size < size:
                raise WeightsError(f"{path} has {status.st_size} bytes, expected at least {size}", kind="segment")
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            return Segment(path, mmap.mmap(descriptor, size, flags, protection), status.st_ino, num_bytes)
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Remove the name; the memory goes with the last mapping."""
        self.path.unlink(missing_ok=True)


def _words_at(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8
