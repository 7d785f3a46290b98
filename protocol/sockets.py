"""ZMQ request/reply and streams, with a deadline on every wait.

A `Server` binds a ROUTER, a `Client` connects a DEALER. Every request carries an 8-byte id that its replies repeat, so
one client runs many requests at once and a reply that comes after its deadline is dropped, counted, and confuses
nobody. ZMQ reconnects by itself; a request lost with a dead peer ends in `DeadlineError`, and the caller decides
whether to ask again.

Endpoints are `ipc://` (guarded by the mode of their directory) or `tcp://`. TCP beyond loopback is refused without
keys; with keys the socket is CURVE: encrypted, both ends authenticated.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import zmq

from protocol.errors import ConfigError, DeadlineError, WireError
from protocol.frames import Joiner, split
from protocol.loop_socket import LoopSocket
from protocol.membership import fence
from protocol.membership.fence import FENCED, Fence, Member
from protocol.messages import Message, Refused
from protocol.wire import DEFAULT_MAX_BYTES, MAX_REQUEST_BODY_BYTES, Codec

_ID_BYTES = 8
_Reply = Message | WireError


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """CURVE keys of a run (Z85). All processes of a run share one pair: holding the secret is belonging to the run."""

    public: str
    secret: str = msgspec.field()
    member: Member | None = None  # the process that holds them: servers are told, and hear its newest generation alone

    @staticmethod
    def generate() -> Keys:
        """A fresh pair."""
        public, secret = zmq.curve_keypair()
        return Keys(public=public.decode(), secret=secret.decode())

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r}, secret=...)"


def host_of(endpoint: str) -> str:
    """Host of an endpoint; of one that is a file, this machine's own."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]") if "tcp://" in endpoint else "127.0.0.1"


def check_endpoint(endpoint: str, keys: Keys | None) -> None:
    """Refuse an endpoint that would listen beyond loopback without encryption."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return
    if not endpoint.startswith("tcp://"):
        raise ConfigError(f"endpoint {endpoint!r}: expected ipc:// or tcp://", kind="endpoint")
    host = host_of(endpoint)
    if keys is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"endpoint {endpoint!r} listens beyond loopback: it needs keys", kind="endpoint")


def _configure(socket: zmq.Socket[Any], keys: Keys | None, *, server: bool, max_bytes: int) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.SNDHWM, 0)  # back-pressure is by protocol (leases, windows); nothing is dropped silently
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    if keys is None:
        return
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    if server:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        return
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.public.encode())
    if keys.member is not None:
        socket.setsockopt(zmq.ROUTING_ID, keys.member.identity())


class _RunMembersOnly:
    """ZAP handler: only clients that hold the run's own public key are let in."""

    def __init__(self, context: zmq.Context[Any], keys: Keys) -> None:
        from zmq.auth.thread import ThreadAuthenticator

        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=self)
        self._allowed = keys.public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by the authenticator's thread for each new connection; `key` is the client's, in Z85."""
        return key == self._allowed

    def stop(self) -> None:
        self._authenticator.stop()


def _decode(codec: Codec, parts: Sequence[zmq.Frame]) -> Message:
    return codec.decode(split([part.buffer for part in parts], codec.max_frames))


def _unless_refused(endpoint: str, message: Message, reply: _Reply) -> Message:
    _notice_replacement(reply)
    if isinstance(reply, Refused):
        raise WireError(f"{endpoint} refused {type(message).__name__}: {reply.reason}", kind=reply.kind)
    if isinstance(reply, WireError):
        raise reply
    return reply


def _notice_replacement(reply: _Reply) -> None:
    if isinstance(reply, Refused) and reply.kind == FENCED:
        fence.replaced(reply.reason)


def _silence(endpoint: str, message: Message, timeout_s: float) -> DeadlineError:
    return DeadlineError(
        f"no answer from {endpoint} to {type(message).__name__} within {timeout_s:g} s", kind="request"
    )


class Peer(msgspec.Struct, frozen=True):
    """Where a reply goes: the sender's identity and the id of its request."""

    identity: bytes
    request: bytes


class Server:
    """A ROUTER socket for one asyncio loop: `async for peer, message in server`, `await server.send(peer, reply)`.

    Waits for messages for ever; `close()` unblocks it. A bad message is answered with `Refused`, counted in
    `num_refused` and not given to the caller; so is one of a process that was replaced (`membership/fence.py`).
    """

    def __init__(self, endpoint: str, keys: Keys | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        check_endpoint(endpoint, keys)
        self.fence = Fence()
        self._context = zmq.Context()
        self._gate = _RunMembersOnly(self._context, keys) if keys and endpoint.startswith("tcp://") else None
        socket = self._context.socket(zmq.ROUTER)
        _configure(socket, keys if self._gate else None, server=True, max_bytes=max_bytes)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket = LoopSocket(socket)
        self._codec = Codec(max_bytes=max_bytes, max_body_bytes=MAX_REQUEST_BODY_BYTES)
        self._joiner = Joiner()
        self.num_refused = 0
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot listen on {endpoint}: {error.strerror or error}", kind="endpoint") from error
        bound = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self.endpoint = bound.rstrip(b"\0").decode()

    def __aiter__(self) -> AsyncIterator[tuple[Peer, Message]]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[tuple[Peer, Message]]:
        while True:
            try:
                received = await self.receive()
            except zmq.ZMQError:
                return
            if received is not None:
                yield received

    async def receive(self) -> tuple[Peer, Message] | None:
        """The next message, or None when it was refused."""
        identity, *rest = await self._socket.receive()
        if len(rest) < 2 or len(rest[0].buffer) != _ID_BYTES:
            self.num_refused += 1
            return None
        peer = Peer(identity.bytes, rest[0].bytes)
        if not self.fence.admits(member := fence.member_of(peer.identity)):
            assert member is not None
            self.num_refused += 1
            newest = self.fence.newest(member.part)
            reason = f"process {member.generation} of {member.part} was replaced by process {newest}: it must end"
            await self.send(peer, Refused(kind=FENCED, reason=reason))
            return None
        try:
            return peer, _decode(self._codec, rest[1:])
        except WireError as error:
            self.num_refused += 1
            await self.send(peer, Refused(kind=error.label, reason=str(error)))
            return None

    async def send(self, peer: Peer, message: Message) -> None:
        """Answer `peer`. A peer that is gone is not an error: its answer is dropped."""
        self._socket.send([peer.identity, peer.request, *self._joiner.join(self._codec.encode(message))])

    def close(self) -> None:
        """Stop listening; waiters end."""
        self._socket.close()
        if self._gate:
            self._gate.stop()
        self._context.term()


class Client:
    """A DEALER socket for one asyncio loop; many requests at once. Use as `async with Client(endpoint) as client`."""

    def __init__(self, endpoint: str, keys: Keys | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        check_endpoint(endpoint, keys)
        self.endpoint = endpoint
        self._context = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        _configure(socket, keys if endpoint.startswith("tcp://") else None, server=False, max_bytes=max_bytes)
        socket.connect(endpoint)
        self._socket = LoopSocket(socket, self._answered)
        self._codec = Codec(max_bytes=max_bytes)
        self._joiner = Joiner()
        self._ids = itertools.count(1)
        self._open: dict[bytes, Callable[[_Reply], None]] = {}
        self.num_late = 0

    async def request(self, message: Message, timeout_s: float) -> Message:
        """The one reply to `message`. Raises `DeadlineError`, or `WireError` if the reply is malformed or `Refused`."""
        reply: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        with self._asked(message, lambda first: None if reply.done() else reply.set_result(first)):
            try:
                async with asyncio.timeout(timeout_s):
                    return _unless_refused(self.endpoint, message, await reply)
            except TimeoutError:
                raise _silence(self.endpoint, message, timeout_s) from None

    async def stream(self, message: Message, timeout_s: float) -> AsyncGenerator[Message]:
        """Every reply to `message` until the caller stops; `timeout_s` is the longest wait for the next one."""
        replies: asyncio.Queue[_Reply] = asyncio.Queue()
        with self._asked(message, replies.put_nowait):
            while True:
                try:
                    async with asyncio.timeout(timeout_s):
                        reply = await replies.get()
                except TimeoutError:
                    raise _silence(self.endpoint, message, timeout_s) from None
                _notice_replacement(reply)
                if isinstance(reply, WireError):
                    raise reply
                yield reply

    @contextlib.contextmanager
    def _asked(self, message: Message, take: Callable[[_Reply], None]) -> Iterator[None]:
        """Send a request; `take` is given what comes back to it meanwhile."""
        self._socket.watch()
        request = next(self._ids).to_bytes(_ID_BYTES, "little")
        self._open[request] = take
        try:
            self._socket.send([request, *self._joiner.join(self._codec.encode(message))])
            yield
        finally:
            del self._open[request]

    def _answered(self, frames: list[zmq.Frame]) -> None:
        """Give a reply to the request that waits for it."""
        request, *parts = frames
        take = self._open.get(request.bytes)
        if take is None:
            self.num_late += 1
            return
        try:
            take(_decode(self._codec, parts))
        except WireError as error:
            take(error)

    async def close(self) -> None:
        """Drop the connection; open requests end by their deadlines."""
        self._socket.close()
        self._context.term()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class BlockingClient:
    """A DEALER socket for plain threads: one request at a time, any thread."""

    def __init__(self, endpoint: str, keys: Keys | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        check_endpoint(endpoint, keys)
        self.endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _configure(self._socket, keys if endpoint.startswith("tcp://") else None, server=False, max_bytes=max_bytes)
        self._codec = Codec(max_bytes=max_bytes)
        self._joiner = Joiner()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._socket.connect(endpoint)

    def request(self, message: Message, timeout_s: float, again_s: float = math.inf) -> Message:
        """The reply to `message`. Raises `DeadlineError`, or `WireError` if the reply is malformed or `Refused`.

        It is sent again every `again_s` seconds: who had it may have died before it answered. For messages that change
        nothing when they come twice.
        """
        mine: set[bytes] = set()
        with self._lock:
            deadline = time.monotonic() + timeout_s
            while (now := time.monotonic()) < deadline:
                request = next(self._ids).to_bytes(_ID_BYTES, "little")
                mine.add(request)
                self._socket.send_multipart([request, *self._joiner.join(self._codec.encode(message))], copy=False)
                until = min(deadline, now + again_s)
                while (left := until - time.monotonic()) > 0:
                    if not self._socket.poll(int(left * 1000) + 1):
                        break
                    answered, *parts = self._socket.recv_multipart(copy=False)
                    if answered.bytes in mine:  # else it is the answer to a request that gave up
                        return _unless_refused(self.endpoint, message, _decode(self._codec, parts))
        raise _silence(self.endpoint, message, timeout_s)

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close(linger=0)
        self._context.term()
