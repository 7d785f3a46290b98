"""The run's console as a process beside it: started first, told by the end of its input that the run is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from protocol.config import ConsoleSettings

_ROOT = Path(__file__).parents[2]
_START_S = 20.0
_STOP_S = 5.0


class ConsoleProcess:
    """One console; none where it is not wanted."""

    def __init__(self, process: subprocess.Popen[str] | None, log: Path) -> None:
        self._process, self._log = process, log

    async def where(self) -> str:
        """What is to be said of it: its address, or why there is none. Waits for the process to listen, or to end."""
        if self._process is None:
            return ""
        assert self._process.stdout is not None
        try:
            address = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), _START_S)
        except TimeoutError:
            return f"the console does not answer: see {self._log}"
        return f"console {address.strip()}" if address else f"the console did not start: see {self._log}"


@contextlib.contextmanager
def console_beside(settings: ConsoleSettings, directory: Path) -> Iterator[ConsoleProcess]:
    """Serve a run directory until the block ends, however it ends. A console that fails costs the run nothing."""
    log = directory / "logs" / "console.log"
    if not settings.serve:
        yield ConsoleProcess(None, log)
        return
    command = [sys.executable, "-m", "console", str(directory), "--port", str(settings.port), "--until-eof"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *os.environ.get("PYTHONPATH", "").split()])}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the run's: its pages stay until it has stopped
        )
    try:
        yield ConsoleProcess(process, log)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
        process.stdout.close()
