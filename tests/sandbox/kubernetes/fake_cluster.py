"""An API server that keeps pods and network policies, tells of them, and starts commands in them; one node.

It takes only what the published schemas take, and answers as a real one does, refusals included. What runs is real: see
`node.py`. A pod that no policy selects is on the host's network, as a pod of a real cluster is on the cluster's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiodocker import DockerError
from aiohttp import web

from tests.sandbox.kubernetes.node import Node
from tests.sandbox.kubernetes.schemas import complaints

TOKEN = "of-an-account"
NAMESPACE = "boxes"
PODS = "/api/v1/namespaces/{namespace}/pods"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"


class FakeCluster:
    """Its knobs say what goes wrong."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.made: list[dict[str, Any]] = []  # every object that it was sent
        self.most_pods = 1000  # of the namespace's quota
        self.room = True  # on its node
        self.holds_policies = True
        self.pull_s = 0.0
        self.token = TOKEN
        self.forbidden: set[tuple[str, str]] = set()  # (verb, resource)
        self.outages = 0  # requests that will be answered with 503
        self.sockets: list[web.WebSocketResponse] = []  # of commands that run
        self.frozen = False  # what is said to running commands, and by them, is lost
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._version = 1
        self._oldest = 0  # version from which events are known
        self._news = asyncio.Condition()
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._node: Node | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/version/", self._tell_version)
        for path in (PODS, POLICIES):
            app.router.add_get(path, self._list)
            app.router.add_post(path, self._create)
            app.router.add_get(path + "/{name}", self._read)
            app.router.add_delete(path + "/{name}", self._delete)
        app.router.add_get(PODS + "/{name}/exec", self._exec)
        app.router.add_post(REVIEWS, self._review)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._node = Node(self.port)

    async def close(self) -> None:
        for life in list(self._lives.values()):
            life.cancel()
        if self._lives:
            await asyncio.wait(self._lives.values())
        assert self._runner is not None and self._node is not None
        await self._runner.cleanup()
        await self._node.close()

    def kubeconfig(self, directory: Path, token: str = TOKEN, command: list[str] | None = None) -> Path:
        """A file that says how it is reached, with a token or a command that tells one."""
        path = directory / "kubeconfig"
        cluster = {"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "tester", "namespace": NAMESPACE}}
        plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": (command or [""])[0]}
        told = {"exec": plugin | {"args": command[1:]}} if command else {"token": token}
        user = {"name": "tester", "user": told}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context], "users": [user]}
        path.write_text(json.dumps({**config, "current-context": "fake"}))
        return path

    # -- what a test makes happen

    async def evict(self, name: str) -> None:
        """As a node short of disk does."""
        assert self._node is not None
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
        self._lives.pop(name).cancel()
        await self._change(name, status)
        await self._node.kill(name)

    async def outlive(self, name: str) -> None:
        """As a kubelet does whose pod has lived for its `activeDeadlineSeconds`."""
        assert self._node is not None
        self._lives.pop(name).cancel()
        await self._change(
            name, {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active too long."}
        )
        await self._node.kill(name)

    async def remove(self, name: str) -> None:
        """As somebody with kubectl does."""
        await self._remove(name)

    async def forget_events(self) -> None:
        """As an API server that compacts, or a new one: every watch has to begin anew."""
        async with self._news:
            self._oldest = self._version + 1
            self._news.notify_all()

    async def drop_connections(self) -> None:
        """As a proxy that restarts."""
        for socket in self.sockets:
            assert socket._req is not None and socket._req.transport is not None
            socket._req.transport.abort()

    async def until(self, name: str, phase: str) -> None:
        """Wait until a pod is in a phase."""
        async with self._news:
            await self._news.wait_for(lambda: self.pods[name]["status"]["phase"] == phase)

    async def until_made(self, count: int) -> None:
        """Wait until so many pods are there."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.pods) >= count)

    # -- requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        resource = {"pods": "pods", "networkpolicies": "networkpolicies"}.get(request.path.split("/")[-1], "")
        resource = resource or next((word for word in ("exec", "networkpolicies", "pods") if word in request.path), "")
        verb = {"GET": "get", "POST": "create", "DELETE": "delete"}[request.method]
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return refusal(401, "Unauthorized", "Unauthorized")
        if self.outages:
            self.outages -= 1
            return refusal(503, "ServiceUnavailable", "etcd leader changed")
        if (verb, resource) in self.forbidden:
            text = f'{resource} is forbidden: User "tester" cannot {verb} resource "{resource}" in API group ""'
            return refusal(403, "Forbidden", text)
        return await handler(request)  # type: ignore[no-any-return]

    async def _review(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if wrong := complaints(asked):
            return refusal(400, "BadRequest", f"strict decoding error: {'; '.join(wrong)}")
        what = asked["spec"]["resourceAttributes"]
        allowed = (what["verb"], what["subresource"] or what["resource"]) not in self.forbidden
        return web.json_response({**asked, "status": {"allowed": allowed}}, status=201)

    async def _tell_version(self, request: web.Request) -> web.Response:
        names = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
        return web.json_response(
            {"major": "1", "minor": "34", "gitVersion": "v1.34.0-fake", **dict.fromkeys(names, "fake")}
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        selector = dict(term.split("=") for term in request.query.get("labelSelector", "").split(",") if term)
        if request.query.get("watch", "").lower() == "true":
            return await self._tell_events(request, selector)
        items = [item for item in self._kept(request).values() if selected(item, selector)]
        kind = "PodList" if self._kept(request) is self.pods else "NetworkPolicyList"
        return web.json_response(
            {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": str(self._version)}, "items": items}
        )

    async def _tell_events(self, request: web.Request, selector: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen = int(request.query["resourceVersion"])
        while True:
            if seen < self._oldest:
                gone = status_of(410, "Expired", "too old resource version")
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            for version, event in self._events:
                if version > seen and selected(event["object"], selector):
                    await response.write(json.dumps(event).encode() + b"\n")
            seen = self._version
            async with self._news:
                while self._version == seen and seen >= self._oldest:
                    await self._news.wait()

    async def _create(self, request: web.Request) -> web.Response:
        sent = await request.json()
        self.made.append(json.loads(json.dumps(sent)))
        if wrong := complaints(sent):
            return refusal(400, "BadRequest", f"strict decoding error: {'; '.join(wrong)}")
        kept, name = self._kept(request), sent["metadata"]["name"]
        if name in kept:
            return refusal(409, "AlreadyExists", f'"{name}" already exists')
        if kept is self.pods and len(kept) >= self.most_pods:
            text = (
                f'pods "{name}" is forbidden: exceeded quota: small, requested: pods=1, limited: pods={self.most_pods}'
            )
            return refusal(403, "Forbidden", text)
        sent["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": stamp(), "uid": f"uid-of-{name}"}
        kept[name] = sent
        if kept is self.pods:
            await self._change(name, {"phase": "Pending"}, "ADDED")
            self._lives[name] = asyncio.create_task(self._live(name), name=f"life-of-{name}")
        return web.json_response(sent, status=201)

    async def _read(self, request: web.Request) -> web.Response:
        found = self._kept(request).get(request.match_info["name"])
        return web.json_response(found) if found else refusal(404, "NotFound", "not found")

    async def _delete(self, request: web.Request) -> web.Response:
        name, kept = request.match_info["name"], self._kept(request)
        if name not in kept:
            return refusal(404, "NotFound", f'"{name}" not found')
        assert (await request.json())["gracePeriodSeconds"] == 0
        pod = kept[name]
        await self._remove(name)
        return web.json_response(pod)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        pod = self.pods.get(name)
        if pod is None:
            return refusal(404, "NotFound", f'pods "{name}" not found')
        if pod["status"]["phase"] != "Running":
            return refusal(400, "BadRequest", f"container not found in pod {name}")
        assert request.query["container"] == pod["spec"]["containers"][0]["name"]
        socket = _Socket(self, protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        assert socket.ws_protocol == "v4.channel.k8s.io" and self._node is not None
        self.sockets.append(socket)
        try:
            await self._node.exec(name, request.query.getall("command"), socket)
        except (DockerError, ConnectionError):  # the pod is gone
            pass
        finally:
            self.sockets.remove(socket)
            await socket.close()
        return socket

    # -- below: a pod's life

    async def _live(self, name: str) -> None:
        pod = self.pods[name]
        image = pod["spec"]["containers"][0]["image"]
        if not self.room:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            text = "0/1 nodes are available: 1 Insufficient cpu."
            await self._change(name, {"phase": "Pending", "conditions": [{**condition, "message": text}]})
            return
        isolated = self.holds_policies and any(
            selected(pod, policy["spec"]["podSelector"]["matchLabels"]) for policy in self.policies.values()
        )
        assert self._node is not None
        await asyncio.sleep(self.pull_s)
        try:
            identity = await self._node.run(pod, isolated)
        except DockerError as error:
            text = f'failed to pull and unpack image "{image}": {error.message}: not found'
            await self._container(name, {"waiting": {"reason": "ErrImagePull", "message": text}}, "Pending")
            return
        await self._container(name, {"running": {"startedAt": stamp()}}, "Running", identity)
        code, starved = await self._node.wait(name)
        reason = "OOMKilled" if starved else "Error" if code else "Completed"
        ended = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": stamp()}}
        await self._container(name, ended, "Failed" if code else "Succeeded")

    async def _container(self, name: str, state: dict[str, Any], phase: str, identity: str = "") -> None:
        if name in self.pods:
            container = self.pods[name]["spec"]["containers"][0]
            status = {"name": container["name"], "image": container["image"], "imageID": identity, "state": state}
            ready = {"ready": "running" in state, "restartCount": 0}
            await self._change(name, {"phase": phase, "containerStatuses": [{**status, **ready}]})

    async def _remove(self, name: str) -> None:
        if name in self.policies:
            del self.policies[name]
            return
        if (life := self._lives.pop(name, None)) is not None:
            life.cancel()
            await asyncio.wait([life])
        assert self._node is not None
        await self._node.remove(name)
        if name in self.pods:
            await self._change(name, self.pods[name]["status"], "DELETED")
            del self.pods[name]

    async def _change(self, name: str, status: dict[str, Any], event: str = "MODIFIED") -> None:
        async with self._news:
            self._version += 1
            pod = self.pods[name]
            pod["metadata"]["resourceVersion"] = str(self._version)
            pod["status"] = status
            self._events.append((self._version, {"type": event, "object": json.loads(json.dumps(pod))}))
            self._news.notify_all()

    def _kept(self, request: web.Request) -> dict[str, dict[str, Any]]:
        assert request.match_info["namespace"] == NAMESPACE
        return self.policies if "networkpolicies" in request.path else self.pods


class _Socket(web.WebSocketResponse):
    """One that may freeze: what a cable that was cut looks like from both ends."""

    def __init__(self, cluster: FakeCluster, protocols: tuple[str, ...]) -> None:
        super().__init__(protocols=protocols, autoping=True, max_msg_size=1 << 26)
        self._cluster = cluster

    async def send_bytes(self, data: bytes, compress: int | None = None) -> None:
        if not self._cluster.frozen:
            await super().send_bytes(data, compress)

    async def receive(self, timeout: float | None = None) -> Any:
        message = await super().receive(timeout)
        while self._cluster.frozen and message.type is web.WSMsgType.BINARY:
            message = await super().receive(timeout)
        return message


@asynccontextmanager
async def fake_cluster() -> AsyncIterator[FakeCluster]:
    """One that leaves no container behind."""
    cluster = FakeCluster()
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.close()


def selected(item: dict[str, Any], selector: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def stamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def status_of(code: int, reason: str, message: str) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**status, "message": message, "reason": reason, "code": code}


def refusal(code: int, reason: str, message: str) -> web.Response:
    return web.json_response(status_of(code, reason, message), status=code)
