"""How a pod ends: by its cluster, a connection that broke or fell silent, its owner's silence; each with its reason."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.errors import SandboxError
from sandbox.base import SandboxSpec
from sandbox.kubernetes.backend import KubernetesBackend
from sandbox.kubernetes.sandbox import KubernetesSandbox
from tests.sandbox.kubernetes.fake_cluster import FakeCluster
from tests.waiting import until

pytestmark = pytest.mark.docker


@pytest.fixture
async def sandbox(pods: KubernetesBackend, run_name: str) -> AsyncIterator[KubernetesSandbox]:
    async with await pods.create(SandboxSpec(run=run_name, lease="lease")) as sandbox:
        yield sandbox


async def end_of(sandbox: KubernetesSandbox) -> SandboxError:
    """What a command that runs for ever is told."""
    with pytest.raises(SandboxError) as caught:
        await sandbox.exec("touch /testbed/runs; sleep 1000", timeout=500)
    return caught.value


async def running(sandbox: KubernetesSandbox) -> asyncio.Task[SandboxError]:
    """The same, of a command that has begun."""
    waiting = asyncio.create_task(end_of(sandbox))

    async def runs() -> bool:
        return (await sandbox.exec("test -e /testbed/runs", timeout=20)).exit_code == 0

    await until(runs)
    return waiting


async def test_evicted(cluster: FakeCluster, sandbox: KubernetesSandbox) -> None:
    """Though its connection is half open, and says nothing."""
    waiting = await running(sandbox)
    cluster.frozen = True
    await cluster.evict(sandbox.name)
    async with asyncio.timeout(60):
        error = await waiting
    assert error.label == "sandbox.evicted" and "Evicted" in str(error) and "ephemeral-storage" in str(error)


async def test_removed_by_somebody_else_while_the_watch_begins_anew(
    cluster: FakeCluster, sandbox: KubernetesSandbox
) -> None:
    waiting = await running(sandbox)
    await cluster.forget_events()
    await cluster.remove(sandbox.name)
    async with asyncio.timeout(60):
        error = await waiting
    assert error.kind == "evicted" and "removed by somebody else" in str(error)


async def test_a_broken_connection_is_the_sandbox_s_end(cluster: FakeCluster, sandbox: KubernetesSandbox) -> None:
    waiting = await running(sandbox)
    await cluster.drop_connections()
    async with asyncio.timeout(60):
        error = await waiting
        assert error.kind == "died"
        await cluster.until(sandbox.name, "Succeeded")  # the guest has lost its owner
    with pytest.raises(SandboxError):
        await sandbox.read("file")


async def test_the_owner_s_silence(cluster: FakeCluster, pods: KubernetesBackend, run_name: str) -> None:
    async with await pods.create(SandboxSpec(run=run_name, lease="lease", ttl_s=5)) as sandbox:
        await asyncio.sleep(6)
        assert (await sandbox.exec("echo alive", timeout=20)).text == "alive\n", "its owner was heard"
        waiting = await running(sandbox)
        cluster.frozen = True
        async with asyncio.timeout(60):
            error = await waiting
    assert error.kind == "died" and "its pod ended" in str(error)


async def test_the_longest_life(cluster: FakeCluster, settings: KubernetesSettings, run_name: str) -> None:
    backend = KubernetesBackend(run_name, settings.model_copy(update={"max_life_s": 600}))
    assert (await backend.probe()).available
    async with await backend.create(SandboxSpec(run=run_name, lease="lease")) as sandbox, asyncio.timeout(60):
        assert cluster.pods[sandbox.name]["spec"]["activeDeadlineSeconds"] == 600
        waiting = await running(sandbox)
        await cluster.outlive(sandbox.name)
        error = await waiting
    assert "DeadlineExceeded" in str(error) and "max_life_s" in str(error)
    await backend.close()


async def test_who_is_inside_cannot_end_the_conversation(sandbox: KubernetesSandbox) -> None:
    """Its carrier is of another user, and nobody but the guest has CAP_KILL, nor may trace."""
    attack = (
        "carrier=$(grep -l '^Uid:.65533' /proc/[0-9]*/status | cut -d/ -f3); echo carrier $carrier;"
        " kill -9 $carrier; kill -STOP $carrier; cat /proc/$carrier/mem; : > /proc/$carrier/fd/1;"
        " kill -9 -1"
    )
    said = (await sandbox.exec(attack, timeout=20)).text
    assert re.match(r"carrier \d+\n", said), said
    assert said.lower().count("not permitted") == 2 and said.lower().count("denied") == 2, said
    assert (await sandbox.exec("echo alive", timeout=20)).text == "alive\n"
    async with sandbox.client.stopped():
        await sandbox.client.ping()  # everybody stands still but the carrier
    await sandbox.exec("/.longhaul-guest enter < /dev/null & sleep 1", timeout=20)  # nobody else gets in
    assert (await sandbox.exec("echo alive", timeout=20)).text == "alive\n"


async def test_a_user_without_root(pods: KubernetesBackend, run_name: str) -> None:
    async with await pods.create(SandboxSpec(run=run_name, lease="lease", user_paths=())) as sandbox:
        await sandbox.hand_over()
        look = await sandbox.exec("id -u; echo mine > file; (setsid sleep 7100 &); kill -9 -1", timeout=20)
        assert look.text == "1000\n"
        await sandbox.exec("(setsid sleep 7100 &); true", timeout=20)
        await sandbox.kill_all()
        assert "7100" not in (await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", timeout=20)).text
        assert await sandbox.read("file") == b"mine\n"


async def test_a_create_that_is_cancelled_leaves_nothing(
    cluster: FakeCluster, pods: KubernetesBackend, run_name: str
) -> None:
    for wait_s in (0.0, 0.05, 0.3):
        creating = asyncio.create_task(pods.create(SandboxSpec(run=run_name, lease="lease")))
        await asyncio.sleep(wait_s)
        creating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await creating).close()  # it may be there by then
        assert not cluster.pods
    cluster.pull_s = 600
    creating = asyncio.create_task(pods.create(SandboxSpec(run=run_name, lease="lease")))
    await cluster.until_made(1)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not cluster.pods
