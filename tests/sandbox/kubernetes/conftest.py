"""A fake cluster, and a backend of it whose pods are made of this host's programs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.config.sandbox.kubernetes import KubernetesSettings
from sandbox.docker.backend import DockerBackend
from sandbox.kubernetes.backend import KubernetesBackend
from tests.sandbox.kubernetes.fake_cluster import FakeCluster, fake_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """One that has nothing in it."""
    async with fake_cluster() as made:
        yield made
        assert not made.pods, "pods were left"


@pytest.fixture
async def settings(cluster: FakeCluster, tmp_path: Path, run_name: str) -> KubernetesSettings:
    """How it is reached."""
    docker = DockerBackend(run_name)
    try:
        if not (capabilities := await docker.probe()).available:
            pytest.skip(f"the fake cluster's node: {capabilities.reason}")
        image = await docker.hosts[0].ensure_image(None)
    finally:
        await docker.close()
    return KubernetesSettings(kubeconfig=cluster.kubeconfig(tmp_path), image=image)


@pytest.fixture
async def pods(settings: KubernetesSettings, run_name: str) -> AsyncIterator[KubernetesBackend]:
    """A backend that works."""
    backend = KubernetesBackend(run_name, settings)
    capabilities = await backend.probe()
    assert capabilities.available, capabilities.reason
    yield backend
    await backend.close()
