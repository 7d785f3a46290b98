"""Who owns what: every backend has one directory, named by its run and its process's pid namespace, pid and start time.

What a dead owner left (the directory, cgroups, containers) is recognised by that name alone, so a reaper needs no
registry and can never touch what a living owner holds. Control groups may be shared by pods and containers that do not
see each other's processes: an owner among processes that cannot be seen from here counts as living.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

NAME = re.compile(
    r"(?P<run>[A-Za-z0-9][A-Za-z0-9_.-]{0,99})@(?P<namespace>\d+)-(?P<pid>\d+)\.(?P<start>\d+)\.(?P<number>\d+)"
)
KEEPER_SOCKET = "keeper"
"""In the directory of an owner that is a keeper (`sandbox/keeper/`): where it is asked for sandboxes."""
_END_DEADLINE_S = 5.0
_ALL_PROCESSES = 0xEFFFFFFC  # inode of the first pid namespace, from which every process is seen (linux/proc_ns.h)
_numbers = itertools.count(1)


class Owner(Struct, frozen=True):
    """A backend in a process. `start` is the process's start time in clock ticks: pids are used again."""

    run: str
    pid: int
    start: int
    number: int  # of the backend among those of its process
    namespace: int = msgspec.field(default_factory=lambda: _namespace("self") or 0)  # of pids: inode

    @property
    def name(self) -> str:
        """Name under which everything of this owner is filed."""
        return f"{self.run}@{self.namespace}-{self.pid}.{self.start}.{self.number}"

    @property
    def keeper(self) -> Path:
        """The socket file that it has if it is a keeper."""
        return state_root() / self.name / KEEPER_SOCKET

    def is_alive(self) -> bool:
        """Whether that very process still runs on this machine, or may."""
        here = _namespace("self")
        if self.namespace == here:
            return _start_time(self.pid) == self.start
        return here != _ALL_PROCESSES or self.namespace in _namespaces()


def new_owner(run: str) -> Owner:
    """A new owner in this process. Raises ValueError for a run name that cannot be part of a file name."""
    pid = os.getpid()
    start = _start_time(pid)
    assert start is not None
    owner = Owner(run, pid, start, next(_numbers))
    if parse_owner(owner.name) != owner:
        raise ValueError(f"a run name is letters, digits, '_', '.' and '-' (at most 100), not {run!r}")
    return owner


def parse_owner(name: str) -> Owner | None:
    """The owner of that name, None when it is no owner's name."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    return Owner(match["run"], *(int(match[part]) for part in ("pid", "start", "number", "namespace")))


def state_root() -> Path:
    """Directory of all owners of this user, the same whatever `TMPDIR` a process has: so the next start
    finds what a killed one has left.
    """
    if os.geteuid() == 0:
        return Path("/run/longhaul")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "longhaul" if runtime else Path("/tmp") / f"longhaul-{os.geteuid()}"


def state_dir(owner: Owner) -> Path:
    """The owner's directory, made private when it is not there."""
    root = state_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.geteuid():
        raise PermissionError(f"{root} belongs to somebody else; remove it or set XDG_RUNTIME_DIR")
    path = root / owner.name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def is_leftover(owner: Owner, run: str) -> bool:
    """Whether a purge of `run` removes this owner's things: those of the run that are of this host (others, which may
    share its control groups, are cleared by their own reapers) or of nobody any more; empty: of the dead."""
    if run:
        return owner.run == run and (owner.namespace == _namespace("self") or not owner.is_alive())
    return not owner.is_alive()


def keeper_of(run: str) -> Owner | None:
    """The living keeper of a run on this host."""
    return next(_keepers(run), None)


def end_keepers(run: str) -> int:
    """Kill the keepers of a run, and with them their sandboxes, and wait until they are gone; how many. Blocking."""
    ended = 0
    for owner in list(_keepers(run)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGKILL)
            ended += 1
        deadline = time.monotonic() + _END_DEADLINE_S
        while owner.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
    return ended


def _keepers(run: str) -> Iterator[Owner]:
    for path in state_root().glob(f"{run}@*/{KEEPER_SOCKET}"):
        owner = parse_owner(path.parent.name)
        if owner is not None and owner.is_alive():
            yield owner


def purge_state(run: str) -> int:
    """Remove the directories of a run, or with an empty name of dead owners; how many."""
    removed = 0
    for path in state_root().glob("*@*"):
        owner = parse_owner(path.name)
        if owner is not None and is_leftover(owner, run):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _namespace(pid: str) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:  # it has ended, or is another user's
        return None


def _namespaces() -> set[int | None]:
    """The pid namespaces of all processes that can be seen."""
    return {_namespace(path.name) for path in Path("/proc").glob("[0-9]*")}


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
