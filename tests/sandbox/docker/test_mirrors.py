"""A real daemon pulls by a mirror what the registry itself, which is nowhere, could not give."""

from __future__ import annotations

import contextlib
import hashlib
import secrets

import pytest
from aiodocker import DockerError

from sandbox.base import SandboxSpec
from sandbox.docker.backend import DockerBackend
from tests.sandbox.docker.tiny_registry import tiny_registry

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("by_digest", [False, True])
async def test_sandboxes_start_from_what_a_mirror_gave(
    docker_backend: DockerBackend, run_name: str, by_digest: bool
) -> None:
    tag = secrets.token_hex(4)
    with tiny_registry() as registry:
        digest = f"sha256:{hashlib.sha256(registry.manifest('hub/corner/shop', tag)).hexdigest()}"
        registry.blobs[digest] = registry.manifest("hub/corner/shop", tag)
        version = f"@{digest}" if by_digest else f":{tag}"
        image, mirrored = f"corner.invalid/corner/shop{version}", f"{registry.host}/hub/corner/shop{version}"
        backend = DockerBackend(run_name, mirrors={"corner.invalid": f"{registry.host}/hub"})
        client = backend.hosts[0].client
        try:
            for _ in range(2):  # the second one finds it there
                spec = SandboxSpec(run=run_name, lease="lease", image=image, workdir="/")
                async with await backend.create(spec) as sandbox:
                    assert await sandbox.read("/name") == tag.encode()
                backend.hosts[0].images.forget(image)
            known = [name for found in await client.images.list() for name in found["RepoTags"] or []]
            assert f"{registry.host}/hub/corner/shop:{tag}" not in known, "the budget removes one name, not two"
        finally:
            for name in (image, mirrored):
                with contextlib.suppress(DockerError):
                    await client.images.delete(name, force=True)
            await backend.close()
