"""Where a run keeps its files, and how nothing of it is left behind.

Lasting results are in the run directory. What must vanish with the run (sockets, Ray's session) is in one private
directory beside the system's temporary files, and its shared-memory segments carry the run's name; both are removed at
the end, or by the next start when the owner was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil
from msgspec import Struct

from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.owners import Owner, new_owner

PREFIX = "longhaul-"
SHARED_MEMORY = Path("/dev/shm")
_OWNER_FILE = "owner"
_KILL_WAIT_S = 2.0


class RunFiles(Struct, frozen=True):
    """Paths of one run. `name` is unique on this host and part of every name that the run gives away."""

    name: str
    directory: Path  # lasting: settings, metrics, logs, checkpoints, trajectories
    private: Path  # 0700, gone with the run

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def ray(self) -> Path:
        return self.private / "ray"

    @property
    def temporary(self) -> Path:
        """Where processes make temporary files; torch and vLLM leave some (sockets, caches of compiled code)."""
        return self.private / "tmp"

    def socket(self, name: str) -> str:
        """ZMQ endpoint of a process on this host."""
        return f"ipc://{self.private}/{name}"


def choose_directory(settings: Settings) -> Path:
    """The run directory, made and shown to be writable.

    Raises:
        ConfigError: it cannot be written, or holds another run that is not to be resumed.
    """
    directory = settings.run_dir or Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory = directory.absolute()
    if (directory / "settings.json").exists() and settings.resume is None:
        raise ConfigError(
            f"--run-dir {directory} already holds a run: continue it with --resume auto, or choose another directory",
            kind="run_dir",
        )
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"--run-dir {directory} cannot be written: {error.strerror}", kind="run_dir") from error
    return directory


def newest_checkpoint(directory: Path) -> Path | None:
    """Of a run directory: the newest complete one."""
    found = [p.parent for p in directory.glob("checkpoints/step-*/checkpoint.json") if p.parent.name[5:].isdigit()]
    return max(found, key=_step_of, default=None)


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    checkpoint = newest_checkpoint(directory)
    return _step_of(checkpoint) if checkpoint else 0


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def claim(directory: Path) -> RunFiles:
    """Make the private directory of a run, marked with its owner (this process)."""
    private = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(4)}"
    private.mkdir(mode=0o700)
    own(private)
    files = RunFiles(private.name.removeprefix(PREFIX), directory, private)
    files.temporary.mkdir()
    return files


def claim_elsewhere(files: RunFiles) -> RunFiles:
    """The same run's files on a host that the launcher is not on: a private directory, not owned yet, beside this
    host's temporary files, and the run directory under the same path (which a shared file system makes the same one).
    """
    private = Path(tempfile.gettempdir()) / files.private.name
    private.mkdir(mode=0o700, exist_ok=True)
    here = RunFiles(files.name, files.directory, private)
    here.temporary.mkdir(exist_ok=True)
    here.logs.mkdir(parents=True, exist_ok=True)
    return here


def own(private: Path) -> None:
    """This process is the owner of a private directory from now on."""
    (private / _OWNER_FILE).write_text(f"{os.getpid()} {new_owner('run').start} {_boot()}")


def has_owner(private: Path) -> bool:
    """Whether somebody has ever owned it."""
    return (private / _OWNER_FILE).exists()


def release(files: RunFiles) -> None:
    """Remove everything of a run but its results. Ray's logs move to the run directory first."""
    for log_dir in files.ray.glob("session_2*/logs"):
        shutil.copytree(log_dir, files.logs / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)
    reap(files)


def dead_runs() -> list[RunFiles]:
    """Runs on this host whose owner is gone (killed before it could release them)."""
    found = []
    for private in Path(tempfile.gettempdir()).glob(PREFIX + "[0-9a-f]" * 8):
        if _is_mine(private) and not owner_lives(private):
            found.append(RunFiles(private.name.removeprefix(PREFIX), private, private))
    return found


def reap(files: RunFiles) -> None:
    """Remove what must vanish with a run. Some of Ray's processes outlive their launcher by a minute: not here."""
    processes = processes_in(files.private)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_KILL_WAIT_S)
    shutil.rmtree(files.private, ignore_errors=True)
    for segment in SHARED_MEMORY.glob(f"{PREFIX}{files.name}*"):
        segment.unlink(missing_ok=True)


def _is_mine(private: Path) -> bool:
    try:
        return private.is_dir() and private.stat().st_uid == os.getuid() and (private / _OWNER_FILE).exists()
    except OSError:
        return False


def owner_lives(private: Path) -> bool:
    """Whether the process that owns a private directory is still there: by its start in ticks since this boot, which
    no step of the clock moves."""
    try:
        match = re.fullmatch(r"(\d+) (\d+) (\S+)", (private / _OWNER_FILE).read_text())
    except OSError:  # it is being removed
        return False
    if not match:  # being written right now, or damaged: only an old one is surely dead
        return time.time() - private.stat().st_mtime < 60
    return match[3] == _boot() and Owner("run", int(match[1]), int(match[2]), 0).is_alive()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def hold(files: RunFiles, name: str) -> TextIO:
    """This process is the part `name` of a run, for as long as the file is open."""
    return (files.private / f"{name}.{os.getpid()}").open("w")


def end_part(files: RunFiles, name: str) -> None:
    """SIGKILL the process of this host that is the part `name`, whatever state it is in."""
    for held in files.private.glob(f"{name}.*"):
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(int(held.suffix[1:]))
            if str(held.resolve()) in [
                file.path for file in process.open_files()
            ]:  # its number may be another's by now
                process.kill()


def processes_in(directory: Path) -> list[psutil.Process]:
    """Processes of this user that have a file below `directory` open."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            links = Path(f"/proc/{process.pid}/fd").iterdir()
            if any(str(link.readlink()).startswith(f"{directory}/") for link in links):
                found.append(process)
    return found
