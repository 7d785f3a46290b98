"""A disk of its own size for a container: see `guest/cover.c`. Where Longhaul is root on the daemon's own machine.

Bytes and files are bounded exactly, whatever way they are written and whether in a volume or not, and what was written
is gone with the container's last process: nothing that an agent builds can keep a container from being removed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer

from protocol.errors import SandboxError
from sandbox.base import Limits, SandboxSpec
from sandbox.docker.config import GUEST
from sandbox.guest.build import cover_binary, seal_binary

DEADLINE_S = 30.0
ARCHIVE_DEADLINE_S = 300.0
MAX_FILES = 200_000
"""Files, directories and links that one sandbox may make; a namespace sandbox has the same limit."""


class CannotCoverError(Exception):
    """This host or daemon does not allow it. The container is not to be used."""


def why_not(limits: Limits, shares_files: bool, has_guest: bool) -> str:
    """Why a container gets no disk of its own size; empty when it can be tried."""
    if not has_guest:
        return "commands are the daemon's"
    if os.geteuid() != 0 or not shares_files:
        return "Longhaul is not root on the daemon's machine"
    if limits.disk_mib > limits.memory_mib:
        return "sandbox.disk-mib is over sandbox.memory-mib, and what is written counts as memory"
    return ""


async def cover(container: DockerContainer, spec: SandboxSpec) -> None:
    """Bound what a container may write. Its command server has said hello, and nothing else has run in it.

    Nothing can be made at its root afterwards: what the spec wants there is made before. Raises `CannotCoverError`.
    """
    pid = await _pid(container)
    places = (*spec.places, *(spec.user_paths or ()))
    command = [str(cover_binary()), str(pid), str(spec.limits.disk_mib), str(MAX_FILES), *places]
    await _run(command)


async def seal(container: DockerContainer, paths: Iterable[str]) -> None:
    """Make paths of a covered container read-only, for root in it as well; links among them stay as they are.

    Raises `CannotCoverError`.
    """
    pid = await _pid(container)
    await _run([str(seal_binary()), str(pid), *paths])


async def commit_covered(
    client: Docker, container: DockerContainer, binds: list[str], repository: str, tag: str, changes: str
) -> None:
    """A whole container as an image of one layer: what lies over its own layers is not the daemon's to commit.

    Raises `SandboxError` (kind: snapshot) or one of `Failures`.
    """
    pid = await _pid(container)
    left_out = [f".{place}" for place in ("/proc", "/sys", "/dev", GUEST, *binds)]
    with tempfile.TemporaryDirectory(prefix="longhaul-snapshot-") as scratch:
        archive = Path(scratch) / "tree.tar"
        command = ["tar", "--create", "--sparse", "--numeric-owner", "--file", str(archive)]
        command += [f"--exclude={place}/*" for place in left_out]
        command += ["--directory", f"/proc/{pid}/root", "."]
        done = await asyncio.to_thread(
            lambda: subprocess.run(command, capture_output=True, timeout=ARCHIVE_DEADLINE_S, check=False)
        )
        if done.returncode > 1:  # 1: a file changed meanwhile
            said = done.stderr.decode(errors="replace")[-300:]
            raise SandboxError(f"cannot read container {container.id[:12]}: {said}", kind="snapshot")
        parameters = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": changes}
        with archive.open("rb") as file:
            async with client._query("images/create", "POST", params=parameters, data=file) as response:
                await response.text()


async def _run(command: list[str]) -> None:
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    )
    if done.returncode:
        raise CannotCoverError(done.stderr.strip() or f"{Path(command[0]).name} ended with {done.returncode}")


async def _pid(container: DockerContainer) -> int:
    """Process id of a container's first process on this machine. Raises `CannotCoverError`."""
    try:
        state = (await container.show())["State"]
    except DockerError as error:
        raise CannotCoverError(f"the container is not there: {error}") from error
    pid = int(state.get("Pid") or 0)
    if pid <= 1 or not await asyncio.to_thread(_is_guest, pid):
        raise CannotCoverError("the container's processes are not to be seen from here")
    return pid


def _is_guest(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == GUEST.encode()
    except OSError:
        return False
