"""The owner's side of a sandbox's tunnel (`tunnel.c`): every connection inside becomes a socket here.

What comes from the other side is checked: a link that was not opened, or more bytes than were granted, ends the link.

Connections outlive whoever takes them. Whoever listens next is given each that has not been answered whole, under the
number that it had, with all that came over it from the beginning; of what he answers, the bytes that were taken from
his predecessor are left out. So he has to answer the same with the same bytes, and a connection carries one exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import cast

Accept = Callable[[socket.socket, int], Awaitable[None]]
"""Takes one end of a connection, whose other end is the sandbox's, and its number among all of that sandbox."""

OPEN, DATA, END, GONE, MORE = 1, 2, 3, 4, 5
HEAD = struct.Struct("<IB")  # link, kind
WORD = struct.Struct("<I")
OPENED = struct.Struct("<QI")  # bytes of an answer that were taken, and how many of these are still on their way in
WINDOW = 1 << 18  # bytes a side may send before more are granted
PIECE = 1 << 16
MOST_LINKS = 64  # as in guest.h

log = logging.getLogger(__name__)


class Tunnel:
    """All links of one sandbox.

    Args:
        send: sends a payload to the guest's side.
        accept: takes each connection from inside.
    """

    def __init__(self, send: Callable[[bytes], None], accept: Accept) -> None:
        self._send = send
        self._accept = accept
        self._links: dict[int, _Link] = {}
        self._starts: set[asyncio.Task[None]] = set()

    def feed(self, payload: bytes) -> bool:
        """Take a frame's payload; False if no guest of ours would have sent it."""
        if len(payload) < HEAD.size:
            return False
        name, kind = HEAD.unpack_from(payload)
        data = payload[HEAD.size :]
        link = self._links.get(name)
        if kind == OPEN:
            if link is not None or len(self._links) >= 2 * MOST_LINKS:  # some of ours may still be closing
                return False
            if len(data) != OPENED.size:
                return False
            taken, held = OPENED.unpack(data)
            if held > min(taken, WINDOW):
                return False
            self._open(name, taken, held)
            return True
        if link is None:  # it ended while this was on its way
            return kind in (DATA, END, GONE, MORE)
        match kind:
            case _ if kind == DATA:
                return link.take(data)
            case _ if kind == END:
                link.end()
            case _ if kind == GONE:
                self._forget(name)
            case _ if kind == MORE and len(data) == WORD.size:
                return link.grant(WORD.unpack(data)[0])
            case _:
                return False
        return True

    def close(self) -> None:
        """End every link."""
        for name in list(self._links):
            self._forget(name)
        for task in self._starts:
            task.cancel()

    def _open(self, name: int, taken: int, held: int) -> None:
        link = _Link(lambda kind, data: self._tell(name, kind, data), lambda: self._ended(name), taken, held)
        self._links[name] = link
        task = asyncio.get_running_loop().create_task(self._start(name, link), name="tunnel link")
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)

    async def _start(self, name: int, link: _Link) -> None:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            theirs.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
            await self._accept(theirs, name)
        except BaseException as error:
            link.abort()
            ours.close()
            theirs.close()
            if not isinstance(error, Exception):  # the tunnel was closed meanwhile
                raise
            # whoever accepts may fail in its own ways: the agent sees a connection that ends
            log.exception("a connection from a sandbox was not taken")
            self._tell(name, GONE, b"")
            self._forget(name)

    def _ended(self, name: int) -> None:
        """Both of our halves are closed. The guest has been told of each."""
        self._links.pop(name, None)

    def _forget(self, name: int) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            link.abort()

    def _tell(self, name: int, kind: int, data: bytes) -> None:
        self._send(HEAD.pack(name, kind) + data)


class _Link(asyncio.Protocol):
    """One connection: bytes from the socket go to the guest as far as it grants, and the other way round.

    Args:
        taken: how many bytes from the socket the guest has already, from a link that was before this one.
        held: how many of these wait there for the sandbox.
    """

    def __init__(
        self, tell: Callable[[int, bytes], None], ended: Callable[[], None], taken: int = 0, held: int = 0
    ) -> None:
        self._tell, self._ended = tell, ended
        self._to_leave_out = taken
        self._transport: asyncio.Transport | None = None
        self._may_send = WINDOW - held
        self._unsent = bytearray()  # read from the socket, not yet granted
        self._all_read = self._end_told = self._guest_ended = self._held_up = self._aborted = False
        self._early = bytearray()  # came before the socket was there
        self._ungranted = 0  # bytes taken from the guest that it has not been granted again

    def take(self, data: bytes) -> bool:
        """Bytes of the guest's; False if they are more than it may send."""
        self._ungranted += len(data)
        if self._ungranted > WINDOW or self._guest_ended:
            return False
        if self._transport is None:
            self._early += data
        elif not self._transport.is_closing():
            self._transport.write(data)
            self._grant()
        return True

    def end(self) -> None:
        """The guest's side has ended."""
        self._guest_ended = True
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            self._close_if_done()

    def grant(self, more: int) -> bool:
        """The guest has room for more; False if it cannot have so much."""
        self._may_send += more
        if self._may_send > WINDOW:
            return False
        if self._transport is not None:
            self._pump()
        return True

    def abort(self) -> None:
        """The link is no more."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    # -- below: asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=PIECE)
        if self._aborted:
            self._transport.abort()
            return
        if self._early:
            self._transport.write(bytes(self._early))
            self._early.clear()
            self._grant()
        if self._guest_ended:
            self.end()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        left_out = min(self._to_leave_out, len(data))
        self._to_leave_out -= left_out
        self._unsent += data[left_out:]
        self._pump()

    def eof_received(self) -> bool:
        """Called by the loop."""
        self._all_read = True
        self._pump()
        return True

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._held_up = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._held_up = False
        self._grant()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        if not self._aborted and not (self._all_read and not self._unsent and self._guest_ended):
            self._tell(GONE, b"")
        self._ended()

    def _grant(self) -> None:
        if not self._held_up and self._ungranted:
            self._tell(MORE, WORD.pack(self._ungranted))
            self._ungranted = 0

    def _pump(self) -> None:
        assert self._transport is not None
        while self._unsent and self._may_send:
            piece = bytes(self._unsent[: min(PIECE, self._may_send)])
            del self._unsent[: len(piece)]
            self._may_send -= len(piece)
            self._tell(DATA, piece)
        if self._transport.is_closing():
            return
        if self._unsent:
            self._transport.pause_reading()
        elif self._all_read:
            if not self._end_told:
                self._end_told = True
                self._tell(END, b"")
            self._close_if_done()
        else:
            self._transport.resume_reading()

    def _close_if_done(self) -> None:
        if self._all_read and not self._unsent and self._guest_ended and self._transport is not None:
            self._transport.close()
