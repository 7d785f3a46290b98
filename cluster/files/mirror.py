"""Checkpoints, exports included, at a URL that fsspec knows (s3, gs, a directory, ...), beside the run directory.

    URL/step-12/...              as in the run directory
    URL/step-12/checkpoint.json  written last: without it the rest counts for nothing

A URL that takes nothing for a while costs the copies, not the run: what is missing is tried again.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.files.urls import Source, fetch, is_url, open_url
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.section import expanded

MANIFEST = "checkpoint.json"
_EVERY_S = 5.0
_LAST_S = 600.0
"""Longest time that the end of a run is held up by its last copies."""


@contextlib.contextmanager
def mirrored(settings: Settings, run_dir: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Copy the checkpoints of a run while it works, and those that are missing at its end."""
    if not settings.checkpoint.url:
        yield
        return
    mirror = Mirror(settings.checkpoint.url, run_dir / "checkpoints", settings.checkpoint.keep, note)
    mirror.start()
    try:
        yield
    finally:
        mirror.close()


class Mirror:
    """Copies complete checkpoints of `directory` to `url`, of which the newest `keep` stay there."""

    def __init__(self, url: str, directory: Path, keep: int, note: Callable[[str], None]) -> None:
        self._files, self._root = open_url(url, "--checkpoint.url")
        self._url, self._directory, self._keep, self._note = url, directory, keep, note
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="checkpoint mirror", daemon=True)
        self._trouble = ""

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Copy what is missing, and end; after ten minutes without that."""
        self._ending.set()
        self._thread.join(_LAST_S)
        if self._thread.is_alive():
            self._note(
                f"{self._url} has not taken the last checkpoint within {_LAST_S:g} s; it is in {self._directory}"
            )

    def sync(self) -> None:
        """Copy what is complete here and not there. Raises what the file system raises."""
        here = steps(path.parent.name for path in self._directory.glob(f"step-*/{MANIFEST}"))
        there = complete_steps(self._files, self._root)
        for step in here[-self._keep :]:
            if step not in there:
                self._copy(step)
        kept = steps(f"step-{step}" for step in {*there, *here})[-self._keep :]
        for step in there:
            if step not in kept:
                self._remove(step)

    def _watch(self) -> None:
        """Waits for checkpoints, some seconds at a time; `close` unblocks it."""
        is_last = False
        while not is_last:
            is_last = self._ending.wait(_EVERY_S)
            try:
                self.sync()
                self._trouble = ""
            except Exception as error:  # of whatever library stands behind the URL
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._note(f"checkpoints cannot be copied to {self._url}: {type(error).__name__}: {error}")

    def _copy(self, step: int) -> None:
        source, target = self._directory / f"step-{step}", f"{self._root}/step-{step}"
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.name != MANIFEST)
        for path in [*files, source / MANIFEST]:
            name = f"{target}/{path.relative_to(source).as_posix()}"
            self._files.makedirs(name.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path), name)

    def _remove(self, step: int) -> None:
        target = f"{self._root}/step-{step}"
        self._files.rm_file(f"{target}/{MANIFEST}")
        self._files.rm(target, recursive=True)


def with_fetched_checkpoint(settings: Settings) -> Settings:
    """`--resume URL`: the newest checkpoint there, brought to this host.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    if settings.resume is None or not is_url(settings.resume):
        return settings
    cache = expanded(settings.tasks.cache_dir).absolute()
    found = fetch_newest(settings.resume, cache, settings.hosts.fetch_s, lambda line: print(line, file=sys.stderr))
    return settings.model_copy(update={"resume": str(found)})


def fetch_newest(url: str, cache: Path, timeout_s: float, tell: Callable[[str], None]) -> Path:
    """The newest complete checkpoint at `url`, in a directory of its name. Raises `ConfigError`, as `fetch`."""
    files, root = open_url(url, "--resume")
    try:
        there = complete_steps(files, root)
    except Exception as error:  # of whatever library stands behind the URL
        raise ConfigError(f"--resume {url} cannot be read: {type(error).__name__}: {error}", kind="resume") from error
    if not there:
        raise ConfigError(f"--resume {url}: no complete checkpoint is there", kind="resume")
    return fetch(Source(f"{url.rstrip('/')}/step-{there[-1]}", "--resume"), cache, timeout_s, tell)


def check_url(settings: Settings) -> None:
    """Raises `ConfigError` where `checkpoint.url` takes no file."""
    if not settings.checkpoint.url:
        return
    files, root = open_url(settings.checkpoint.url, "--checkpoint.url")
    try:
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/.writable", b"1")
        files.rm_file(f"{root}/.writable")
    except Exception as error:  # of whatever library stands behind the URL
        raise ConfigError(
            f"--checkpoint.url {settings.checkpoint.url} cannot be written: {type(error).__name__}: {error}", kind="url"
        ) from error


def complete_steps(files: Any, root: str) -> list[int]:
    """Versions of the complete checkpoints at a URL, oldest first."""
    if not files.exists(root):
        return []
    names = (entry.rstrip("/").rpartition("/")[2] for entry in files.ls(root, detail=False))
    return [step for step in steps(names) if files.exists(f"{root}/step-{step}/{MANIFEST}")]


def steps(names: Any) -> list[int]:
    """Versions out of directory names, in order."""
    return sorted(int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdigit())
