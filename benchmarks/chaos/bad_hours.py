"""Hours in which nothing dies, and everything lacks something: space on the disk, processors, a Docker daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.daemon_door import DaemonDoor

_DISK = "512m"
_PIECE = bytes(1 << 20)
_BUSY = "while True: pass"
_PROGRAMS = 16


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[bool]:
    """Make `directory` a disk of its own that can be filled, where this process may mount one; whether it is."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "tmpfs", str(directory)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=False)


async def without_space(directory: Path, seconds: float) -> None:
    """Fill the disk that a directory is, to its last byte, for so long."""
    filler = directory / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                await asyncio.to_thread(file.write, _PIECE)
        await asyncio.sleep(seconds)
    finally:
        filler.unlink(missing_ok=True)


async def without_processors(seconds: float) -> None:
    """Have programs that only count want all processors for so long."""
    start = asyncio.create_subprocess_exec
    busy = [await start(sys.executable, "-I", "-S", "-c", _BUSY) for _ in range(_PROGRAMS)]
    try:
        await asyncio.sleep(seconds)
    finally:
        for program in busy:
            program.kill()
        for program in busy:
            await program.wait()


async def without_daemon(door: DaemonDoor, seconds: float) -> None:
    """Have nobody answer for so long; what was connected is cut off."""
    await door.shut()
    try:
        await asyncio.sleep(seconds)
    finally:
        await door.open()
