"""The first process of a run on a host: it makes the host ready, and sees whether it has what the run needs there."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from msgspec import Struct, structs

from cluster import run_files
from cluster.cleanup import reap_dead_runs
from cluster.hosts import reaper
from cluster.run_files import RunFiles
from protocol.config import Settings

_DESCRIBING = {".json", ".jinja", ".txt", ".model"}


class Prepared(Struct, frozen=True):
    """A host as its agent found and left it."""

    files: RunFiles  # of the run, on that host
    shares_directory: bool  # whether its run directory is the launcher's own
    model: str  # fingerprint of the model directory; empty: there is none


class HostAgent:
    """Ray places one on every host of a run."""

    def prepare(self, settings: Settings, watch: reaper.Watch) -> Prepared:
        """Remove what dead runs left here, make this run's directories, and start the reaper."""
        asyncio.run(reap_dead_runs(settings))
        files = watch.files if watch.is_launcher else run_files.claim_elsewhere(watch.files)
        reaper.spawn(structs.replace(watch, files=files))
        return Prepared(files, _is_marked(files), fingerprint(Path(settings.model.path)))


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


def fingerprint(directory: Path) -> str:
    """Of all in a model directory but its weights, which not every host needs, and which are compared tensor by tensor
    when the first version is pushed. Empty where there is no model.
    """
    if not (directory / "config.json").is_file():
        return ""
    digest = hashlib.sha256()
    for path in sorted(file for file in directory.iterdir() if file.is_file() and file.suffix in _DESCRIBING):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
