"""Speaks to the command server in a sandbox: frames in and out, no transport of its own (see `guest/guest.h`).

A backend hands over a `send` and calls `feed` and `lost`; everything that comes from the other side is checked here,
because a sandbox is hostile: a frame too long, too short or uncalled-for ends the conversation with a `SandboxError`.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from protocol.errors import SandboxError
from sandbox.base import ExecResult, cannot_run
from sandbox.guest.tunnel import Accept, Tunnel
from sandbox.listings import MAX_FILE_BYTES, NOT_PART_OF_A_TREE, Listing
from sandbox.patches import Change

EXEC, WRITE, READ, PING, KILL, KILL_ALL, STOP, CONTINUE, LISTEN, TUNNEL = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
LIST, FETCH, PLACE, HAND_OVER, OWNER, LASTING, REJOIN = 11, 12, 13, 14, 15, 16, 17
HELLO_ID = 0
FIRST_RELAYED = 1 << 31
"""Requests from this id on are those of whoever the conversation is relayed to."""
PROTOCOL_VERSION = 3
MAX_FRAME = 80 << 20
MAX_FILE = 64 << 20  # of one write or read
HAND_OVER_S = 120.0
LIST_S = 30.0  # that the guest may spend on one listing
MAX_LISTED = 400_000
MAX_LISTING = 40 << 20
GRACE_S = 20.0  # past a command's own deadline; then the sandbox, not the command, is at fault

HEADER = struct.Struct("<IIB")  # length of the rest, id, op or status
# exit code, timed out, lengths of head and tail, total bytes; milliseconds: duration, CPU time, waiting for a CPU
RESULT = struct.Struct("<iIIIQQQQ")
WORD = struct.Struct("<I")

READ_KINDS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.EFBIG: "too_large",
    errno.ENODEV: "not_a_file",
    errno.ENXIO: "not_a_file",
    errno.EISDIR: "not_a_file",
    errno.ELOOP: "not_a_file",
    errno.EACCES: "not_a_file",
    errno.EPERM: "not_a_file",
    errno.EROFS: "read_only",
    errno.ENAMETOOLONG: "missing",
    errno.ENOSPC: "disk_full",
    errno.EAGAIN: "too_many_processes",
    errno.ENOMEM: "out_of_memory",
    errno.EBUSY: "busy",
}


PLACE_KINDS = {**READ_KINDS, **dict.fromkeys((errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.ENAMETOOLONG), "blocked")}
CUTS = {errno.E2BIG: "it holds too many files", errno.ETIMEDOUT: f"it could not be read within {LIST_S:g} s"}


class GuestError(Exception):
    """The guest answered a request with an errno; a command or path failed, not the sandbox."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class GuestClient:
    """One conversation with one guest, any number of requests at once."""

    def __init__(self, send: Callable[[bytes], None], name: str) -> None:
        self._send = send
        self._name = name
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._cancelled: set[int] = set()
        self._tunnels: dict[int, Tunnel] = {}  # by the request that opened it
        self._relayed: Callable[[int, int, bytes], None] | None = None
        self._relayed_ids = itertools.count(FIRST_RELAYED)
        self.said_hello = b""
        self._buffer = bytearray()
        self._error: SandboxError | None = None
        self._hello = self._expect(HELLO_ID)

    @property
    def alive(self) -> bool:
        """Whether requests can be made."""
        return self._error is None

    async def hello(self, deadline_s: float) -> None:
        """Wait for the guest's first words. Raises `SandboxError`."""
        try:
            payload = await self._answer(HELLO_ID, self._hello, deadline_s, "the guest's hello")
        except GuestError as error:
            raise SandboxError(f"{self._name}: expected a hello, got an error: {error}", kind="protocol") from None
        if len(payload) != 8 or WORD.unpack_from(payload)[0] != PROTOCOL_VERSION:
            raise SandboxError(f"{self._name}: expected a hello of version {PROTOCOL_VERSION}", kind="protocol")
        self.said_hello = payload

    def feed(self, data: bytes) -> None:
        """Take bytes from the guest."""
        if self._error is not None:
            return
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            length, request, status = HEADER.unpack_from(self._buffer, at)
            if not HEADER.size - 4 <= length <= MAX_FRAME:
                self._broken(f"a frame of {length} bytes")
                return
            if len(self._buffer) - at - 4 < length:
                break
            payload = bytes(self._buffer[at + HEADER.size : at + 4 + length])
            at += 4 + length
            if not self._deliver(request, status, payload):
                return
        if at:
            del self._buffer[:at]

    def lost(self, reason: str, kind: str = "died") -> None:
        """The conversation is over; every request under way fails."""
        if self._error is not None:
            return
        self._error = SandboxError(f"{self._name}: {reason}", kind=kind)
        self._buffer.clear()
        for tunnel in self._tunnels.values():
            tunnel.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._error)
                future.exception()  # seen: nobody may be waiting

    async def exec(
        self,
        argv: list[str],
        timeout: float,
        cwd: str,
        env: Mapping[str, str] | None,
        max_output: int,
        lasts: bool = False,
    ) -> ExecResult:
        """Run a command; see `Sandbox.exec`, and `Command` for one that lasts."""
        words = [_bytes_of(text) for text in (cwd, *argv, *(f"{name}={value}" for name, value in (env or {}).items()))]
        parts = [word for word in words if word is not None and b"\0" not in word]
        if len(parts) < len(words):
            return cannot_run("a command may not hold a NUL byte or half a character")
        if sum(map(len, parts)) > MAX_FILE:
            return cannot_run("argument list too long")
        max_output = max(2, min(max_output, MAX_FRAME // 2))
        counts = struct.pack("<IIII", max(1, round(timeout * 1000)), max_output, len(argv), len(env or {}))
        try:
            op = LASTING if lasts else EXEC
            payload = await self._call(op, counts + b"".join(map(_string, parts)), timeout + GRACE_S, "a command")
        except GuestError as error:
            return cannot_run(str(error))
        return self._result(payload)

    async def rejoin(self, timeout: float) -> ExecResult | None:
        """See `Sandbox.rejoin`."""
        try:
            payload = await self._call(REJOIN, b"", timeout + GRACE_S, "the command that lasts")
        except GuestError as error:
            if error.code == errno.ESRCH:
                return None
            raise SandboxError(f"{self._name}: the command that lasts: {error}", kind="io") from None
        return self._result(payload)

    async def write(self, path: str, data: bytes, mode: int) -> None:
        """Write a file; `path` is absolute."""
        if len(data) > MAX_FILE:
            raise SandboxError(f"{self._name}: {len(data)} bytes for {path!r}, most {MAX_FILE}", kind="too_large")
        await self._file(WRITE, WORD.pack(mode) + self._path(path) + data, "a write")

    async def read(self, path: str, max_bytes: int) -> bytes:
        """A regular file's content; `path` is absolute."""
        most = min(max_bytes, MAX_FILE)
        data = await self._file(READ, struct.pack("<Q", most) + self._path(path), "a read")
        if len(data) > most:
            raise SandboxError(f"{self._name}: asked for {most} bytes, got {len(data)}", kind="protocol")
        return data

    async def list_tree(self, root: str) -> Listing:
        """See `Sandbox.list_tree`; `root` is absolute."""
        bounds = struct.pack("<IIIQ", round(LIST_S * 1000), MAX_LISTED, MAX_LISTING, MAX_FILE_BYTES)
        names = b"".join(_string(name.encode()) for name in NOT_PART_OF_A_TREE)
        payload = bounds + self._path(root) + WORD.pack(len(NOT_PART_OF_A_TREE)) + names
        answer = await self._file(LIST, payload, "a listing", READ_KINDS, LIST_S + GRACE_S)
        return await asyncio.to_thread(self._listing, answer)

    async def fetch(self, root: str, path: str, max_bytes: int) -> Change:
        """See `Sandbox.fetch`; `root` is absolute."""
        most = min(max_bytes, MAX_FILE)
        payload = struct.pack("<Q", most) + self._path(root) + _string(os.fsencode(path))
        answer = await self._file(FETCH, payload, f"fetching {path!r}", READ_KINDS)
        kind = answer[:1]
        if kind not in (b"f", b"x", b"l") or len(answer) > 1 + max(most, os.pathconf("/", "PC_PATH_MAX")):
            raise SandboxError(f"{self._name}: expected a file or a link, got {kind!r}", kind="protocol")
        return Change(path=path, kind="link" if kind == b"l" else "file", content=answer[1:], executable=kind == b"x")

    async def place(self, root: str, change: Change) -> None:
        """See `Sandbox.place`; `root` is absolute."""
        kind = {"deleted": 0, "file": 1, "link": 2}[change.kind]
        head = struct.pack("<II", kind, 0o755 if change.executable else 0o644)
        content = _string(change.content) if change.kind == "link" else change.content
        payload = head + self._path(root) + _string(os.fsencode(change.path)) + content
        await self._file(PLACE, payload, f"placing {change.path!r}", PLACE_KINDS)

    async def hand_over(self, user: int, paths: list[str]) -> None:
        """From now on commands, reads and writes are those of `user` (its id), who owns all of `paths`."""
        payload = struct.pack("<II", user, len(paths)) + b"".join(map(self._path, paths))
        await self._file(HAND_OVER, payload, "handing over to a user without root", {}, HAND_OVER_S)

    def _listing(self, answer: bytes) -> Listing:
        if len(answer) < WORD.size or (len(answer) > WORD.size and answer[-1:] != b"\0"):
            raise SandboxError(f"{self._name}: expected a listing, got {len(answer)} bytes", kind="protocol")
        (cut,) = WORD.unpack_from(answer)
        records = frozenset(answer[WORD.size : -1].split(b"\0")) if len(answer) > WORD.size else frozenset()
        if any(len(record) < 67 or record[65] != 32 for record in records):
            raise SandboxError(f"{self._name}: expected records of files, got something else", kind="protocol")
        return Listing(records, CUTS.get(cut, f"error {cut}") if cut else "")

    async def ping(self, deadline_s: float = GRACE_S) -> None:
        """Prove that the guest is there, and that its owner is."""
        await self._file(PING, b"", "a ping", {}, deadline_s)

    def touch(self) -> None:
        """Tell the guest that its owner is there, without waiting for its answer."""
        if self._error is None:
            request = next(self._ids)
            self._cancelled.add(request)
            self._send(HEADER.pack(HEADER.size - 4, request, PING))

    async def kill_all(self) -> None:
        """Kill everything but the guest."""
        await self._file(KILL_ALL, b"", "killing everything", {}, GRACE_S)

    async def listen(self, accept: Accept) -> int:
        """Listen on loopback inside; the port. See `Sandbox.listen`."""
        if self._error is not None:
            raise self._error
        for before in self._tunnels.values():
            before.close()
        request = next(self._ids)

        def send(payload: bytes) -> None:
            if self._error is None:
                self._send(HEADER.pack(HEADER.size - 4 + len(payload), request, TUNNEL) + payload)

        self._tunnels[request] = Tunnel(send, accept)
        future = self._expect(request)
        self._send(HEADER.pack(HEADER.size - 4, request, LISTEN))
        try:
            payload = await self._answer(request, future, GRACE_S, "listening")
        except GuestError as error:
            del self._tunnels[request]
            raise SandboxError(f"{self._name}: cannot listen: {error}", kind="listen") from None
        if len(payload) != WORD.size:
            self._broken("a port of several bytes")
            assert self._error is not None
            raise self._error
        port: int = WORD.unpack(payload)[0]
        return port

    async def pass_on(self, send: Callable[[bytes], None]) -> None:
        """Let another process talk to the guest from now on; this side only pings and ends it. Whoever had it before is
        cut off, and the commands that he waits for are killed, all but the one that lasts.

        Args:
            send: sends a frame together with the descriptor of the other process's connection.
        """
        if self._error is not None:
            raise self._error
        request = next(self._ids)
        future = self._expect(request)
        send(HEADER.pack(HEADER.size - 4, request, OWNER))
        try:
            await self._answer(request, future, GRACE_S, "passing it on")
        except GuestError as error:
            raise SandboxError(f"{self._name}: cannot be passed on: {error}", kind="pass_on") from None

    def relay(self, answer: Callable[[int, int, bytes], None] | None) -> None:
        """From now on answers (request, status, payload) to requests of `forward` go to `answer`; None: to nobody."""
        self._relayed = answer

    def forward(self, op: int, payload: bytes, request: int | None = None) -> int:
        """Send a request of another's; its id here. `request`: another frame under the id of an earlier one."""
        if self._error is not None:
            raise self._error
        number = next(self._relayed_ids) if request is None else request
        self._send(HEADER.pack(HEADER.size - 4 + len(payload), number, op) + payload)
        return number

    def give_up(self, request: int) -> None:
        """Kill what a request of `forward` runs; nobody waits for its answer."""
        if self._error is None:
            payload = WORD.pack(request)
            self._send(HEADER.pack(HEADER.size - 4 + len(payload), next(self._ids), KILL) + payload)

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Every process but the guest stands still inside this context."""
        await self._file(STOP, b"", "stopping everything")
        try:
            yield
        finally:
            await self._file(CONTINUE, b"", "continuing", {}, GRACE_S)

    # -- below: requests and answers

    def _expect(self, request: int) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        return future

    async def _call(self, op: int, payload: bytes, deadline_s: float, what: str) -> bytes:
        if self._error is not None:
            raise self._error
        request = next(self._ids)
        future = self._expect(request)
        self._send(HEADER.pack(HEADER.size - 4 + len(payload), request, op) + payload)
        return await self._answer(request, future, deadline_s, what)

    async def _answer(self, request: int, future: asyncio.Future[bytes], deadline_s: float, what: str) -> bytes:
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            self.lost(f"no answer to {what} within {deadline_s:g} s", kind="silent")
            assert self._error is not None
            raise self._error from None
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        finally:
            self._waiting.pop(request, None)

    def _abandon(self, request: int) -> None:
        if self._error is None and request != HELLO_ID:
            self._cancelled.add(request)
            payload = WORD.pack(request)
            self._send(HEADER.pack(HEADER.size - 4 + len(payload), next(self._ids), KILL) + payload)

    def _deliver(self, request: int, status: int, payload: bytes) -> bool:
        if request >= FIRST_RELAYED:
            if self._relayed is not None:
                self._relayed(request, status, payload)
            return True
        future = self._waiting.get(request)
        if future is None or (future.done() and request in self._tunnels):
            if request in self._cancelled:
                self._cancelled.discard(request)
                return True
            if request in self._tunnels:
                if self._tunnels[request].feed(payload):
                    return True
                self._broken("a frame that no tunnel sends")
                return False
            self._broken(f"an answer to request {request}, which was not asked")
            return False
        if status == 0:
            if not future.done():
                future.set_result(payload)
            return True
        if len(payload) < 4:
            self._broken("an error without a code")
            return False
        if not future.done():
            text = payload[4:].decode(errors="replace")[:500]
            future.set_exception(GuestError(WORD.unpack_from(payload)[0], text))
        return True

    def _broken(self, what: str) -> None:
        self.lost(f"expected a frame of the guest, got {what}; the sandbox is given up", kind="protocol")

    def _path(self, path: str) -> bytes:
        raw = _bytes_of(path)
        if raw is None or b"\0" in raw or not raw.startswith(b"/"):
            raise SandboxError(f"{self._name}: {path!r} is not an absolute path", kind="bad_path")
        return _string(raw)

    async def _file(
        self,
        op: int,
        payload: bytes,
        what: str,
        kinds: Mapping[int, str] = READ_KINDS,
        deadline_s: float = GRACE_S + 40,
    ) -> bytes:
        try:
            return await self._call(op, payload, deadline_s, what)
        except GuestError as error:
            raise SandboxError(f"{self._name}: {what}: {error}", kind=kinds.get(error.code, "io")) from None

    def _result(self, payload: bytes) -> ExecResult:
        if len(payload) < RESULT.size:
            self._broken("a short result")
            assert self._error is not None
            raise self._error
        exit_code, timed_out, head_len, tail_len, total, *milliseconds = RESULT.unpack_from(payload)
        duration_s, cpu_s, waited_s = (each / 1000 for each in milliseconds)
        if RESULT.size + head_len + tail_len != len(payload) or total < head_len + tail_len:
            self._broken("a result whose lengths do not add up")
            assert self._error is not None
            raise self._error
        output = payload[RESULT.size :]
        return ExecResult(
            exit_code=exit_code,
            head=output[:head_len],
            tail=output[head_len:],
            total_bytes=total,
            timed_out=bool(timed_out),
            duration_s=duration_s,
            cpu_s=cpu_s,
            waited_s=waited_s,
        )


def _bytes_of(text: str) -> bytes | None:
    """As the kernel takes it; None for a lone surrogate that stands for no byte."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return None


def _string(raw: bytes) -> bytes:
    return WORD.pack(len(raw)) + raw + b"\0"
