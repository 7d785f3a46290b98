"""Another process works in a sandbox through this one, where a guest's connection cannot be handed over (containers).

    the other process  <- frames, its own ids ->  Relay  <- the same frames, ids of this side ->  guest

Whoever had the sandbox before is cut off, and the commands that he waits for are killed, all but the one that lasts, as
the guest itself does it where it is handed over. What comes from the other process is checked: a frame too long or too
short ends its connection.
"""

from __future__ import annotations

import asyncio
from typing import cast

from protocol.errors import SandboxError
from sandbox.guest.client import EXEC, HEADER, HELLO_ID, KILL, LISTEN, MAX_FRAME, OWNER, TUNNEL, WORD, GuestClient


class Relay(asyncio.Protocol):
    """Over one connection of the other process, until it or the guest's conversation ends."""

    def __init__(self, client: GuestClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._here: dict[int, int] = {}  # the other side's ids of what it waits for: ids of ours
        self._there: dict[int, int] = {}
        self._commands: set[int] = set()  # of ours
        self._listens: set[int] = set()
        self._ended = False

    def end(self) -> None:
        """Cut the other process off."""
        if self._ended:
            return
        self._ended = True
        self._client.relay(None)
        for request in self._commands:
            self._client.give_up(request)
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._client.relay(self._answer)
        self._write(HELLO_ID, 0, self._client.said_hello)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._buffer += data
        at = 0
        while not self._ended and len(self._buffer) - at >= HEADER.size:
            length, request, op = HEADER.unpack_from(self._buffer, at)
            if not HEADER.size - 4 <= length <= MAX_FRAME:
                self.end()
                return
            if len(self._buffer) - at - 4 < length:
                break
            payload = bytes(self._buffer[at + HEADER.size : at + 4 + length])
            at += 4 + length
            self._take(request, op, payload)
        del self._buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.end()

    # -- below: one frame

    def _take(self, request: int, op: int, payload: bytes) -> None:
        try:
            if op == KILL:
                if len(payload) == WORD.size and (ours := self._here.get(WORD.unpack(payload)[0])) is not None:
                    self._client.give_up(ours)
                return
            if op == TUNNEL:
                if (ours := self._here.get(request)) in self._listens:
                    self._client.forward(op, payload, ours)
                return
            if op == OWNER or request in self._here:
                self.end()
                return
            ours = self._client.forward(op, payload)
        except SandboxError:  # the guest is gone
            self.end()
            return
        self._here[request], self._there[ours] = ours, request
        if op == EXEC:
            self._commands.add(ours)
        elif op == LISTEN:
            self._listens.add(ours)

    def _answer(self, ours: int, status: int, payload: bytes) -> None:
        request = self._there.get(ours)
        if request is None:  # of somebody who was here before
            return
        if ours not in self._listens:  # a tunnel goes on under the id that opened it
            del self._there[ours], self._here[request]
            self._commands.discard(ours)
        self._write(request, status, payload)

    def _write(self, request: int, status: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(HEADER.pack(HEADER.size - 4 + len(payload), request, status) + payload)
