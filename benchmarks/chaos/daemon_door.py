"""The socket through which a Docker daemon is reached, which can be shut: to whoever uses it, the daemon is gone."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

REAL = Path("/var/run/docker.sock")


class DaemonDoor:
    """Relays connections to the local daemon while it is open. Belongs to one asyncio loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"unix://{self._path}"

    async def open(self) -> None:
        """From now on there is a daemon."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def shut(self) -> None:
        """Every connection breaks, and nobody answers any more."""
        assert self._server is not None, "open() comes first"
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writers.clear()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(REAL)
        self._writers |= {writer, inner_writer}
        for source, target in ((reader, inner_writer), (inner_reader, writer)):
            task = asyncio.create_task(_pump(source, target), name="daemon door")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
