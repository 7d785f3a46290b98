"""What is at a URL that fsspec knows (s3, gs, a directory, ...), brought to this host once for each content.

    CACHE/urls/KEY/NAME    a file or a directory, whole; KEY is of the URL and of what the store says of every file
    CACHE/urls/KEY.part/   as far as it has come: the next try goes on behind the files that are there

Processes that want the same at once wait for each other. What changes in the store has another KEY.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cluster.files.content import is_safe
from protocol.errors import ConfigError

_AT_ONCE = 4
_MOST_FILES = 100_000
_STALLED_S = 180.0
"""Without one byte for so long, a transfer counts as stuck; the libraries behind URLs try again on their own before."""
_SAY_EVERY_S = 10.0
_LOOK_S = 0.1
_GIB = 1 << 30
_MARKS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "mtime", "LastModified", "last_modified", "created")
"""By which stores tell one content from another."""


def is_url(text: str) -> bool:
    """Whether it is no path of this host."""
    return "://" in text


def open_url(url: str, flag: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there. Raises `ConfigError` where no library for it is installed."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{flag} {url}: {error} (s3:// wants the package s3fs, gs:// gcsfs)", kind="url") from error
    return files, str(root).rstrip("/")


class Source(NamedTuple):
    """Something at a URL that this host needs.

    Args:
        flag: the setting that names it, for messages.
        wanted: of a directory, by their paths below it, the files to bring.
    """

    url: str
    flag: str
    wanted: Callable[[str], bool] = lambda _: True


class _File(NamedTuple):
    path: str  # in the store
    below: str  # the source; empty where it is a single file
    size: int
    mark: str  # another one for another content


def fetch(source: Source, cache: Path, timeout_s: float, tell: Callable[[str], None]) -> Path:
    """Where it is on this host; a `file://` URL is used where it is.

    Args:
        cache: directory that outlives runs.
        timeout_s: longest time of the whole transfer.
        tell: takes a line of progress now and then.

    Raises:
        ConfigError: nothing is there, it cannot be read, does not fit, or does not come in time.
    """
    files, root = open_url(source.url, source.flag)
    if "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol):
        return Path(root)
    name = root.rpartition("/")[2] or "root"
    if not is_safe(name):
        _refuse(source, "its last part is no name of a file")
    listed = _listed(files, root, source)
    lines = "".join(f"{file.below}\0{file.size}\0{file.mark}\n" for file in listed)
    key = hashlib.sha256(f"{source.url}\n{lines}".encode()).hexdigest()[:32]
    whole, part = cache / "urls" / key, cache / "urls" / f"{key}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "urls" / f"{key}.lock", source, timeout_s):
            if not whole.exists():
                part.mkdir(exist_ok=True)
                _Transfer(source, files, part / name, tell).bring(listed, timeout_s)
                if _listed(files, root, source) != listed:
                    _refuse(source, "it was changed while it was being fetched: try again when it stays as it is")
                part.rename(whole)
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        _refuse(source, f"it cannot be kept in {cache}/urls: {error}", error)
    return whole / name


def _listed(files: Any, root: str, source: Source) -> list[_File]:
    """Every wanted file, by its path. Raises `ConfigError`."""
    try:
        info = files.info(root)
        found = {root: info} if info["type"] == "file" else files.find(root, detail=True)
    except FileNotFoundError as error:
        _refuse(source, "nothing is there", error)
    except Exception as error:  # of whatever library stands behind the URL
        _refuse(source, f"it cannot be read: {type(error).__name__}: {error}", error)
    listed = []
    for path, info in sorted(found.items()):
        below = "" if path == root else path.removeprefix(f"{root}/")
        if info["type"] != "file" or path.endswith("/") or not source.wanted(below):
            continue
        if not is_safe(below) or below.startswith("/"):
            _refuse(source, f"the path {below!r} in it is refused: it would leave its directory")
        marks = [f"{name}={info[name]}" for name in _MARKS if info.get(name)]
        if not marks or info.get("size") is None:
            _refuse(source, f"the store tells neither time nor checksum of {path}, so that no change would be seen")
        listed.append(_File(path, below, int(info["size"]), " ".join(marks)))
    if not listed:
        _refuse(source, "no file is there")
    if len(listed) > _MOST_FILES:
        _refuse(source, f"{len(listed)} files are there, at most {_MOST_FILES} are fetched: pack them")
    return listed


class _Transfer:
    """Brings files to `place`, several at once, watched by the caller's thread: libraries may wait for ever."""

    def __init__(self, source: Source, files: Any, place: Path, tell: Callable[[str], None]) -> None:
        self._source, self._files, self._place, self._tell = source, files, place, tell
        self._waiting: queue.SimpleQueue[_File] = queue.SimpleQueue()
        self._came: dict[str, int] = {}  # bytes, by path
        self._failures: list[Exception] = []
        self._stopped = threading.Event()

    def bring(self, listed: list[_File], timeout_s: float) -> None:
        """All of them. Raises `ConfigError` and `OSError`."""
        missing = [file for file in listed if not self._is_here(file)]
        needed, free = sum(file.size for file in missing), shutil.disk_usage(self._place.parent).free
        if needed > free:
            where = f"{self._place.parent} has {free / _GIB:.1f} GiB free"
            _refuse(
                self._source, f"{needed / _GIB:.1f} GiB are to come, {where}: make room, or choose --tasks.cache-dir"
            )
        for file in missing:
            self._waiting.put(file)
        threads = [threading.Thread(target=self._work, name="fetch", daemon=True) for _ in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        try:
            self._watch(threads, needed, timeout_s)
        finally:
            self._stopped.set()

    def _watch(self, threads: list[threading.Thread], needed: int, timeout_s: float) -> None:
        began = moved_at = said_at = time.monotonic()
        before = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(_LOOK_S)
            now, came = time.monotonic(), sum(self._came.values())
            if came != before:
                before, moved_at = came, now
            so_far = f"{came / _GIB:.2f} of {needed / _GIB:.2f} GiB"
            if now > moved_at + _STALLED_S:
                _refuse(
                    self._source, f"no byte came for {_STALLED_S:.0f} s, after {so_far}; the next try goes on there"
                )
            if now > began + timeout_s:
                _refuse(self._source, f"only {so_far} came within --hosts.fetch-s {timeout_s:g}; the next try goes on")
            if now > said_at + _SAY_EVERY_S:
                said_at = now
                self._tell(f"{self._source.flag} {self._source.url}: {so_far}")
        for failure in self._failures:
            if isinstance(failure, ConfigError):
                raise failure
            _refuse(self._source, f"it cannot be read: {type(failure).__name__}: {failure}", failure)

    def _work(self) -> None:
        """Until no file waits; one that fails ends all."""
        with contextlib.suppress(queue.Empty):
            while not self._stopped.is_set():
                file = self._waiting.get_nowait()
                try:
                    self._fetch(file)
                except Exception as error:  # of whatever library stands behind the URL
                    self._failures.append(error)
                    self._stopped.set()

    def _fetch(self, file: _File) -> None:
        from fsspec import Callback

        def moved(size: int | None, value: int, **_: object) -> None:
            self._came[file.path] = value

        place = self._path(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.fetching")
        self._files.get_file(file.path, str(partial), callback=Callback(hooks={"moved": moved}))
        self._came[file.path] = size = partial.stat().st_size
        if size != file.size:
            partial.unlink()
            _refuse(self._source, f"{file.path} came with {size} bytes instead of {file.size}: it is being changed")
        partial.rename(place)

    def _is_here(self, file: _File) -> bool:
        place = self._path(file)
        return place.is_file() and place.stat().st_size == file.size

    def _path(self, file: _File) -> Path:
        return self._place / file.below if file.below else self._place


@contextlib.contextmanager
def _alone(lock: Path, source: Source, timeout_s: float) -> Iterator[None]:
    """Waits for whoever holds the lock, no longer than that one's transfer may take: it ends with its holder."""
    deadline = time.monotonic() + timeout_s
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    _refuse(source, f"another process was still fetching it after {timeout_s:g} s")
                time.sleep(_LOOK_S)
        yield


def _refuse(source: Source, why: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigError(f"{source.flag} {source.url}: {' '.join(why.split())}", kind="url") from cause
