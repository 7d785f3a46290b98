"""A ZMQ socket on an asyncio loop, without a future for every message.

Messages that are there are taken at once; only when there is none does the loop watch the socket's descriptor. That
descriptor tells of a change once, to whoever looks first, and sending looks, too: so every look passes on what it saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import zmq

from protocol.frames import Frame

_MOST_IN_A_ROW = 16
"""Messages taken before other tasks of the loop have their turn."""

Take = Callable[[list[zmq.Frame]], None]


class LoopSocket:
    """One socket for one loop: a single task calls `receive`, or every message is given to `take`. Any task sends.

    Args:
        socket: configured and bound or connected by the caller, without a mark for high water: sending never waits.
        take: called with each message, from `watch` on; None: messages wait for `receive`.
    """

    def __init__(self, socket: zmq.Socket[Any], take: Take | None = None) -> None:
        self._socket = socket
        self._take = take
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readable = asyncio.Event()
        self._in_a_row = 0

    def watch(self) -> None:
        """Have the running loop look for messages; done already if it does."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._socket.fileno(), self._look)

    async def receive(self) -> list[zmq.Frame]:
        """The next message. Waits for ever; `close` unblocks it.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        if self._in_a_row >= _MOST_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        while True:
            self._readable.clear()
            frames = self._next()
            if frames is not None:
                self._in_a_row += 1
                return frames
            self.watch()
            await self._readable.wait()
            self._in_a_row = 0

    def send(self, frames: Sequence[Frame]) -> None:
        """Hand a message to ZMQ. Large frames are not copied: they must not change any more."""
        self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        self._look()

    def close(self) -> None:
        """Drop the connection and what was not sent yet."""
        if self._loop is not None and not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=0)
        self._readable.set()

    def _look(self) -> None:
        if self._socket.closed or not cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            return
        if self._take is None:
            self._readable.set()
            return
        for _ in range(_MOST_IN_A_ROW):
            frames = self._next()
            if frames is None:
                return
            self._take(frames)
        if self._loop is not None:
            self._loop.call_soon(self._look)

    def _next(self) -> list[zmq.Frame] | None:
        try:
            frames: list[zmq.Frame] = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            return frames
        except zmq.Again:
            return None
