"""`python -m sandbox.keeper RUN LOG MAX_STARTS`: says `ready` once the keeper serves, and leaves it behind.

The keeper is no child of the process that asked for it, so that it does not end with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from protocol.errors import LonghaulError
from sandbox.keeper.keeper import Keeper
from sandbox.namespace.backend import NamespaceBackend
from sandbox.owners import KEEPER_SOCKET, state_dir


def main() -> None:
    """Start a keeper; exit status 1, and why, where none can be."""
    run, log, max_starts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    said, says = os.pipe()
    if os.fork() == 0:
        os.close(said)
        _become_keeper(run, log, max_starts, says)
    os.close(says)
    with os.fdopen(said) as pipe:
        text = pipe.read()
    print(text, flush=True)
    raise SystemExit(0 if text == "ready" else 1)


def _become_keeper(run: str, log: Path, max_starts: int, says: int) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, place)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_keep(run, max_starts, says))
    except (LonghaulError, OSError) as error:
        os.write(says, str(error).encode())
        os._exit(1)
    os._exit(0)


async def _keep(run: str, max_starts: int, says: int) -> None:
    backend = NamespaceBackend(run, max_starts)
    await backend.probe()
    keeper = Keeper(backend, state_dir(backend.owner) / KEEPER_SOCKET)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, keeper.stop)
    os.write(says, b"ready")
    os.close(says)
    await keeper.run()


if __name__ == "__main__":
    main()
