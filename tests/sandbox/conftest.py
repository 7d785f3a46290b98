"""Backends for tests, one run name a test, nothing left of it afterwards."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.config.sandbox.kubernetes import KubernetesSettings
from sandbox.base import Backend
from sandbox.curation.recipes import PYTEST
from sandbox.docker.backend import DockerBackend
from sandbox.fake import FakeBackend
from sandbox.keeper.kept import KeptBackend
from sandbox.kubernetes.backend import KubernetesBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.packages import environment_path
from tests.sandbox.kubernetes.fake_cluster import fake_cluster

REAL = [
    pytest.param("namespace"),
    pytest.param("docker", marks=pytest.mark.docker),
    pytest.param("kubernetes", marks=pytest.mark.docker),
]


@pytest.fixture
def run_name() -> str:
    """A run of its own for every test."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree."""
    tree = tmp_path / "source"
    (tree / "pkg").mkdir(parents=True)
    (tree / "pkg" / "code.py").write_text("ANSWER = 41\n")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("pkg/code.py")
    return tree


def kept(run: str) -> KeptBackend:
    """Sandboxes of a keeper's, asked for as `actor-0`."""
    return KeptBackend(run, "actor-0", Path(os.devnull))


async def _open(name: str, run: str) -> AsyncIterator[Backend]:
    if name == "kubernetes":
        async for made in _open_kubernetes(run):
            yield made
        return
    kinds = {"fake": FakeBackend, "namespace": NamespaceBackend, "kept": kept, "docker": DockerBackend}
    backend: Backend = kinds[name](run)
    capabilities = await backend.probe()
    if not capabilities.available:
        await backend.close()
        pytest.skip(f"{name}: {capabilities.reason}")
    yield backend
    await backend.close()
    left = await backend.purge(run)
    await backend.close()
    assert left == 0, "a closed backend left something behind"


async def _open_kubernetes(run: str) -> AsyncIterator[KubernetesBackend]:
    """Pods of a fake cluster whose node is the Docker daemon, with this host's programs for an image."""
    docker = DockerBackend(run)
    try:
        if not (capabilities := await docker.probe()).available:
            pytest.skip(f"kubernetes: {capabilities.reason}")
        image = await docker.hosts[0].ensure_image(None)
    finally:
        await docker.close()
    async with fake_cluster() as cluster:
        with tempfile.TemporaryDirectory() as directory:
            kubeconfig = cluster.kubeconfig(Path(directory))
            backend = KubernetesBackend(run, KubernetesSettings(kubeconfig=kubeconfig, image=image))
            capabilities = await backend.probe()
            assert capabilities.available, capabilities.reason
            yield backend
            await backend.close()
            assert not cluster.pods, "a closed backend left something behind"


@pytest.fixture(params=[pytest.param("fake"), pytest.param("kept"), *REAL])
async def backend(request: pytest.FixtureRequest, run_name: str) -> AsyncIterator[Backend]:
    """Every backend in turn."""
    async for backend in _open(request.param, run_name):
        yield backend


@pytest.fixture(params=REAL)
async def real_backend(request: pytest.FixtureRequest, run_name: str) -> AsyncIterator[Backend]:
    """Every backend that isolates, in turn."""
    async for backend in _open(request.param, run_name):
        yield backend


@pytest.fixture
async def namespace_backend(run_name: str) -> AsyncIterator[Backend]:
    """The embedded backend."""
    async for backend in _open("namespace", run_name):
        yield backend


@pytest.fixture
async def docker_backend(run_name: str) -> AsyncIterator[Backend]:
    """The Docker backend."""
    async for backend in _open("docker", run_name):
        yield backend


@pytest.fixture
async def namespace(run_name: str) -> AsyncIterator[Backend]:
    """The backend in which tasks are judged here."""
    async for backend in _open("namespace", run_name):
        yield backend


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of tasks that already holds pytest for sandboxes, copied from this environment: nothing is fetched."""
    cache = tmp_path_factory.mktemp("cache")
    target = environment_path((PYTEST,), cache)
    target.mkdir(parents=True)
    for name in ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        module = Path(spec.origin)
        if module.name == "__init__.py":
            shutil.copytree(module.parent, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(module, target)
    pluggy = Path(str(importlib.metadata.distribution("pluggy").locate_file("pluggy"))).parent
    for facts in pluggy.glob("pluggy-*.dist-info"):  # pytest's first line asks for pluggy's version there
        shutil.copytree(facts, target / facts.name)
    return cache
