"""A file, or a directory of files, by its content: what is in it, and whether some place holds the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from msgspec import Struct

from protocol.errors import ConfigError

_BLOCK = 4 << 20
_THREADS = 8


class Entry(Struct, frozen=True):
    """One file of a tree."""

    path: str  # below the tree; empty where the tree is a single file
    size: int
    sha256: str
    identity: str = ""  # of the file itself: who finds the same one, finds the same content


class Tree(Struct, frozen=True):
    """A file, or a directory, that was at `source` on the launcher's host."""

    source: str
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Of names and contents."""
        lines = "".join(f"{entry.path}\0{entry.size}\0{entry.sha256}\n" for entry in self.entries)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Last part of its path: formats are told by it."""
        return PurePosixPath(self.source).name

    def only(self, wanted: Callable[[str], bool]) -> Tree:
        """Without the files that are not `wanted`, by their paths below it."""
        return Tree(self.source, tuple(entry for entry in self.entries if wanted(entry.path)))


def read_tree(source: Path) -> Tree:
    """Of what is at `source`. Links are followed; hidden files and directories are left out.

    Raises:
        ConfigError: something there cannot be read.
    """
    try:
        paths = sorted(_files(source)) if source.is_dir() else [source]
        with ThreadPoolExecutor(_THREADS) as pool:
            entries = pool.map(lambda path: _entry(path, source), paths)
            return Tree(str(source), tuple(entries))
    except OSError as error:
        raise ConfigError(f"{source} cannot be read, and other hosts need it: {error}", kind="files") from error


def holds(place: Path, entry: Entry) -> bool:
    """Whether `place` is that file: the very same one on a file system that is shared, or one of the same content."""
    try:
        if not place.is_file() or place.stat().st_size != entry.size:
            return False
        return (entry.identity != "" and _identity(place) == entry.identity) or sha256_of(place) == entry.sha256
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_safe(path: str) -> bool:
    """Whether a path stays below the directory that it is joined to."""
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and "\0" not in path and ".." not in parts


def _files(directory: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(directory, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _entry(path: Path, source: Path) -> Entry:
    below = "" if path == source else path.relative_to(source).as_posix()
    return Entry(below, path.stat().st_size, sha256_of(path), _identity(path))


def _identity(path: Path) -> str:
    """Equal for two paths only if they are one file, on hosts that share its file system: size, time and inode.

    A file of another file system would need all three and be changed in the same nanosecond.
    """
    found = path.stat()
    return f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}"
