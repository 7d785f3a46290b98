"""The other hosts' side: a tree at its own path if it is there, else out of a cache that is filled over the socket.

    CACHE/objects/SHA256            a whole file, proved by its hash
    CACHE/objects/SHA256.partial    as far as it has come: the next try goes on behind it
    CACHE/trees/DIGEST/NAME         a tree, of links to objects

Several processes of a host may fill one cache at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.files.content import Entry, Tree, holds, is_safe, sha256_of
from cluster.files.serving import FilesError
from protocol.errors import DeadlineError
from protocol.messages import FileFetch, FilePiece
from protocol.sockets import BlockingClient, Keys

_ANSWER_S = 30.0
_AT_ONCE = 4
_GIB = 1 << 30


class Fetcher:
    """Brings trees to this host.

    Args:
        cache: directory that outlives runs.
        endpoint: of the launcher's `FileServer`.
    """

    def __init__(self, cache: Path, endpoint: str, keys: Keys | None) -> None:
        self._objects, self._trees = cache / "objects", cache / "trees"
        self._endpoint, self._keys = endpoint, keys
        self.fetched_bytes = 0

    def bring(self, tree: Tree) -> Path:
        """Where the tree is on this host.

        Raises:
            FilesError: it could not be brought, was not what it should be, or does not fit.
        """
        source = Path(tree.source)
        if all(holds(source / entry.path if entry.path else source, entry) for entry in tree.entries):
            return source
        for entry in tree.entries:
            if not is_safe(entry.path) or not is_safe(tree.name) or len(entry.sha256) != 64:
                raise FilesError(f"a tree with the path {entry.path!r} is refused", kind="unsafe")
        self._objects.mkdir(parents=True, exist_ok=True)
        missing = {entry.sha256: entry for entry in tree.entries if not (self._objects / entry.sha256).exists()}
        self._check_room(tree, list(missing.values()))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for sizes in pool.map(self._fetch, missing.values()):
                self.fetched_bytes += sizes
        return self._linked(tree)

    def _check_room(self, tree: Tree, missing: list[Entry]) -> None:
        needed, free = sum(entry.size for entry in missing), shutil.disk_usage(self._objects).free
        if needed > free:
            raise FilesError(
                f"{tree.source} takes {needed / _GIB:.1f} GiB, {self._objects} has {free / _GIB:.1f} GiB free: make "
                "room, or put it at the same path on a file system that the hosts share",
                kind="space",
            )

    def _fetch(self, entry: Entry) -> int:
        """Bytes that came. Whoever else fetches the same file meanwhile is waited for, and then it is there."""
        final = self._objects / entry.sha256
        partial = self._objects / f"{entry.sha256}.partial"
        with _alone(self._objects / f"{entry.sha256}.lock"):
            if final.exists():
                return 0
            came = self._append(entry, partial)
            if sha256_of(partial) != entry.sha256:
                partial.unlink()
                raise FilesError(f"{entry.path or entry.sha256} arrived with another content", kind="content")
            partial.chmod(0o444)
            partial.rename(final)
        return came

    def _append(self, entry: Entry, partial: Path) -> int:
        client = BlockingClient(self._endpoint, self._keys)
        came = 0
        try:
            with partial.open("ab") as file:
                if file.tell() > entry.size:
                    file.truncate(0)
                while (at := file.tell()) < entry.size:
                    reply = client.request(FileFetch(sha256=entry.sha256, offset=at), _ANSWER_S)
                    if not isinstance(reply, FilePiece) or reply.offset != at or not len(reply.data):
                        raise FilesError(f"{entry.path}: it ended after {at} of {entry.size} bytes", kind="short")
                    file.write(reply.data.data)
                    came += len(reply.data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if isinstance(error, DeadlineError):
                raise
            raise FilesError(f"{partial} cannot be written: {error}", kind="write") from error
        finally:
            client.close()
        return came

    def _linked(self, tree: Tree) -> Path:
        """The tree, made of links; a tree that is there is whole."""
        whole = self._trees / tree.digest
        place = whole / tree.name
        if whole.exists():
            return place
        self._trees.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=self._trees, prefix=f"{tree.digest}."))
        making.chmod(0o755)
        for entry in tree.entries:
            link = making / tree.name / entry.path if entry.path else making / tree.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self._objects.absolute() / entry.sha256)
        with contextlib.suppress(OSError):  # somebody else was as fast
            making.rename(whole)
        shutil.rmtree(making, ignore_errors=True)
        return place


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits for whoever holds the lock: it ends with its holder."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
