"""One pod with a guest in it: the connection that carries its conversation, and its end."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Protocol

import aiohttp

from protocol.errors import SandboxError
from sandbox.base import Sandbox, SandboxSpec, Snapshot
from sandbox.docker.config import GUEST
from sandbox.guest.client import GuestClient
from sandbox.guest.sandbox import twin_spec
from sandbox.guest.users import UserSandbox
from sandbox.kubernetes.cluster import Cluster, Failures
from sandbox.kubernetes.pod import CONTAINER, ENTER, REACHED, UNTOLD
from sandbox.kubernetes.state import State

STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3  # channels of an exec
PIECE = 32 << 10  # bytes in one message: what kubelets and proxies pass on at once
MAX_SAID = 2000
FATE_S = 5.0
"""That may pass between the end of a conversation and the cluster's word on why."""


class Maker(Protocol):
    """What a pod's sandbox needs of the backend that made it."""

    async def forget(self, sandbox: KubernetesSandbox) -> None:
        """Its end: see that the pod is gone."""
        ...

    async def create(self, spec: SandboxSpec) -> KubernetesSandbox:
        """Another sandbox."""
        ...

    async def fate(self, sandbox: KubernetesSandbox, deadline_s: float) -> State:
        """What the cluster says has become of its pod."""
        ...

    def image_of(self, sandbox: KubernetesSandbox) -> str:
        """What its image is by content."""
        ...


class KubernetesSandbox(UserSandbox):
    """One pod with a guest as its first process."""

    def __init__(self, spec: SandboxSpec, name: str, cluster: Cluster, backend: Maker) -> None:
        super().__init__(spec, GuestClient(self._send, f"pod {name} of {spec.lease}"))
        self.name = name
        self._cluster = cluster
        self._backend = backend
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._connection = AsyncExitStack()
        self._said = bytearray()
        self._exit = ""  # what the cluster said of the end of the conversation's process
        self._closed = False
        self.entered = False  # until then what is sent would be taken for a part of what is copied in

    async def enter(self, copied: bytes, deadline_s: float) -> None:
        """Begin the conversation in a pod that runs: `copied`, a tar, is unpacked at its root first.

        Raises `SandboxError` (kinds among others: network, where the pod is not kept from it; unavailable, where the
        API server has no answer for the moment, and it may be tried again).
        """
        command = ["sh", "-c", ENTER, GUEST, str(len(copied))]
        connection = await self._connection.enter_async_context(self._cluster.exec(self.name, CONTAINER, command))
        self._tasks = [
            asyncio.create_task(self._read(connection), name="pod-reader"),
            asyncio.create_task(self._write(connection), name="pod-writer"),
        ]
        self._send(copied)
        await self.client.hello(deadline_s)
        self.entered = True

    async def image_id(self) -> str:
        """See `Sandbox.image_id`: the digest that the kubelet started it from."""
        return self._backend.image_of(self) or await super().image_id()

    async def twin(self) -> Sandbox:
        """See `Sandbox.twin`."""
        return await self._backend.create(twin_spec(self.spec))

    async def snapshot(self) -> Snapshot:
        """A cluster keeps no file system of a container."""
        raise SandboxError(f"{self.spec.lease}: a pod's files cannot be kept as they are", kind="unsupported")

    def ended(self, state: State) -> None:
        """The cluster says that its pod is no more, whatever its connection looks like."""
        self.client.lost(state.problem, kind=state.kind)

    async def close(self) -> None:
        """See `Sandbox.close`."""
        if self._closed:
            return
        self._closed = True
        self.client.lost("closed", kind="closed")
        for task in self._tasks:
            task.cancel()
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._connection.aclose()
        finally:
            await self._backend.forget(self)

    def _send(self, data: bytes) -> None:
        self._outbox.put_nowait(data)

    async def _read(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Waits for what the pod says; ended by the connection's end (a missed heartbeat is one) or by `close`."""
        why = "its connection ended"
        try:
            async for message in connection:
                if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                    continue  # a text message is none of this protocol's
                if not self._take(message.data[0], message.data[1:]):
                    break
            if connection.close_code not in (None, 1000):
                why = f"its connection broke ({connection.close_code}: {connection.exception() or 'no reason'})"
        except Failures as error:
            why = f"its connection broke: {error!r}"
        await self._tell_why(why)

    def _take(self, channel: int, data: bytes) -> bool:
        """One message; False with the last one."""
        if channel == STDOUT:
            self.client.feed(data)
        elif channel == STDERR:
            self._said = (self._said + data)[-MAX_SAID:]
        elif channel == STATUS and data:
            self._exit = exit_of(data)
            return False
        return self.client.alive

    async def _tell_why(self, why: str) -> None:
        """The conversation is over: the cluster knows best why, if it says so soon."""
        if not self.client.alive:
            return
        said = self._said.decode(errors="replace").strip() or "nothing"
        if self._exit == str(REACHED):
            self.client.lost(
                "it reaches the API server, so its network policy is not held: the cluster needs a network that holds "
                "policies (Calico, Cilium, ...)", kind="network"
            )  # fmt: skip
        elif self._exit == str(UNTOLD):
            self.client.lost("whether a network is reached from it cannot be told", kind="network")
        else:
            told = f", exit status {self._exit}" if self._exit else ""
            try:
                state = await self._backend.fate(self, FATE_S)
            except SandboxError as error:
                self.client.lost(f"{why}{told}, and what became of its pod is not known: {error}")
                return
            if state.ended:
                self.ended(state)
            else:
                self.client.lost(f"{why}{told}, though its pod lives; it said: {said}")

    async def _write(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Waits for frames to send; ended by `close` or a broken connection."""
        try:
            while True:
                data = await self._outbox.get()
                for at in range(0, len(data), PIECE):
                    await connection.send_bytes(bytes((STDIN,)) + data[at : at + PIECE])
        except (*Failures, RuntimeError) as error:  # the last: it is closing
            await self._tell_why(f"its connection broke: {error!r}")


def exit_of(status: bytes) -> str:
    """The exit status of a command that ended, as the API tells it; or why there is none."""
    try:
        told = json.loads(status)
        if told.get("status") == "Success":
            return "0"
        causes = (told.get("details") or {}).get("causes") or ()
        codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
        return str(codes[0] if codes else told.get("message", "unknown"))[:200]
    except (ValueError, AttributeError, KeyError, TypeError):
        return "unknown"
