"""A wall clock that is wrong for a while."""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
_OFFSET = struct.Struct("q")
_COMPILE_S = 120


class WallClock:
    """That of all processes which are started with its `environment`, until `close`.

    What is measured from (`time.monotonic`) goes on as it was.
    """

    def __init__(self, directory: Path) -> None:
        file, library = directory / "wall-clock", directory / "wall_clock.so"
        compiler = [os.environ.get("CC", "gcc"), "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*compiler, "-o", str(library), str(_SOURCE)], check=True, timeout=_COMPILE_S)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_WALL_CLOCK": str(file)}
        file.write_bytes(_OFFSET.pack(0))
        with file.open("r+b") as opened:
            self._offset = mmap.mmap(opened.fileno(), _OFFSET.size)

    async def be_wrong_by(self, offset_s: int, seconds: float) -> None:
        """Step, and after so long step back."""
        self._offset[:] = _OFFSET.pack(offset_s)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._offset[:] = _OFFSET.pack(0)

    def close(self) -> None:
        """Let go of it."""
        self._offset.close()
