"""A generator in a child process of its own, without Ray: for benchmarks, tests and serving by hand."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from actors.generator.generator import Generator
from actors.generator.lifeline import die_with_parent
from protocol.config import Settings
from protocol.errors import DeadlineError, GeneratorError, LonghaulError
from protocol.sockets import Keys

_STOP_TIMEOUT_S = 15.0


class GeneratorProcess:
    """Starts a `Generator`; `with GeneratorProcess(...) as process: process.endpoint`. Arguments as for `Generator`."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        endpoint: str,
        weights_endpoint: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._settings = settings
        self._from_child, to_parent = context.Pipe(duplex=False)
        self._temporary = tempfile.TemporaryDirectory(prefix="generator-", ignore_cleanup_errors=True)
        arguments = {"name": name, "endpoint": endpoint, "weights_endpoint": weights_endpoint}
        self._process = context.Process(
            target=_main,
            args=(to_parent, settings.model_dump_json(), arguments, msgspec.json.encode(keys), self._temporary.name),
            name=f"generator {name}",
        )
        self._process.start()
        to_parent.close()
        self._endpoint = ""

    @property
    def pid(self) -> int:
        """Process id of the generator (its engine core is a child of it)."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def endpoint(self) -> str:
        """Where it listens; waits for the end of the start.

        Raises:
            GeneratorError: it did not start; the message is its own.
            DeadlineError: not within `start_timeout_s`.
        """
        if not self._endpoint:
            timeout_s = self._settings.start_timeout_s
            if not self._from_child.poll(timeout_s):
                raise DeadlineError(f"generator {self._name} was not ready within {timeout_s:g} s", kind="start")
            try:
                said: dict[str, Any] = json.loads(self._from_child.recv_bytes())
            except EOFError:
                raise GeneratorError(f"generator {self._name} ended while it started", kind="start") from None
            if "error" in said:
                raise GeneratorError(said["error"], kind=said["kind"])
            self._endpoint = said["endpoint"]
        return self._endpoint

    def wait(self, timeout_s: float) -> int | None:
        """Exit code once it has ended, or None if it still runs after `timeout_s`."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, as a lost machine would look."""
        self._process.kill()
        self._process.join(_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop it; kill it if it does not."""
        self._process.terminate()
        if self.wait(_STOP_TIMEOUT_S) is None:
            self.kill()
        self._from_child.close()
        self._temporary.cleanup()

    def __enter__(self) -> GeneratorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _main(to_parent: Connection, settings: str, arguments: dict[str, Any], keys: bytes, temporary: str) -> None:
    die_with_parent()
    os.environ["TMPDIR"] = tempfile.tempdir = temporary  # vLLM leaves sockets there
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    decoded = msgspec.json.decode(keys, type=Keys | None)
    asyncio.run(_serve(to_parent, Generator(Settings.model_validate_json(settings), keys=decoded, **arguments)))


async def _serve(to_parent: Connection, generator: Generator) -> None:
    """Waits for SIGTERM, which stops the generator."""
    try:
        endpoint = await generator.start()
    except LonghaulError as error:
        to_parent.send_bytes(json.dumps({"error": str(error), "kind": error.kind}).encode())
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(generator.stop()))
    to_parent.send_bytes(json.dumps({"endpoint": endpoint}).encode())
    await generator.run()
