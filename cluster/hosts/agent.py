"""The first process of a run on a host: it makes the host ready, and sees whether it has what the run needs there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec import Struct, structs

from cluster import run_files
from cluster.cleanup import reap_dead_runs
from cluster.files.content import Tree
from cluster.files.fetching import Fetcher
from cluster.hosts import reaper
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.sockets import Keys


class Prepared(Struct, frozen=True):
    """A host as its agent found and left it."""

    files: RunFiles  # of the run, on that host
    shares_directory: bool  # whether its run directory is the launcher's own


class HostAgent:
    """Ray places one on every host of a run."""

    def prepare(self, settings: Settings, watch: reaper.Watch) -> Prepared:
        """Remove what dead runs left here, make this run's directories, and start the reaper."""
        asyncio.run(reap_dead_runs(settings))
        files = watch.files if watch.is_launcher else run_files.claim_elsewhere(watch.files)
        reaper.spawn(structs.replace(watch, files=files))
        return Prepared(files, _is_marked(files))

    def bring(self, trees: list[Tree], cache: Path, endpoint: str, keys: Keys | None) -> dict[str, str]:
        """Have these trees on this host; where each is, by where it is on the launcher's. Raises `FilesError`."""
        fetcher = Fetcher(cache.expanduser(), endpoint, keys)
        return {tree.source: str(fetcher.bring(tree)) for tree in trees}


def mark(files: RunFiles) -> None:
    """On the launcher's host: leave in the run directory what only those find who share it."""
    (files.directory / _MARK).write_text(files.name)


def unmark(files: RunFiles) -> None:
    """Take it away."""
    (files.directory / _MARK).unlink(missing_ok=True)


_MARK = ".launched-here"


def _is_marked(files: RunFiles) -> bool:
    try:
        return (files.directory / _MARK).read_text() == files.name
    except OSError:
        return False
