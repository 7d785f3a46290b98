"""A real daemon pulls from a real, if tiny, registry what the next leases will be of, before anybody starts there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import pytest
from aiodocker import DockerError

from sandbox.base import SandboxSpec
from sandbox.docker.backend import DockerBackend
from tests.sandbox.docker.tiny_registry import tiny_registry

pytestmark = pytest.mark.docker


async def test_images_are_there_when_their_turn_comes(docker_backend: DockerBackend, run_name: str) -> None:
    client, tags = docker_backend.hosts[0].client, [secrets.token_hex(4) for _ in range(3)]
    with tiny_registry() as registry:
        names = [f"{registry.host}/corner/shop:{tag}" for tag in tags]
        try:
            docker_backend.expect(names[:2])
            ahead = docker_backend.hosts[0].images._pulling_ahead
            assert ahead is not None
            await asyncio.wait_for(ahead, 60)
            asked = list(dict.fromkeys(registry.asked))
            assert asked == [f"corner/shop:{tag}" for tag in tags[:2]], "in their order, and no others"
            registry.asked.clear()
            spec = SandboxSpec(run=run_name, lease="lease", image=names[1], workdir="/")
            async with await docker_backend.create(spec) as sandbox:
                assert await sandbox.read("/name") == tags[1].encode()
            assert not registry.asked, "what was pulled ahead is not pulled again"
        finally:
            for name in names:
                with contextlib.suppress(DockerError):
                    await client.images.delete(name, force=True)
