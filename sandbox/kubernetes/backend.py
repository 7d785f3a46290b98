"""Sandboxes from pods of a Kubernetes cluster, through kubernetes_asyncio.

A pod ends with its owner's connection (`sandbox/guest/door.c`), with its owner's silence (the guest's TTL), with the
pod that made it (an owner reference), and at the latest with `max_life_s`; what is left then is its record, which any
purge removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.errors import ConfigError, SandboxError
from sandbox.base import Capabilities, Sandbox, SandboxSpec, Snapshot
from sandbox.docker.config import container_archive
from sandbox.guest.build import guest_binary
from sandbox.guest.pinger import Pinger
from sandbox.guest.sandbox import sandbox_of
from sandbox.kubernetes.cluster import Cluster, Json, Right
from sandbox.kubernetes.pod import POLICY, PREFIX, SANDBOX_LABELS, denies_all, label_value, pod_manifest
from sandbox.kubernetes.pod import policy_manifest as deny_all
from sandbox.kubernetes.sandbox import KubernetesSandbox
from sandbox.kubernetes.state import State, ended_before
from sandbox.kubernetes.watch import PodWatch
from sandbox.namespace.foreign_packages import refuse_visible
from sandbox.owners import is_leftover, new_owner, parse_owner

ATTEMPTS = 4
FIRST_BACKOFF_S = 0.5
ENTER_S = 120.0  # that copying in and the guest's first words may take
RECORD_S = 60.0  # that the record of an ended pod is left to its own maker
REMOVALS_AT_ONCE = 16
RIGHTS = (
    *(Right(verb, "pods") for verb in ("create", "get", "list", "watch", "delete")),
    *(Right(verb, "pods", "exec") for verb in ("create", "get")),
    Right("get", "networkpolicies", group="networking.k8s.io", name=POLICY),
)
"""That it needs; with the one to make network policies it makes its own."""
LIMITS = {
    "memory": "the command server ends commands above it (looks every 0.1 s); the pod's control group, 256 MiB above",
    "processes": "not held: the kubelet's podPidsLimit alone bounds them",
    "cpu": "control group",
    "disk": "largest file by ulimit; the sum by the kubelet, which evicts the pod (looks every 10 s or so)",
    "files": "not held: no limit of a pod counts them",
    "network": "a network policy that denies everything, proved from inside every pod before it is used",
    "adoption": "not had: a sandbox ends with the process that made it",
    "snapshots": "not had: a cluster keeps no file system of a container",
}


class KubernetesBackend:
    """Makes pods in one namespace; see `Backend`."""

    name = "kubernetes"

    def __init__(self, run: str, settings: KubernetesSettings, max_starts: int = 4) -> None:
        self._owner = new_owner(run)
        self.settings = settings
        self._cluster = Cluster(settings)
        self._living: dict[str, KubernetesSandbox] = {}
        self._watch = PodWatch(
            self._cluster,
            f"{PREFIX}owner={label_value(self._owner.name)}",
            lambda name, state: self._ended(name, state),
        )
        self._pinger = Pinger(lambda: [sandbox for sandbox in self._living.values() if sandbox.entered])
        self._starts = asyncio.Semaphore(max_starts)
        self._guest: Path | None = None

    async def probe(self) -> Capabilities:
        """See `Backend.probe`: available where pods may be made, and a policy keeps them from every network."""
        try:
            self._guest = guest_binary()
            await self._cluster.open()
            version = await self._cluster.version()
            allowed = await asyncio.gather(*(self._cluster.may(right) for right in RIGHTS))
            lacking = [str(right) for right, may in zip(RIGHTS, allowed, strict=True) if not may]
            if lacking:
                return _unavailable(
                    f"this account may not do in namespace {self._cluster.namespace} what sandboxes need: "
                    f"{', '.join(lacking)}; give it the role of configs/kubernetes"
                )
            policy = await self._ensure_policy()
        except (ConfigError, SandboxError) as error:
            return _unavailable(str(error))
        if not denies_all(policy):
            return _unavailable(
                f"network policy {POLICY} of namespace {self._cluster.namespace} lets something through: "
                f"kubectl -n {self._cluster.namespace} delete networkpolicy {POLICY}"
            )
        where = f"namespace {self._cluster.namespace} of {self._cluster.url} ({version})"
        return Capabilities(
            backend=self.name, available=True, isolation="container", limits={**LIMITS, "commands": f"pods in {where}"}
        )

    async def create(self, spec: SandboxSpec) -> KubernetesSandbox:
        """See `Backend.create`."""
        refuse_visible(spec.absent_packages, [Path(path) for path in spec.read_only_binds], {}, spec.lease)
        image = spec.image or self.settings.image
        if spec.from_snapshot is not None:
            raise SandboxError(f"{spec.lease}: pods have no snapshots to begin from", kind="snapshot")
        if not image:
            raise SandboxError(f"{spec.lease} names no image: set sandbox.kubernetes.image", kind="unsupported")
        await self._cluster.open()
        guest = self._guest = self._guest or guest_binary()
        async with self._starts:
            return await self._create(spec, image, guest)

    def expect(self, images: Sequence[str]) -> None:
        """See `Backend.expect`: which node would need them is not known before the scheduler has said so."""

    async def adopt(self, lease: str) -> Sandbox | None:
        """See `Backend.adopt`."""
        return sandbox_of(lease, [sandbox for sandbox in self._living.values() if sandbox.entered])

    async def purge(self, run: str) -> int:
        """See `Backend.purge`."""
        await self._cluster.open()
        wanted = {**SANDBOX_LABELS, **({f"{PREFIX}run": label_value(run)} if run else {})}
        _, pods = await self._cluster.pods(",".join(f"{key}={value}" for key, value in wanted.items()))
        leftovers = [pod["metadata"]["name"] for pod in pods if self._is_leftover(pod, run)]
        slots = asyncio.Semaphore(REMOVALS_AT_ONCE)

        async def remove(name: str) -> None:
            async with slots:
                await self._cluster.delete_pod(name)

        stayed = [
            failure
            for failure in await asyncio.gather(*map(remove, leftovers), return_exceptions=True)
            if failure is not None
        ]
        if stayed:
            raise SandboxError(f"{len(stayed)} pods could not be removed, the first: {stayed[0]}", kind="purge")
        return len(leftovers)

    async def delete_snapshot(self, snapshot: Snapshot) -> None:
        """See `Backend.delete_snapshot`: there are none."""

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._pinger.stop()
        closings = (sandbox.close() for sandbox in list(self._living.values()))
        closed = await asyncio.gather(*closings, return_exceptions=True)
        await self._watch.stop()
        await self._cluster.close()
        for failure in closed:
            if failure is not None:
                raise failure

    # -- what its sandboxes ask of it

    async def forget(self, sandbox: KubernetesSandbox) -> None:
        """A sandbox has ended: see that its pod is gone."""
        if self._living.pop(sandbox.name, None) is None:
            return
        self._watch.forget(sandbox.name)
        await self._patiently(lambda: self._cluster.delete_pod(sandbox.name))

    async def fate(self, sandbox: KubernetesSandbox, deadline_s: float) -> State:
        """What has become of its pod, as far as it is known by then."""
        return await self._watch.until(sandbox.name, lambda state: state.ended, deadline_s)

    def image_of(self, sandbox: KubernetesSandbox) -> str:
        """What its image is by content."""
        return self._watch.image_of(sandbox.name)

    # -- below: how a pod is made

    async def _create(self, spec: SandboxSpec, image: str, guest: Path) -> KubernetesSandbox:
        copied = await asyncio.to_thread(container_archive, spec, guest, False)
        name = f"longhaul-{secrets.token_hex(8)}"
        owner = {"owner": self._owner.name, "machine": socket.gethostname()}
        pod = pod_manifest(spec, self.settings, self._cluster.namespace, name, image, owner, len(copied))
        sandbox = KubernetesSandbox(spec, name, self._cluster, self)
        self._living[name] = sandbox
        self._watch.expect(name)
        # Not cancelled half-way: the API server would make a pod that nobody knows of.
        creating = asyncio.ensure_future(self._patiently(lambda: self._make(pod)))
        try:
            await asyncio.shield(creating)
            started = await self._watch.until(name, lambda state: state.runs or state.final, self.settings.start_s)
            if not started.runs:
                waited = "" if started.final else f" within {self.settings.start_s:g} s (sandbox.kubernetes.start_s)"
                raise SandboxError(
                    f"pod {name} of {spec.lease} did not start{waited}: {started.problem}", kind=started.kind
                )
            await self._patiently(lambda: sandbox.enter(copied, ENTER_S))
        except BaseException:
            await asyncio.wait([creating])
            creating.cancelled() or creating.exception()  # seen
            with contextlib.suppress(SandboxError):  # what came first is told; whom nobody enters, ends by itself
                await sandbox.close()
            raise
        self._pinger.start()
        return sandbox

    async def _make(self, pod: Json) -> None:
        try:
            await self._cluster.create_pod(pod)
        except SandboxError as error:
            if error.kind != "conflict":  # else an attempt whose answer was lost had made it
                raise

    async def _patiently(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Again where the API server has no answer for the moment: it restarts, elects, or asks for patience."""
        pause = FIRST_BACKOFF_S
        for left in range(ATTEMPTS, 0, -1):
            try:
                await attempt()
                return
            except SandboxError as error:
                if error.kind != "unavailable" or left == 1:
                    raise
            await asyncio.sleep(pause)
            pause *= 2

    async def _ensure_policy(self) -> Json:
        policy = await self._cluster.policy(POLICY)
        if policy is None:
            with contextlib.suppress(SandboxError):  # somebody else made it at the same moment, or this is forbidden
                await self._cluster.create_policy(deny_all())
            policy = await self._cluster.policy(POLICY)
        if policy is None:
            raise SandboxError(
                f"namespace {self._cluster.namespace} has no network policy {POLICY}, and this account may not make "
                "it: apply the one of configs/kubernetes", kind="forbidden"
            )  # fmt: skip
        return policy

    def _ended(self, name: str, state: State) -> None:
        if (sandbox := self._living.get(name)) is not None:
            sandbox.ended(state)

    def _is_leftover(self, pod: Json, run: str) -> bool:
        """Whether a purge removes it. Hosts share the cluster: what another one made is its own to remove while it may
        live, and anybody's once it has ended.
        """
        metadata = pod["metadata"]
        if metadata["name"] in self._living:
            return False
        told = metadata.get("annotations") or {}
        owner = parse_owner(told.get(f"{PREFIX}owner", ""))
        if owner is None or told.get(f"{PREFIX}machine") != socket.gethostname():
            of_the_dead = False
        else:
            of_the_dead = owner.run == run if run else is_leftover(owner, "")
        return of_the_dead or ended_before(pod, 0 if run else RECORD_S)


def _unavailable(reason: str) -> Capabilities:
    return Capabilities(backend="kubernetes", available=False, isolation="none", reason=reason)
