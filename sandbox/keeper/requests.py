"""What a process asks the keeper, over a socket file that only this user can open: one request a connection.

A connection of `Create`, `Hold` or `Adopt` becomes, after its reply, the conversation with the sandbox's guest. One of
`Attend` stays open as the sign of life of the process that asks.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from protocol.errors import SandboxError
from sandbox.base import Capabilities, SandboxSpec, Snapshot

PING, LEAVE, REPLACED = b"p", b"l", b"r"
"""Said over a connection of `Attend`: a ping is answered with a ping; who leaves wants none of its sandboxes kept; who
is replaced hears of it."""

_LENGTH = struct.Struct("<I")
_MOST_BYTES = 1 << 20


class Attend(Struct, frozen=True, kw_only=True, tag=True):
    """This process is `actor` now, whoever was before. Answered by `Attending`."""

    actor: str


class Create(Struct, frozen=True, kw_only=True, tag=True):
    """Start a sandbox, under a name of the asker's. Answered by `Given`."""

    pass_word: str
    name: str
    spec: SandboxSpec


class Adopt(Struct, frozen=True, kw_only=True, tag=True):
    """Take over the kept sandbox of a lease. Answered by `Given`, or by `Done`: there is none."""

    pass_word: str
    lease: str


class HeldContainer(Struct, frozen=True, kw_only=True):
    """A container as whoever works in it must know it."""

    url: str  # of its daemon
    tls_dir: str
    container: str  # its id
    covered: bool = False  # it has a disk of its own size
    is_users: bool = False  # it was handed over to a user without root
    image: str = ""


class Hold(Struct, frozen=True, kw_only=True, tag=True):
    """Attach to a container that was made, start it, and hold it. Answered by `Given`."""

    pass_word: str
    name: str
    spec: SandboxSpec
    held: HeldContainer


class Note(Struct, frozen=True, kw_only=True, tag=True):
    """How a held container is by now. Answered by `Done`."""

    name: str
    held: HeldContainer


class Close(Struct, frozen=True, kw_only=True, tag=True):
    """End a sandbox; answered by `Done` once it is gone."""

    name: str


class TakeSnapshot(Struct, frozen=True, kw_only=True, tag=True):
    """Answered by `Taken`."""

    name: str


class DeleteSnapshot(Struct, frozen=True, kw_only=True, tag=True):
    """Answered by `Done`."""

    snapshot: Snapshot


class Probe(Struct, frozen=True, kw_only=True, tag=True):
    """Answered by `Probed`."""


class Attending(Struct, frozen=True, kw_only=True, tag=True):
    """The word under which this process, and no earlier one of its name, is given sandboxes."""

    pass_word: str


class Given(Struct, frozen=True, kw_only=True, tag=True):
    """A sandbox: what follows on the connection is its guest's."""

    name: str
    spec: SandboxSpec
    held: HeldContainer | None = None  # None: it is the keeper's own


class Taken(Struct, frozen=True, kw_only=True, tag=True):
    """A snapshot."""

    snapshot: Snapshot


class Probed(Struct, frozen=True, kw_only=True, tag=True):
    """What the keeper's backend can promise."""

    capabilities: Capabilities


class Done(Struct, frozen=True, kw_only=True, tag=True):
    """It is done."""


class Failed(Struct, frozen=True, kw_only=True, tag=True):
    """A `SandboxError`, on its way to the asker."""

    kind: str
    text: str


Asked = Attend | Create | Adopt | Hold | Note | Close | TakeSnapshot | DeleteSnapshot | Probe
Answered = Attending | Given | Taken | Probed | Done | Failed


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not cross this socket")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected a {kind.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_asked = msgspec.msgpack.Decoder(Asked, dec_hook=_decode_path)
_answered = msgspec.msgpack.Decoder(Answered, dec_hook=_decode_path)


def encode(message: Asked | Answered) -> bytes:
    """A message as it is sent, without its length."""
    return _encoder.encode(message)


def decode_asked(payload: bytes) -> Asked:
    """What was asked. Raises `SandboxError` (kind: keeper)."""
    asked: Asked = _decode(_asked, payload)
    return asked


def decode_answered(payload: bytes) -> Answered:
    """What was answered. Raises `SandboxError` (kind: keeper)."""
    answered: Answered = _decode(_answered, payload)
    return answered


async def send(connection: socket.socket, message: Asked | Answered) -> None:
    """Send one message. Raises `OSError`."""
    payload = encode(message)
    await asyncio.get_running_loop().sock_sendall(connection, _LENGTH.pack(len(payload)) + payload)


async def receive_asked(connection: socket.socket) -> Asked:
    """The next message, and no byte behind it. Raises `SandboxError` (kind: keeper) or `OSError`."""
    return decode_asked(await _receive(connection))


async def receive_answered(connection: socket.socket) -> Answered:
    """As `receive_asked`."""
    return decode_answered(await _receive(connection))


def _decode(decoder: msgspec.msgpack.Decoder[Any], payload: bytes) -> Any:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SandboxError(f"expected a message of the sandbox keeper: {error}", kind="keeper") from error


async def _receive(connection: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(connection, _LENGTH.size))
    if length > _MOST_BYTES:
        raise SandboxError(f"expected a message of at most {_MOST_BYTES} bytes, got {length}", kind="keeper")
    return await _exactly(connection, length)


async def _exactly(connection: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < count:
        piece = await loop.sock_recv(connection, count - len(got))
        if not piece:
            raise SandboxError("the connection to the sandbox keeper ended", kind="keeper")
        got += piece
    return bytes(got)
