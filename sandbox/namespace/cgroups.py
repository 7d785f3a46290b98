"""Limits of one sandbox by control groups, version 1 or 2, where this process may make them.

`/sys/fs/cgroup/.../longhaul/<owner>/<sandbox>`: version 1 has one such directory a controller, version 2 one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from sandbox.base import Limits
from sandbox.owners import Owner, is_leftover, parse_owner

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids", "cpu")
PERIOD_US = 100_000
FLEET_WEIGHT = 8  # all sandboxes together weigh, on a busy host, as much as so many ordinary processes
REMOVE_DEADLINE_S = 5.0


class Cgroups:
    """The control groups of one owner's sandboxes."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._roots = _roots()
        self.missing = "" if self._roots else "no memory, pids and cpu controllers that this user may use"
        if self._roots:
            try:
                self._make_groups()
                self._try_to_join()
            except (OSError, subprocess.SubprocessError) as error:
                self.missing = f"cannot make control groups: {error}"
                self.close()

    def _make_groups(self) -> None:
        for root in self._roots:
            (root / self._owner.name).mkdir(parents=True, exist_ok=True)
        shares, weight = str(1024 * FLEET_WEIGHT), str(100 * FLEET_WEIGHT)
        if not _is_v2(self._roots):
            for path in (self._roots[-1], self._roots[-1] / self._owner.name):
                _write(path / "cpu.shares", shares)
            return
        for path in (self._roots[0], self._roots[0] / self._owner.name):
            (path / "cgroup.subtree_control").write_text("+memory +pids +cpu")
            _write(path / "cpu.weight", weight)

    def _try_to_join(self) -> None:
        """Moving a process may be forbidden where making a group is not. Raises CalledProcessError."""
        joins = self.create("probe", Limits())
        try:
            script = 'for file; do echo 0 > "$file" || exit 1; done'
            command = ["sh", "-c", script, "sh", *map(str, joins)]
            subprocess.run(command, check=True, timeout=REMOVE_DEADLINE_S, stderr=subprocess.DEVNULL)
        finally:
            self.remove("probe")

    @property
    def available(self) -> bool:
        """Whether limits hold."""
        return not self.missing

    def create(self, name: str, limits: Limits) -> list[Path]:
        """Make a sandbox's groups; the `cgroup.procs` files that its first process joins. Raises OSError."""
        # What a sandbox writes is memory of a tmpfs: both limits together bound the sum.
        memory = str((limits.memory_mib + limits.disk_mib) << 20)
        quota = round(limits.cpus * PERIOD_US)
        # Beside the commands: bubblewrap's monitor and the guest.
        processes = str(limits.max_processes + 2)
        if _is_v2(self._roots):
            cpu = f"{quota} {PERIOD_US}"
            values = [{"memory.max": memory, "memory.swap.max": "0", "pids.max": processes, "cpu.max": cpu}]
        else:
            values = [
                {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
                {"pids.max": processes},
                {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota)},
            ]
        joins = []
        for root, files in zip(self._roots, values, strict=True):
            path = root / self._owner.name / name
            path.mkdir()
            for file, value in files.items():
                with contextlib.suppress(FileNotFoundError, PermissionError):  # kernels without swap accounting
                    _write(path / file, value)
            joins.append(path / "cgroup.procs")
        return joins

    def remove(self, name: str) -> bool:
        """Remove a sandbox's groups; False while something still runs in them."""
        gone = True
        for root in self._roots:
            try:
                (root / self._owner.name / name).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone

    def close(self) -> None:
        """Remove this owner's groups."""
        for root in self._roots:
            with contextlib.suppress(OSError):
                (root / self._owner.name).rmdir()


def purge_cgroups(run: str) -> int:
    """Kill what runs in the groups of a run (empty: of dead owners) and remove them; how many sandboxes."""
    removed: set[str] = set()
    for root in _roots():
        for path in root.glob("*@*"):
            owner = parse_owner(path.name)
            if owner is None or not is_leftover(owner, run):
                continue
            for sandbox in path.iterdir():
                if sandbox.is_dir():
                    _kill_and_remove(sandbox)
                    removed.add(f"{owner.name}/{sandbox.name}")
            with contextlib.suppress(OSError):
                path.rmdir()
    return len(removed)


def _kill_and_remove(path: Path) -> None:
    deadline = time.monotonic() + REMOVE_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)


def _roots() -> list[Path]:
    """Our directory in each hierarchy; empty where we may not have one."""
    if (MOUNT / "cgroup.controllers").exists():
        return _v2_root()
    roots = [MOUNT / controller for controller in CONTROLLERS]
    if not all(root.is_dir() and os.access(root, os.W_OK) for root in roots):
        return []
    return [root / "longhaul" for root in roots]


def _v2_root() -> list[Path]:
    """The nearest group of this process from which controllers can be passed on (systemd: a delegated one)."""
    for path in _own_v2_groups():
        with contextlib.suppress(OSError):
            available = (path / "cgroup.subtree_control").read_text().split()
            if set(CONTROLLERS) <= set(available) and os.access(path, os.W_OK):
                return [path / "longhaul"]
    return []


def _own_v2_groups() -> Iterator[Path]:
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    path = MOUNT / own.lstrip("/")
    yield path
    while path != MOUNT:
        path = path.parent
        yield path


def _is_v2(roots: list[Path]) -> bool:
    return len(roots) == 1


def _write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
