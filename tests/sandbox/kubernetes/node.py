"""A node of the fake cluster: a pod's container is a real container of the Docker daemon here, as its manifest says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError
from aiodocker.containers import DockerContainer

STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3
MEBI = {"Mi": 1 << 20, "Gi": 1 << 30}


class Node:
    """Starts, asks and ends containers."""

    def __init__(self, api_port: int) -> None:
        self._docker = Docker(url="unix://localhost", connector=aiohttp.UnixConnector("/var/run/docker.sock", limit=0))
        self._api_port = api_port
        self._containers: dict[str, DockerContainer] = {}

    async def close(self) -> None:
        for name in list(self._containers):
            await self.remove(name)
        connector = self._docker.connector
        await self._docker.close()
        await connector.close()

    async def run(self, pod: dict[str, Any], isolated: bool) -> str:
        """Start a pod's container; its image by content. Raises `DockerError`."""
        [container] = pod["spec"]["containers"]
        security = container["securityContext"]
        limits = container["resources"]["limits"]
        address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self._api_port)}
        env = {item["name"]: item["value"] for item in container["env"]} | address
        memory = int(limits["memory"][:-2]) * MEBI[limits["memory"][-2:]]
        configuration = {
            "Image": container["image"],
            "Entrypoint": container["command"],
            "Cmd": [],
            "User": f"{security['runAsUser']}:{security['runAsGroup']}",
            "Hostname": pod["spec"]["hostname"] if isolated else None,
            "WorkingDir": container["workingDir"],
            "Env": [f"{name}={value}" for name, value in env.items()],
            "Labels": {"fake-cluster": "pod"},
            "HostConfig": {
                "NetworkMode": "none" if isolated else "host",
                "Memory": memory,
                "MemorySwap": memory,
                "PidsLimit": 256,  # as a kubelet with podPidsLimit
                "NanoCpus": int(limits["cpu"].removesuffix("m")) * 1_000_000,
                "SecurityOpt": [] if security["allowPrivilegeEscalation"] else ["no-new-privileges"],
                "CapDrop": security["capabilities"]["drop"],
                "CapAdd": security["capabilities"]["add"],
                "LogConfig": {"Type": "none"},
            },
        }
        # Not cancelled half-way: the daemon would make a container that nobody knows of.
        creating = asyncio.ensure_future(self._docker.containers.create(configuration))
        try:
            made = await asyncio.shield(creating)
        except asyncio.CancelledError:
            await (await creating).delete(force=True)
            raise
        self._containers[pod["metadata"]["name"]] = made
        await made.start()
        return str((await made.show())["Image"])

    async def wait(self, name: str) -> tuple[int, bool]:
        """A container's exit status, and whether it ran out of memory."""
        await self._containers[name].wait()
        state = (await self._containers[name].show())["State"]
        return state["ExitCode"], state["OOMKilled"]

    async def kill(self, name: str) -> None:
        with contextlib.suppress(DockerError):
            await self._containers[name].kill()

    async def remove(self, name: str) -> None:
        container = self._containers.pop(name, None)
        while container is not None:
            try:
                await container.delete(force=True, v=True)
            except DockerError as error:
                if error.status == 409:
                    await asyncio.sleep(0.05)
                    continue
                if error.status != 404:
                    raise
            return

    async def exec(self, name: str, command: list[str], socket: aiohttp.web.WebSocketResponse) -> None:
        """Run a command, its streams on the channels of a socket; the command's stdin ends with the socket."""
        running = await self._containers[name].exec(command, stdin=True, stdout=True, stderr=True)
        stream = running.start()
        async with stream:

            async def outwards() -> None:
                while (message := await stream.read_out()) is not None:
                    await socket.send_bytes(bytes((STDOUT if message.stream == 1 else STDERR,)) + message.data)

            async def inwards() -> None:
                async for message in socket:
                    if message.data[0] == STDIN:
                        await stream.write_in(message.data[1:])

            for channel in range(4):  # as kubelets do
                await socket.send_bytes(bytes((channel,)))
            tasks = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        if socket.closed:
            return
        code = (await running.inspect())["ExitCode"]
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with non-zero exit code: exit status {code}",
                "details": {"causes": causes},
            }
        await socket.send_bytes(bytes((STATUS,)) + json.dumps(status).encode())
