"""Where a run keeps its files, and how nothing of it is left behind.

Lasting results are in the run directory. What must vanish with the run (sockets, Ray's session) is in one private
directory beside the system's temporary files, and its shared-memory segments carry the run's name; both are removed at
the end, or by the next start when the owner was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
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
_LOCK = "lock"
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
        ConfigError: it cannot be written, or holds another run that works, or is not to be resumed.
    """
    directory = (settings.run_dir or _new_directory(Path("runs"))).absolute()
    if (directory / "settings.json").exists() and settings.resume is None:
        with sole_use(directory):  # if it still works, that is the better answer
            pass
        raise ConfigError(
            f"--run-dir {directory} already holds a run: continue it with --resume auto, or choose another directory",
            kind="run_dir",
        )
    _refuse_what_is_forgotten(settings, directory)
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"--run-dir {directory} cannot be written: {error.strerror}", kind="run_dir") from error
    return directory


def _new_directory(parent: Path) -> Path:
    """Named after now; runs that start within the same second have one each."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        directory = parent / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # told by who tries to use it
            pass
        return directory
    raise AssertionError("there is always another name")


@contextlib.contextmanager
def sole_use(directory: Path) -> Iterator[None]:
    """Nobody else runs in a run directory meanwhile, from this host or, where its file system has locks, from another.

    Raises:
        ConfigError: somebody does.
    """
    with (directory / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            who = file.read(200).strip() or "another process"
            raise ConfigError(
                f"--run-dir {directory} is in use by {who}: wait for that run to end, or choose another directory",
                kind="run_dir",
            ) from error
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _refuse_what_is_forgotten(settings: Settings, directory: Path) -> None:
    """A run's own checkpoint that is older than those it goes back to: its journal has forgotten the batches since."""
    if settings.resume in (None, "auto"):
        return
    named = Path(str(settings.resume)).resolve()
    there = complete_checkpoints(directory.resolve())
    steps = [step for step, path in there.items() if path == named]
    if steps and steps[0] not in sorted(there)[-settings.checkpoint.keep :]:
        raise ConfigError(
            f"--resume {settings.resume}: the run in {directory} went on to step {max(there)} and no longer has the "
            "batches since; go on from this checkpoint in another --run-dir",
            kind="run_dir",
        )


def newest_checkpoint(directory: Path) -> Path | None:
    """Of a run directory: the newest complete one."""
    found = complete_checkpoints(directory)
    return found[max(found)] if found else None


def complete_checkpoints(directory: Path) -> dict[int, Path]:
    """Of a run directory, by step."""
    found = [p.parent for p in directory.glob("checkpoints/step-*/checkpoint.json") if p.parent.name[5:].isdigit()]
    return {int(path.name.removeprefix("step-")): path for path in found}


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    return max(complete_checkpoints(directory), default=0)


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
    for pattern in (f"{PREFIX}{files.name}*", f"sem.{PREFIX}{files.name}*"):
        for segment in SHARED_MEMORY.glob(pattern):
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


def name_semaphores(files: RunFiles) -> None:
    """Semaphores that libraries make in this process and in those that it starts have the run's name from now on. Who
    removes them otherwise, a process of Python's own, may be killed with the others."""
    multiprocessing.current_process()._config["semprefix"] = f"/{PREFIX}{files.name}"  # type: ignore[attr-defined]


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
