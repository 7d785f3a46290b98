"""A ZMQ server on an asyncio loop in a thread of its own, beside a program that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable

from protocol.errors import DeadlineError, LonghaulError
from protocol.messages import Message, Refused
from protocol.sockets import Keys, Peer, Server

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 10.0


class ServerThread:
    """Listens from its construction on, until `close()`.

    Args:
        answer: called on the loop, for many messages at once; a `LonghaulError` that it raises is sent as `Refused`.
        look_around: called on the loop every `look_every_s`.
        on_failure: called, with the reason in `failure`, when the thread ends by an exception.

    Attributes:
        endpoint: the bound address.
        failure: what ended the thread before `close()`.

    Raises what listening raises, and `DeadlineError`.
    """

    def __init__(
        self,
        endpoint: str,
        keys: Keys | None,
        *,
        name: str,
        answer: Callable[[Message], Awaitable[Message]],
        look_around: Callable[[], None],
        look_every_s: float,
        on_failure: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._name = name
        self._answer_to = answer
        self._look_around = look_around
        self._look_every_s = look_every_s
        self._on_failure = on_failure
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._closing = asyncio.Event()
        self.endpoint = ""
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(endpoint,), name=name, daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S):
            raise DeadlineError(f"the {name} did not listen on {endpoint} in time", kind="start")
        if self.failure is not None:
            raise self.failure

    def call_soon(self, action: Callable[[], None]) -> None:
        """Call `action` on the loop, unless it has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action)

    def close(self) -> None:
        """Stop listening; open requests end by their deadlines."""
        self.call_soon(self._closing.set)
        self._thread.join(_START_TIMEOUT_S)

    def _run(self, endpoint: str) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._serve(endpoint))
        except BaseException as error:
            self.failure = error
            _log.exception("the %s failed", self._name)
            self._on_failure()
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self, endpoint: str) -> None:
        """Answer. Waits for messages for ever; `close()` unblocks it."""
        server = Server(endpoint, self._keys)
        self.endpoint = server.endpoint
        self._ready.set()
        answering: set[asyncio.Task[None]] = set()
        parts = [
            asyncio.create_task(part)
            for part in (self._closing.wait(), self._keep_looking(), self._read(server, answering))
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*parts, *answering):
                task.cancel()
            await asyncio.gather(*parts, *answering, return_exceptions=True)
            server.close()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            self._look_around()

    async def _read(self, server: Server, answering: set[asyncio.Task[None]]) -> None:
        async for peer, message in server:
            task = asyncio.create_task(self._answer(server, peer, message))
            answering.add(task)
            task.add_done_callback(answering.discard)

    async def _answer(self, server: Server, peer: Peer, message: Message) -> None:
        try:
            reply = await self._answer_to(message)
        except LonghaulError as error:
            reply = Refused(kind=error.label, reason=str(error))
        await server.send(peer, reply)
