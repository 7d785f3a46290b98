"""An append-only log of checksummed records, in segment files that are deleted once nothing in them is needed.

A position is a byte offset over the whole life of the log; a segment file is named by the position of its first byte.
`append` only queues; `commit` writes all that is queued with as few system calls as it can and may run in another
thread. The records themselves are `protocol/journals/records.py`'s.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from learner.replay.journal.reader import EVENTS, SNAPSHOT, JournalReader
from protocol.errors import JournalError
from protocol.journals.records import SALT_BYTES, Frame, pack_header, record_bytes

Fsync = Literal["always", "interval", "never"]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IOV_MAX = 1024


class _Queued(NamedTuple):
    segment: int
    position: int
    kind: int
    frames: Sequence[Frame]


class Journal(JournalReader):
    """A log in one directory, which only one process may have open.

    Args:
        directory: made if it is missing.
        fsync: `always`: every commit is forced to disk; `interval`: the owner calls `sync` every so often; `never`.
        segment_bytes: a new segment file is begun past this size.

    Raises:
        JournalError: kinds `locked`, `damaged`.
    """

    def __init__(self, directory: Path, fsync: Fsync = "interval", segment_bytes: int = 1 << 28) -> None:
        self.num_syncs = 0
        self.blocked = False  # the last commit failed
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        self._unsynced = False
        self._queue: list[_Queued] = []
        self._queue_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._sync_lock = threading.Lock()  # who returns from `sync` knows that it is done, whoever did it
        self._file = -1
        self._file_base = -1
        self._lock_file = -1
        directory.mkdir(parents=True, exist_ok=True)
        self._lock(directory)
        super().__init__(directory)
        self.end = self._bases[-1] + self._size(self._bases[-1])
        self._written = self.end  # everything before is in the file

    # --- writing --------------------------------------------------------------------------------------------------

    def append(self, frames: Sequence[Frame], kind: int = EVENTS) -> int:
        """Queue a record; its position. Nothing is durable before `commit`. The frames must not change until then."""
        position = self.end
        with self._queue_lock:
            if position - self._bases[-1] >= (1 if kind == SNAPSHOT else self._segment_bytes):
                self._bases.append(position)
            self._queue.append(_Queued(self._bases[-1], position, kind, frames))
        self.end += record_bytes(frames)
        return position

    @property
    def queued(self) -> bool:
        """Whether `commit` has something to do."""
        return bool(self._queue)

    def commit(self) -> int:
        """Write what is queued; everything before the returned position is then as durable as the policy says.

        Raises:
            JournalError: kinds `disk_full` (the queue is kept: commit again when there is room) and `disk`.
        """
        with self._commit_lock:
            try:
                self._write_queue()
                if self._fsync == "always":
                    self._force()
                self.blocked = False
            except OSError as error:
                self.blocked = True
                raise JournalError(
                    f"cannot write the journal in {self.directory}: {error.strerror}",
                    kind="disk_full" if error.errno in _FULL else "disk",
                ) from error
            return self._written

    def sync(self) -> None:
        """Force what was committed to disk; commits go on meanwhile. Under `never` it does nothing.

        Raises:
            JournalError: kind `disk`; what was acknowledged may be lost with the power.
        """
        with self._sync_lock:
            with self._commit_lock:
                if self._fsync == "never" or self._file < 0 or not self._unsynced:
                    return
                self._unsynced = False
                descriptor = os.dup(self._file)  # a commit may begin another segment
            try:
                os.fdatasync(descriptor)
                self.num_syncs += 1
            except OSError as error:
                raise JournalError(
                    f"cannot sync the journal in {self.directory}: {error.strerror}", kind="disk"
                ) from error
            finally:
                os.close(descriptor)

    def drop_before(self, position: int, live: Sequence[int]) -> int:
        """Delete segments that end before `position` and hold no record of `live`; how many."""
        self.sync()
        needed = {self._base_of(p) for p in live} | {self._base_of(position), self._bases[-1]}
        unneeded = [base for base in self._bases if base < position and base not in needed]
        for base in unneeded:
            self._path(base).unlink(missing_ok=True)
        with self._queue_lock:
            self._bases = [base for base in self._bases if base not in unneeded]
        return len(unneeded)

    def close(self) -> None:
        """Commit what is queued, sync, and let another process open the log."""
        try:
            self.commit()
            if self._file >= 0 and self._fsync != "never":
                os.fdatasync(self._file)
        finally:
            for descriptor in (self._file, self._lock_file):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._lock_file = -1

    def _write_queue(self) -> None:
        with self._queue_lock:
            queue = list(self._queue)
        done = 0
        try:
            for segment, together in itertools.groupby(queue, key=lambda queued: queued.segment):
                records = [[pack_header(self._salt, q.kind, q.position, q.frames), *q.frames] for q in together]
                self._write(segment, list(itertools.chain.from_iterable(records)))
                done += len(records)
        finally:
            with self._queue_lock:
                del self._queue[:done]

    def _write(self, segment: int, buffers: list[Frame]) -> None:
        """Write the buffers or nothing."""
        self._open(segment)
        start = offset = self._written - segment
        try:
            for i in range(0, len(buffers), _IOV_MAX):
                part = buffers[i : i + _IOV_MAX]
                left = sum(map(len, part))
                while left:
                    wrote = os.pwritev(self._file, part, offset)
                    offset += wrote
                    left -= wrote
                    part = _rest(part, wrote) if left else part
        except OSError:
            os.ftruncate(self._file, start)
            raise
        self._written = segment + offset
        self._unsynced = True

    def _open(self, segment: int) -> None:
        if segment == self._file_base:
            return
        if self._file >= 0:
            if self._fsync != "never":
                os.fdatasync(self._file)
            os.close(self._file)
        self._file = os.open(self._path(segment), os.O_RDWR | os.O_CREAT, 0o600)
        self._file_base = segment
        if self._fsync != "never":
            self._sync_directory()

    def _force(self) -> None:
        if self._file >= 0 and self._unsynced:
            self._unsynced = False
            os.fdatasync(self._file)
            self.num_syncs += 1

    def _sync_directory(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # --- files ----------------------------------------------------------------------------------------------------

    def _cut(self, base: int, offset: int) -> None:
        """What follows was never acknowledged: it goes, and writing goes on there."""
        os.truncate(self._path(base), offset)
        self.end = self._written = base + offset

    def _size(self, base: int) -> int:
        return self._path(base).stat().st_size if self._path(base).exists() else 0

    def _lock(self, directory: Path) -> None:
        self._lock_file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.lockf(self._lock_file, os.F_TLOCK, 0)
        except OSError as error:
            os.close(self._lock_file)
            raise JournalError(f"another process has the journal in {directory} open", kind="locked") from error

    def _load_salt(self) -> bytes:
        path = self.directory / "salt"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.write_bytes(secrets.token_bytes(SALT_BYTES))
            temporary.replace(path)
        return super()._load_salt()


def _rest(buffers: list[Frame], wrote: int) -> list[Frame]:
    """What is left of the buffers behind their first `wrote` bytes."""
    for i, buffer in enumerate(buffers):
        if wrote < len(buffer):
            return [memoryview(buffer)[wrote:], *buffers[i + 1 :]]
        wrote -= len(buffer)
    return []
