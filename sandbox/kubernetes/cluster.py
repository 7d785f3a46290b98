"""The API server: the few requests that sandboxes need, each with its deadline, and what its refusals mean.

Objects go in and come out as the JSON that the API speaks; `kubernetes_asyncio` brings the account and the transport.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from kubernetes_asyncio import client
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.stream import WsApiClient

from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.errors import SandboxError
from sandbox.kubernetes.account import NoAccount, read_account

REQUEST_S = 30.0  # that the API server may take for an answer
HEARTBEAT_S = 60.0
"""Between two signs of life on a connection to a pod; one that is missed ends it."""
WATCH_S = 300
CLOSE_S = 5.0
Failures = (ApiException, NoAccount, aiohttp.ClientError, OSError, TimeoutError)
Json = dict[str, Any]


class Right(NamedTuple):
    """What an account may be allowed to do."""

    verb: str
    resource: str
    subresource: str = ""
    group: str = ""
    name: str = ""

    def __str__(self) -> str:
        thing = "/".join(word for word in (self.resource, self.subresource) if word)
        return f"{self.verb} {thing}" + (f" {self.name}" if self.name else "")


class Cluster:
    """One namespace of one cluster."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._clients: tuple[client.ApiClient, WsApiClient] | None = None
        self.namespace = settings.namespace
        self.url = ""

    async def open(self) -> None:
        """Read the account. Raises `ConfigError`."""
        if self._clients is not None:
            return
        configuration, found = await read_account(self._settings)
        self.namespace = self._settings.namespace or found or "default"
        self.url = str(configuration.host)
        # The second one speaks websockets only.
        self._clients = client.ApiClient(configuration), WsApiClient(configuration, heartbeat=HEARTBEAT_S)

    async def close(self) -> None:
        """Close the connections."""
        if self._clients is not None:
            clients, self._clients = self._clients, None
            for one in clients:
                await one.close()

    async def version(self) -> str:
        """The API server's version. Raises `SandboxError`."""
        answer = await self._ask("its version", client.VersionApi(self._api).get_code)
        return str(answer.get("gitVersion", "?"))

    async def may(self, right: Right) -> bool:
        """Whether this account has a right in its namespace. Raises `SandboxError`."""
        asked = {"namespace": self.namespace, "verb": right.verb, "group": right.group, "resource": right.resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**asked, "subresource": right.subresource, "name": right.name}},
        }
        ask = client.AuthorizationV1Api(self._api).create_self_subject_access_review
        answer = await self._ask("its own rights", ask, review)
        return bool((answer.get("status") or {}).get("allowed"))

    async def create_pod(self, pod: Json) -> None:
        """Make a pod. Raises `SandboxError` (kinds: quota, forbidden, start, unavailable)."""
        name = pod["metadata"]["name"]
        await self._ask(f"pod {name}", self._core.create_namespaced_pod, self.namespace, pod)

    async def pod(self, name: str) -> Json | None:
        """A pod; None when there is none. Raises `SandboxError`."""
        return await self._find(f"pod {name}", self._core.read_namespaced_pod, name, self.namespace)

    async def delete_pod(self, name: str) -> None:
        """Remove a pod at once; one that is not there is removed. Raises `SandboxError`."""
        now = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
        delete = self._core.delete_namespaced_pod
        await self._find(f"the end of pod {name}", delete, name, self.namespace, body=now)

    async def pods(self, selector: str) -> tuple[str, list[Json]]:
        """The pods with some labels, and the version from which to watch them. Raises `SandboxError`."""
        answer = await self._ask("its pods", self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        return answer["metadata"]["resourceVersion"], answer["items"]

    async def watch_pods(self, selector: str, version: str) -> AsyncIterator[tuple[str, Json]]:
        """What happens to pods with some labels, as (ADDED, MODIFIED or DELETED, pod), until the API server has said
        enough: then list again. Raises `SandboxError`.
        """
        silence = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_S, sock_read=2.0 * WATCH_S)
        try:
            answer: Any = await self._core.list_namespaced_pod(
                self.namespace,
                watch=True,
                label_selector=selector,
                resource_version=version,
                timeout_seconds=WATCH_S,
                _preload_content=False,
                _request_timeout=silence,
            )
            async with answer:
                if answer.status != 200:
                    raise SandboxError(f"{self.url} refuses a watch of its pods: {answer.status}", kind="unavailable")
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":  # most often: what happened since `version` is forgotten
                        return
                    yield event["type"], event["object"]
        except (*Failures, ValueError, KeyError) as error:
            raise SandboxError(f"{self.url}: a watch of its pods broke: {error!r}", kind="unavailable") from error

    async def policy(self, name: str) -> Json | None:
        """A network policy; None when there is none. Raises `SandboxError`."""
        read = self._networking.read_namespaced_network_policy
        return await self._find(f"network policy {name}", read, name, self.namespace)

    async def create_policy(self, policy: Json) -> None:
        """Make a network policy. Raises `SandboxError`."""
        create = self._networking.create_namespaced_network_policy
        await self._ask(f"network policy {policy['metadata']['name']}", create, self.namespace, policy)

    @asynccontextmanager
    async def exec(
        self, pod: str, container: str, command: list[str]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Start a command in a container; its streams are channels of the connection (v4.channel.k8s.io).

        Raises `SandboxError`.
        """
        assert self._clients is not None
        core: Any = client.CoreV1Api(self._clients[1])
        try:
            async with asyncio.timeout(REQUEST_S):
                connecting = await core.connect_get_namespaced_pod_exec(
                    pod, self.namespace, command=command, container=container,
                    stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
                )  # fmt: skip
                connection: aiohttp.ClientWebSocketResponse = await connecting
        except Failures as error:
            raise refused(error, self.url, f"a command in pod {pod}") from error
        try:
            yield connection
        finally:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await connection.close()
            except TimeoutError:  # half open: the transport was dropped by the cancelled close
                pass

    # -- below: how it is asked

    @property
    def _api(self) -> client.ApiClient:
        assert self._clients is not None, "open() comes first"
        return self._clients[0]

    @property
    def _core(self) -> Any:
        return client.CoreV1Api(self._api)

    @property
    def _networking(self) -> Any:
        return client.NetworkingV1Api(self._api)

    async def _ask(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Json:
        try:
            answer = await call(*args, _request_timeout=REQUEST_S, **kwargs)
        except Failures as error:
            raise refused(error, self.url, what) from error
        except (ValueError, TypeError, KeyError) as error:
            raise SandboxError(f"{self.url} said what is no {what}: {error!r}", kind="protocol") from error
        made: Json = self._api.sanitize_for_serialization(answer)
        return made

    async def _find(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Json | None:
        try:
            return await self._ask(what, call, *args, **kwargs)
        except SandboxError as error:
            if error.kind == "missing":
                return None
            raise


def refused(error: BaseException, url: str, what: str) -> SandboxError:
    """What a failed request means, with what to do about it."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        status, said = error.status, error.message
    elif isinstance(error, ApiException):
        status, said = int(error.status or 0), _message(error)
    elif isinstance(error, NoAccount):
        return SandboxError(f"the account for {url} cannot be renewed ({what}): {error}", kind="unauthorized")
    else:
        return SandboxError(f"the API server at {url} does not answer ({what}): {error!r}", kind="unavailable")
    if status == 401:
        return SandboxError(f"{url} does not know this account ({what}): renew its token", kind="unauthorized")
    if status == 403 and "exceeded quota" in said:
        return SandboxError(
            f"{url}: no quota is left for {what}: {said}; raise the ResourceQuota, or lower num_actors or "
            "sandbox.memory_mib", kind="quota"
        )  # fmt: skip
    if status == 403:
        return SandboxError(f"{url} forbids {what}: {said}; give the account the rights in configs/kubernetes",
                            kind="forbidden")  # fmt: skip
    if status == 404:
        return SandboxError(f"{url} has no such thing: {what}: {said}", kind="missing")
    if status == 409:
        return SandboxError(f"{url}: {what}: {said}", kind="conflict")
    if status == 429 or status >= 500 or status == 0:
        return SandboxError(f"{url} is not well ({what}): {status} {said}", kind="unavailable")
    return SandboxError(f"{url} refuses {what}: {status} {said}", kind="start")


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])[:1000]
    except (ValueError, TypeError, KeyError):
        return str(error.reason)[:1000]
